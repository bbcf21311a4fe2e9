"""Simulated time in reports and comparisons: curves over the clock, and what became of the clients that were picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from hansa.reporting.charts import Chart, Series, Style, line_chart
from hansa.reporting.figures import (
    HIGHER_IS_BETTER,
    Figures,
    count_text,
    metric_title,
    nested,
    number,
    seconds_text,
)

_UNITS: Final = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0))
_FEWEST: Final = 4
"""Units that an axis spans at least."""
_FATES: Final = (
    ("selected", "picked", "central", ""),
    ("reported", "reported in time", "fed", ""),
    ("late", "late", "alone", "dash"),
    ("too_stale", "too stale", "alone", "dash"),
    ("dropped_out", "dropped out", "pooled", "dot"),
)
_PLACES: Final = (
    ("federated", "overall", "all examples", "fed", ""),
    ("federated", "mean", "mean of clients", "fed", "dash"),
    ("central", "overall", "server's examples", "central", ""),
    ("validation", "overall", "validation, all examples", "alone", ""),
)


def unit_of(seconds: float) -> tuple[str, float]:
    """Return the unit in which so many seconds are shown, and its seconds."""
    return next(((name, size) for name, size in _UNITS if seconds >= _FEWEST * size), ("seconds", 1.0))


def over_time(
    title: str, lines: Sequence[tuple[Series, Mapping[float, float | None]]], *, subtitle: str, log: bool
) -> Chart | None:
    """Return lines over simulated time; each comes as its looks and its values by seconds."""
    xs = sorted({at for _, values in lines for at in values})
    if not xs:
        return None
    unit, size = unit_of(xs[-1])
    drawn = [Series(line.label, line.tone, [values.get(at) for at in xs], line.dash) for line, values in lines]
    style = Style(subtitle, log=log, x_label=f"simulated {unit}", x_text=lambda value: f"{value:.3g}")
    return line_chart(title, [at / size for at in xs], drawn, style=style)


def clock_section(run: Figures) -> dict[str, Any] | None:
    """Return what the report tells of simulated time, or None for a run without a clock."""
    if not run.clock:
        return None
    charts = [
        over_time(
            metric_title(metric),
            [
                (Series(label, tone, (), dash), _values(run, part, metric, kind))
                for part, kind, label, tone, dash in _PLACES
            ],
            subtitle="Over simulated time.",
            log=metric not in HIGHER_IS_BETTER,
        )
        for metric in run.metrics
    ]
    return {"facts": clock_facts(run), "charts": [chart for chart in [*charts, _fates(run), _durations(run)] if chart]}


def clock_facts(run: Figures) -> list[tuple[str, str]]:
    """Return the totals of simulated time, as names and values."""
    told = {key: run.value("simulated", key) for key in ("selected", "reported", "late", "too_stale", "dropped_out")}
    facts = [("Simulated time", seconds_text(run.value("simulated", "seconds")))]
    facts += [(label.capitalize(), count_text(told[key])) for key, label, _, _ in _FATES if told[key] is not None]
    if run.value("simulated", "abandoned"):
        facts.append(("Rounds tried again", count_text(run.value("simulated", "abandoned"))))
    return [*facts, ("Clients that took part", participation_text(run))]


def participation_text(run: Figures) -> str:
    """Return how many different clients took part, of how many."""
    some, of = run.value("simulated", "participants"), run.value("simulated", "population")
    return f"{count_text(some)} of {count_text(of)}"


def _values(run: Figures, part: str, metric: str, kind: str) -> dict[float, float | None]:
    """Return a metric by the simulated seconds of its evaluation."""
    found = {}
    for event in run.evaluations:
        at, row = run.clock.get(int(event["round"])), nested(event, part, metric)
        if at is not None:
            found[at] = (
                number(nested(row, kind)) if isinstance(row, Mapping) else number(row) if kind == "overall" else None
            )
    return found


def _fates(run: Figures) -> Chart | None:
    """Return what became of the clients that were picked, by round."""
    xs = [number(event["round"]) or 0.0 for event in run.rounds]
    lines = [
        Series(label, tone, [number(event.get(key)) for event in run.rounds], dash) for key, label, tone, dash in _FATES
    ]
    style = Style("Clients by what became of them.", zero=True, text=count_text, ticks=count_text)
    return line_chart("Picked clients", xs, lines, style=style)


def _durations(run: Figures) -> Chart | None:
    """Return how long each round took."""
    ends = list(run.clock.values())
    rounds = [float(at) for at in run.clock][1:]
    spans = [after - before for before, after in pairwise(ends)]
    unit, size = unit_of(max(spans, default=0.0))
    lasted = [span / size for span in spans]
    line = Series(f"{unit} of a round", "fed", lasted)
    return line_chart("Simulated length of a round", rounds, [line], style=Style(f"In {unit}.", zero=True))
