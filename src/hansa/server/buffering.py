"""Buffered runs: clients train all the time, and the server takes a step whenever its buffer is full (FedBuff).

The machine is ``algorithms.schedule.Buffer``; its state is in the run's notes. Each model version has a round of
training, of which clients are told one by one as they become free; it stays open as long as an update that started
from its model may still be accepted.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hansa.algorithms import divergence
from hansa.algorithms.fold import Collector, collector, one_after_another
from hansa.algorithms.plan import Plan
from hansa.algorithms.rounds import weighed
from hansa.algorithms.schedule import Buffer, Contribution
from hansa.core.nouns import Assignment
from hansa.server.closing import Closed, decoded, finish, training_event
from hansa.server.contexts import RunContext
from hansa.server.reading import SealedUpdate
from hansa.server.rounds_at_rest import round_name
from hansa.store.blobs import Blobs
from hansa.store.keys import KeyProvider
from hansa.store.records import Assigned, Client, Report, Round


@dataclass(frozen=True)
class Training:
    """A round of training of a buffered run, with its clients and their reports."""

    round: Round
    assigned: Sequence[Assigned]
    reports: Sequence[Report]

    @property
    def version(self) -> int:
        """Return the model version that its clients start from."""
        return self.round.id.round - 1


def read_buffer(plan: Plan, notes: dict[str, Any]) -> Buffer:
    """Return the machine as a run's notes have it; a new one where they have none."""
    schedule: Any = plan.schedule
    kept = notes.get("buffer")
    if kept is None:
        return Buffer(schedule)
    return Buffer(
        schedule,
        version=kept["version"],
        started=kept["started"],
        training={int(number): (version, start) for number, (version, start) in kept["training"].items()},
        held={int(number): Contribution(**each) for number, each in kept["held"].items()},
    )


def write_buffer(buffer: Buffer) -> dict[str, Any]:
    """Return what a run's notes keep of the machine."""
    return {
        "version": buffer.version,
        "started": buffer.started,
        "training": {str(number): list(each) for number, each in buffer.training.items()},
        "held": {str(number): asdict(each) for number, each in buffer.held.items()},
    }


@dataclass(frozen=True)
class Heard:
    """What the machine was told: whose reports came too late for it, and who will not report."""

    stale: tuple[Assigned, ...]
    lost: tuple[Assigned, ...]


def hear(buffer: Buffer, rounds: Sequence[Training], *, now: float) -> Heard:
    """Tell the machine what happened since, in the order in which it happened, until the buffer is full."""
    stale: list[Assigned] = []
    lost: list[Assigned] = []
    arrived: list[tuple[float, Assigned]] = []
    for training in rounds:
        at = {report.client: report.received_at for report in training.reports}
        for each in training.assigned:
            place, held = (training.version, each.position), buffer.held.get(each.number)
            if each.fate == "refused" and held is not None and (held.version, held.start) == place:
                buffer.take_back(each.number)
            if buffer.training.get(each.number) != place:
                continue
            if each.fate == "reported":
                arrived.append((at[each.client], each))
            elif each.fate is not None or now > (each.notes["deadline"] or math.inf):
                buffer.lose(each.number)
                lost.append(each)
    for _, each in sorted(arrived, key=lambda one: (one[0], one[1].position)):
        if buffer.full:
            break
        if buffer.report(each.number) == "too stale":
            stale.append(each)
    return Heard(tuple(stale), tuple(lost))


async def step(  # noqa: PLR0913 - what a step is made of
    context: RunContext,
    contributions: Sequence[Contribution],
    rounds: Sequence[Training],
    *,
    blobs: Blobs,
    keys: KeyProvider,
    largest_norm: float,
    now: float,
) -> tuple[Closed, list[Assigned]]:
    """Return the next state from the updates that a full buffer held, and whose they were.

    Raises DivergenceError where training diverged.
    """
    plan, state = context.plan, context.state
    by_version = {training.version: training for training in rounds}
    collections: list[Collector] = []
    counted: list[Assigned] = []
    sizes: list[int] = []
    for version in sorted({each.version for each in contributions}):
        training = by_version[version]
        key = await asyncio.to_thread(keys.unwrap, round_name(training.round.id), training.round.key)
        reports = {report.client: report for report in training.reports}
        clients = {each.position: each for each in training.assigned}
        part = [each for each in contributions if each.version == version]
        numbers = np.array([each.client for each in part], dtype=np.int64)
        assignment = Assignment(
            training.round.id.round, state.layout, state.model, numbers, training.round.population, state.features
        )
        collected = collector(plan.aggregator, state.layout, len(part), None)
        for position, each in enumerate(part):
            client = clients[each.start]
            report = reports[client.client]
            content = await SealedUpdate(blobs, key, training.round.id, report).whole()
            batch = decoded(context, assignment, content, report, largest_norm=largest_norm)
            collected.add(weighed(batch, np.array([each.weight], dtype=np.float32)), position)
            counted.append(client)
            sizes.append(report.size)
        collections = [one_after_another([*collections, collected])]
    newest = max(rounds, key=lambda training: training.version).round
    closed, report_ = finish(context, collections[0], newest.population)
    early = divergence.check(plan, report_, context.run.notes.get("early_norms", []))
    event = training_event(context, report_, newest, sizes, now=now)
    staleness = [state.round - each.version for each in contributions]
    event |= {"staleness_mean": sum(staleness) / len(staleness), "staleness_max": max(staleness)}
    return Closed(closed, event, {"early_norms": early}), counted


def with_buffer(notes: dict[str, Any], buffer: Buffer) -> dict[str, Any]:
    """Return a run's notes with the machine as it is now."""
    return {**notes, "buffer": write_buffer(buffer)}


def drained(buffer: Buffer, rounds: Sequence[Training]) -> list[Training]:
    """Return the rounds of which no update can be accepted any more; who still trains there is given up."""
    old = [training for training in rounds if training.version < buffer.oldest]
    for training in old:
        for each in training.assigned:
            if buffer.training.get(each.number) == (training.version, each.position):
                buffer.lose(each.number)
    return old


def started(round_: Round, client: Client, start: int, deadline: float | None) -> Assigned:
    """Return the row of a client that is sent a version now, and must report by then."""
    return Assigned(round_.id, client.id, client.number, start, notes={"deadline": deadline})
