"""The devices of a simulation: how long clients take, when they can be reached, when they are lost.

Everything is a function of the seed, the client's number and the time, for many clients at once. Nothing is kept for
a client, so a million of them cost nothing until they are drawn. The numbers of the presets are round, and are there
to show effects, not to predict: see the documentation's page on devices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from hansa.algorithms.plan import Plan
from hansa.core.errors import PlanError, Problem
from hansa.core.layout import Array, Int64s
from hansa.core.schema import to_mapping
from hansa.core.sections import DeviceClass, Devices
from hansa.core.streams import Streams
from hansa.simulation.device_traces import Traces, read_traces

HOUR: Final = 3600.0
_BYTES: Final = 1e6 / 8
"""Bytes a second of 1 Mbit/s."""
_TRAITS: Final = 6
"""Words of a client's stream: its class, two pairs for speed and network, its shift."""

PRESETS: Final[dict[str, tuple[DeviceClass, ...]]] = {
    "phones": tuple(
        DeviceClass(
            name=name, share=share, speed=speed, speed_spread=0.3, down_mbit=down, up_mbit=up, network_spread=0.6,
            latency=0.1, losses_per_hour=1.0, available="22-30", shift_hours=3.0,
        )
        for name, share, speed, down, up in (
            ("new", 0.2, 2.0, 80.0, 20.0), ("common", 0.5, 1.0, 40.0, 10.0), ("old", 0.3, 0.3, 15.0, 4.0)
        )
    ),
    "hospitals": (
        DeviceClass(
            name="server", speed=20.0, speed_spread=0.4, down_mbit=200.0, up_mbit=100.0, network_spread=0.3,
            latency=0.03, losses_per_hour=0.005,
        ),
    ),
    "browsers": tuple(
        DeviceClass(
            name=name, share=share, speed=speed, speed_spread=0.4, down_mbit=50.0, up_mbit=10.0, network_spread=0.7,
            latency=0.05, losses_per_hour=4.0, available="8-23", shift_hours=3.0,
        )
        for name, share, speed in (("desktop", 0.6, 4.0), ("handheld", 0.4, 0.8))
    ),
    "iot": (
        DeviceClass(
            name="gateway", share=0.2, speed=0.5, speed_spread=0.2, down_mbit=10.0, up_mbit=5.0, network_spread=0.5,
            latency=0.2, losses_per_hour=0.05,
        ),
        DeviceClass(
            name="sensor", share=0.8, speed=0.02, speed_spread=0.2, down_mbit=0.5, up_mbit=0.25, network_spread=0.5,
            latency=1.0, losses_per_hour=0.2,
        ),
    ),
}  # fmt: skip
"""Name -> the classes of devices that come with Hansa."""


@dataclass(frozen=True)
class Fleet:
    """The devices of a population. Times are seconds from the beginning of the run.

    ``owner`` holds each client's class where a file of clients names it; else classes are drawn by their shares.
    """

    devices: Devices
    classes: tuple[DeviceClass, ...]
    streams: Streams
    sha256: str
    owner: Int64s | None = None

    @cached_property
    def _table(self) -> dict[str, Array]:
        """Every number of every class: name -> [classes]."""
        names = [name for name, value in vars(self.classes[0]).items() if isinstance(value, int | float)]
        return {name: np.array([float(getattr(each, name)) for each in self.classes]) for name in names}

    @cached_property
    def _hours(self) -> Array:
        return _hours(self.classes, self.devices.period_hours)

    @property
    def always(self) -> bool:
        """True if every client can always be reached."""
        return bool(np.isinf(self._hours[:, :, 1]).any(axis=1).all())

    def class_of(self, clients: Int64s) -> Int64s:
        """Return the number of each client's class: int64 [n]."""
        if self.owner is not None:
            return self.owner[clients]
        return self._drawn(self._traits(clients)[:, 0])

    def seconds(self, clients: Int64s, examples: Array, *, down_bytes: float, up_bytes: float) -> Array:
        """Return how long each takes to get the model, train on so many examples and send its update: float64 [n]."""
        words = self._traits(clients)
        of = self._of(clients, words)
        speed = of["speed"] * np.exp(of["speed_spread"] * _normal(words[:, 1], words[:, 2]))
        network = np.exp(of["network_spread"] * _normal(words[:, 3], words[:, 4])) * _BYTES
        down = of["latency"] + down_bytes / (of["down_mbit"] * network)
        up = of["latency"] + up_bytes / (of["up_mbit"] * network)
        return np.asarray(down + examples / (speed * self.devices.examples_per_second) + up)

    def reachable_for(self, clients: Int64s, at: float) -> Array:
        """Return for how long each can still be reached: float64 [n] seconds, 0 for less than one, inf for always."""
        words = self._traits(clients)
        shift = self._of(clients, words)["shift_hours"] * (2 * words[:, 5] - 1)
        period = self.devices.period_hours
        hour = np.mod(self.devices.start_hour + at / HOUR - shift, period)
        hours = self._hours[self._class(clients, words)]
        left = np.zeros(len(clients))
        for turn in (0.0, period):  # an interval may run into the next period
            now = (hour + turn)[:, None]
            inside = (hours[:, :, 0] <= now) & (now < hours[:, :, 1])
            left = np.maximum(left, np.where(inside, hours[:, :, 1] - now, 0.0).max(axis=1))
        return np.asarray(np.where(left * HOUR < 1, 0.0, left * HOUR))

    def lost_after(self, clients: Int64s, starts: Int64s) -> Array:
        """Return after how long each client is lost: float64 [n] seconds, inf for never. ``starts`` number draws."""
        words = self.streams.of("departures").uniform(starts, 1)[:, 0]
        hazard = self._of(clients, self._traits(clients))["losses_per_hour"] / HOUR
        with np.errstate(divide="ignore"):
            return np.asarray(np.where(hazard > 0, -np.log1p(-words) / hazard, np.inf))

    def _traits(self, clients: Int64s) -> Array:
        return self.streams.of("devices").uniform(clients, _TRAITS)

    def _drawn(self, words: Array) -> Int64s:
        shares = np.cumsum(self._table["share"])
        found = np.searchsorted(shares, words * shares[-1], side="right")
        return np.asarray(np.minimum(found, len(shares) - 1), dtype=np.int64)

    def _class(self, clients: Int64s, words: Array) -> Int64s:
        return self._drawn(words[:, 0]) if self.owner is None else self.owner[clients]

    def _of(self, clients: Int64s, words: Array) -> dict[str, Array]:
        """Return every setting of each client's class: name -> [n]."""
        numbers = self._class(clients, words)
        return {name: column[numbers] for name, column in self._table.items()}


def fleet_of(plan: Plan, names: Sequence[str]) -> Fleet | None:
    """Return the devices of a plan's clients, or None for a plan without. Raises PlanError; DataError for a file."""
    devices = plan.devices
    if devices is None:
        if needs_times(plan.schedule):
            kind = "when clients report" if not plan.schedule.synchronous else "who is late or lost"
            message = f'depends on {kind}, which a simulation does not know without [devices]; add preset = "phones".'
            raise PlanError([Problem("schedule", message)])
        return None
    traces = Traces(PRESETS[devices.preset] if devices.preset else devices.classes)
    content = b""
    if devices.path is not None:
        traces, content = read_traces(Path(devices.path), names)
    problem = _hours_problem(traces.classes, devices.period_hours)
    if problem is not None:
        raise PlanError([Problem("devices.period_hours", problem)])
    written = json.dumps(to_mapping(devices), sort_keys=True)
    digest = hashlib.sha256(written.encode() + content).hexdigest()
    return Fleet(devices, traces.classes, Streams(plan.seed), digest, traces.owner)


def needs_times(schedule: Any) -> bool:
    """Return True for a schedule that means something only where clients take their time."""
    if not schedule.synchronous:
        return True
    return bool(schedule.over_selection) or schedule.round_deadline is not None


def examples_seen(trainer: Any, sizes: Int64s) -> Array:
    """Return on how many examples each client trains in a round, passes counted: float64 [n].

    A trainer that says neither epochs nor steps is taken to pass over its examples once.
    """
    epochs, steps = getattr(trainer, "epochs", None), getattr(trainer, "steps", None)
    if epochs is None and steps is not None:
        batch = getattr(trainer, "batch_size", "all")
        return np.asarray(steps * (sizes if batch == "all" else np.minimum(sizes, batch)), dtype=np.float64)
    return np.asarray(sizes * (epochs or 1), dtype=np.float64)


def _hours_problem(classes: Sequence[DeviceClass], period: float) -> str | None:
    for each in classes:
        for start, end in each.hours():
            if start >= period or end - start > period:
                return f"is {period:g}, but {each.name} is available {start:g}-{end:g}; raise it, or mend the hours."
    return None


def _hours(classes: Sequence[DeviceClass], period: float) -> Array:
    """Return the hours of every class, joined where they meet: float64 [classes, intervals, 2], padded with 0."""
    joined = [_joined(each.hours(), period) for each in classes]
    table = np.zeros((len(classes), max(map(len, joined)), 2))
    for row, intervals in zip(table, joined, strict=True):
        row[: len(intervals)] = intervals
    return table


def _joined(hours: Sequence[tuple[float, float]], period: float) -> list[tuple[float, float]]:
    """Return intervals of a period that neither meet nor overlap, also around its end; (0, inf) for always."""
    if not hours:
        return [(0.0, np.inf)]
    merged: list[tuple[float, float]] = []
    for start, end in sorted(hours):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    while len(merged) > 1 and merged[-1][1] - period >= merged[0][0]:  # the last runs into the first of the next period
        first = merged.pop(0)
        merged[-1] = (merged[-1][0], max(merged[-1][1], first[1] + period))
    return [(0.0, np.inf)] if merged[-1][1] - merged[-1][0] >= period else merged


def _normal(first: Array, second: Array) -> Array:
    """Return standard normal numbers from pairs of uniform ones (Box and Muller 1958)."""
    return np.asarray(np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second))
