"""Numbers of a run, read with care, and their text: what is absent or not finite is None, never zero."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

Row = Mapping[str, Any]

HIGHER_IS_BETTER: Final = frozenset({"auc", "accuracy"})
LOWER_IS_BETTER: Final = frozenset({"loss", "rmse", "mae"})
NOT_DEFINED: Final = "not defined"
NOT_RECORDED: Final = "not recorded"
NOT_EVALUATED: Final = "this plan evaluates nothing: "
"""How a note begins that says why a run is not evaluated."""
_NAMES: Final = {"auc": "AUC", "rmse": "RMSE", "mae": "MAE"}
_PARTS: Final = ("federated", "central", "validation", "held_out_clients")


def number(value: object) -> float | None:
    """Return a finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def nested(value: object, *keys: str) -> object:
    """Return what lies at a path of keys in nested mappings, or None."""
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def rows_of(value: object) -> list[Row]:
    """Return the mappings of a list, or an empty list."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return []
    return [row for row in value if isinstance(row, Mapping)]


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the defined values, or None when there are none."""
    defined = [value for value in values if value is not None]
    return math.fsum(value / len(defined) for value in defined) if defined else None


def total_of(values: Sequence[float | None]) -> float | None:
    """Return the sum of values, or None when there are none or one of them is not known."""
    known = [value for value in values if value is not None]
    return number(sum(known)) if known and len(known) == len(values) else None


def metric_name(metric: str) -> str:
    """Return a metric's name as it stands in a sentence."""
    return _NAMES.get(metric, metric)


def metric_title(metric: str) -> str:
    """Return a metric's name as it stands at the head of a chart."""
    name = metric_name(metric)
    return name[:1].upper() + name[1:]


def worst(metric: str, values: Iterable[float | None]) -> float | None:
    """Return the worst defined value of a metric whose direction is known, or None."""
    defined = [value for value in values if value is not None]
    if not defined or metric not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
        return None
    return min(defined) if metric in HIGHER_IS_BETTER else max(defined)


def metric_text(value: float | None) -> str:
    """Return a metric's value with three decimals where that says something."""
    if value is None:
        return NOT_DEFINED
    size = abs(value)
    if size >= 1e5 or 0 < size < 5e-4:
        return f"{value:.3g}"
    return f"{value:.1f}" if size >= 100 else f"{value:.3f}"


def count_text(value: float | None) -> str:
    """Return a whole number with commas."""
    if value is None:
        return NOT_RECORDED
    return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3g}"


def plural(count: float, noun: str) -> str:
    """Return a count with its noun: 1 client, 4 clients."""
    return f"{count_text(count)} {noun}{'' if count == 1 else 's'}"


def bytes_text(value: float | None) -> str:
    """Return a number of bytes in decimal units."""
    if value is None:
        return NOT_RECORDED
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def seconds_text(value: float | None) -> str:
    """Return a duration in the unit that fits."""
    if value is None:
        return NOT_RECORDED
    if 0 < value < 1:
        return f"{value * 1000:.3g} ms"
    if value < 60 or value > 1e9:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def read_plan(text: str) -> Mapping[str, Any]:
    """Return a plan's text as a mapping; a text that is not TOML gives an empty one."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def not_evaluated(plan: Mapping[str, Any], *, on_clients: bool = False, central: bool = False) -> str:
    """Return why a run of this plan evaluates nothing, and what to change.

    ``on_clients`` and ``central`` say whether clients or the server have examples to evaluate on all the same.
    """
    if on_clients and nested(plan, "evaluation", "federated") is False:
        if nested(plan, "privacy") is not None:
            return "evaluation.federated is false, as [privacy] needs; add --set data.test_at=server"
        return "evaluation.federated is false; add --set evaluation.federated=true"
    if central and nested(plan, "evaluation", "central") is False:
        return "evaluation.central is false; add --set evaluation.central=true"
    share = number(nested(plan, "data", "test_fraction")) or 0.0
    if share > 0:
        return (
            f"no client has enough examples to hold any out at data.test_fraction = {share:g}; raise it, or give the "
            "clients more examples"
        )
    return "nothing is held out: add --set data.test_fraction=0.25"


@dataclass(frozen=True)
class Figures:
    """One run's summary, events and plan, with safe access to every number."""

    summary: Row
    events: Sequence[Row] = ()
    plan: Row = field(default_factory=dict)

    def value(self, *keys: str) -> float | None:
        """Return the number at a path of the summary, or None."""
        return number(nested(self.summary, *keys))

    def of(self, kind: str) -> list[Row]:
        """Return the events of one kind, in order."""
        return [event for event in self.events if event.get("event") == kind]

    @cached_property
    def rounds(self) -> list[Row]:
        """The rounds that have a number, in order."""
        return [event for event in self.of("round") if number(event.get("round")) is not None]

    @cached_property
    def evaluations(self) -> list[Row]:
        """The evaluations that have a round, in order."""
        return [event for event in self.of("evaluation") if number(event.get("round")) is not None]

    @cached_property
    def clock(self) -> dict[int, float]:
        """Round -> simulated seconds at its end, with 0 for the untrained model; empty where there is no clock."""
        times = {int(event["round"]): number(event.get("simulated_seconds")) for event in self.rounds}
        known = {at: seconds for at, seconds in times.items() if seconds is not None}
        return {0: 0.0, **known} if known else {}

    @property
    def clients(self) -> int | None:
        """The number of clients that the data have."""
        found = self.value("data", "clients")
        return None if found is None else int(found)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The names of all metrics, in the order of the run."""
        places = [nested(self.summary, "metrics", part) for part in _PARTS]
        places += [event.get(part) for event in self.evaluations for part in _PARTS]
        return tuple(dict.fromkeys(str(name) for place in places if isinstance(place, Mapping) for name in place))

    @cached_property
    def primary(self) -> str | None:
        """The metric of the headline: the first that is defined, any other before the loss."""
        ordered = sorted(self.metrics, key=lambda name: name == "loss")
        defined = [name for name in ordered if any(self.score(part, name) is not None for part in _PARTS)]
        return next(iter(defined or ordered), None)

    def score(self, part: str, metric: str, kind: str = "overall") -> float | None:
        """Return a final metric: ``kind`` is overall, mean, worst_client or worst_10_percent."""
        found = nested(self.summary, "metrics", part, metric)
        return number(nested(found, kind)) if isinstance(found, Mapping) else number(found)

    @cached_property
    def after(self) -> list[Row]:
        """The clients' own rows of the final model."""
        rows = rows_of(nested(self.summary, "metrics", "per_client"))
        events = [event for event in self._client_events if (number(event.get("round")) or 0) > 0]
        return rows or (rows_of(events[-1].get("clients")) if events else [])

    @cached_property
    def before(self) -> list[Row]:
        """The clients' own rows of the untrained model."""
        events = [event for event in self._client_events if number(event.get("round")) == 0]
        return rows_of(events[0].get("clients")) if events else []

    @property
    def _client_events(self) -> list[Row]:
        return [event for event in self.of("clients") if event.get("part", "test") == "test"]

    def own(self, model: str, metric: str) -> dict[str, float | None]:
        """Return a metric on each client's own examples, by client.

        ``model`` is federated, before, alone (each client's own model) or pooled.
        """
        if model == "alone":
            rows = rows_of(nested(self.summary, "baselines", "local_only", "clients"))
            return {str(row.get("client")): number(nested(row, "own", metric)) for row in rows}
        pooled = nested(self.summary, "baselines", "centralised", "per_client")
        rows = {"federated": self.after, "before": self.before}.get(model, rows_of(pooled))
        return {str(row.get("client")): number(row.get(metric)) for row in rows}

    def total(self, amount: Callable[[Row], float | None]) -> float | None:
        """Return the sum over rounds, or None when a round lacks the number."""
        return total_of([amount(event) for event in self.rounds])


def bytes_of(direction: str) -> Callable[[Row], float | None]:
    """Return a function that gives the bytes of one round: of its cohort, or, where there is a clock, of all picked."""

    def amount(event: Row) -> float | None:
        if f"{direction}_total" in event:
            return number(event[f"{direction}_total"])
        each, cohort = number(event.get(direction)), number(event.get("cohort"))
        return None if each is None or cohort is None else number(each * cohort)

    return amount
