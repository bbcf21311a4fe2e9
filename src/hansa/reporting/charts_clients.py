"""Charts of many clients at once: a histogram, or a row of dots for each client."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hansa.reporting.charts import (
    Axis,
    Chart,
    Entry,
    Mark,
    Series,
    Table,
    Text,
    Tick,
    axis,
    down,
    placed,
    tick_text,
)
from hansa.reporting.figures import count_text, metric_text

_BINS: Final = 24


def histogram(title: str, groups: Sequence[Series], *, subtitle: str = "", text: Text = metric_text) -> Chart | None:
    """Return how many clients of each group have which value, or None when no client has one."""
    defined = [[value for value in group.values if value is not None] for group in groups]
    values = list(itertools.chain.from_iterable(defined))
    if not values:
        return None
    across = axis(values)
    counts = [_counted(group, across) for group in defined]
    up = axis([float(max(map(max, counts)))], zero=True)
    edges = [across.low + (across.high - across.low) * i / _BINS for i in range(_BINS + 1)]
    bins = [f"{text(low)} to {text(high)}" for low, high in itertools.pairwise(edges)]
    texts = [[count_text(count) for count in group] for group in counts]
    legend = [Entry(group.label, group.tone, shape="area" if group is groups[-1] else "line") for group in groups]
    return Chart(
        title=title,
        subtitle=subtitle,
        description=f"{title}: number of clients by value, from {text(min(values))} to {text(max(values))}.",
        marks=_bars(groups, counts, up),
        x_ticks=placed(across, tick_text(across.ticks)),
        y_ticks=tuple(tick for tick in placed(up, tick_text(up.ticks)) if "." not in tick.label),
        x_label="",
        legend=tuple(legend) if len(groups) > 1 else (),
        table=Table(("from, to", *(group.label for group in groups)), tuple(zip(bins, *texts, strict=True))),
        hover={
            "at": [round(100 * (i + 0.5) / _BINS, 3) for i in range(_BINS)],
            "head": bins,
            "lines": [[group.label, counted] for group, counted in zip(groups, texts, strict=True)],
        },
    )


def _bars(groups: Sequence[Series], counts: Sequence[Sequence[int]], up: Axis) -> tuple[Mark, ...]:
    """Return the last group as bars, and the others as outlines over them."""
    heights = [[down(up, count) for count in group] for group in counts]
    bars = Mark("area", groups[-1].tone, _outline(heights[-1], closed=True))
    outlines = [
        Mark("line", group.tone, _outline(tops, closed=False))
        for group, tops in zip(groups[:-1], heights[:-1], strict=True)
    ]
    return (bars, *outlines)


def _counted(values: Sequence[float], ends: Axis) -> list[int]:
    counts = [0] * _BINS
    for value in values:
        counts[min(_BINS - 1, int(ends.at(value) / 100 * _BINS))] += 1
    return counts


def _outline(heights: Sequence[float], *, closed: bool) -> str:
    """Return the outline of bars: of each one by itself when closed, else of all together."""
    width = 100 / _BINS
    if closed:
        gap = width * 0.06
        bars = [(i * width + gap, y, (i + 1) * width - gap) for i, y in enumerate(heights) if y < 100]
        return "".join(f"M{x:.3f} 100V{y:g}H{end:.3f}V100Z" for x, y, end in bars)
    return "M0 100" + "".join(f"V{y:g}H{(i + 1) * width:.3f}" for i, y in enumerate(heights)) + "V100"


@dataclass(frozen=True)
class DotRow:
    """One client's dots: (tone, place, text), and the ends of the bar between the first and the second."""

    label: str
    dots: tuple[tuple[str, float, str], ...]
    bar: tuple[float, float] | None
    missing: str


@dataclass(frozen=True)
class DotChart:
    """A line per client with a dot per model."""

    title: str
    subtitle: str
    description: str
    ticks: tuple[Tick, ...]
    rows: tuple[DotRow, ...]
    legend: tuple[Entry, ...]


def dot_chart(
    title: str, clients: Sequence[str], groups: Sequence[Series], *, subtitle: str = "", missing: str = ""
) -> DotChart | None:
    """Return a row of dots per client, or None when no client has a value."""
    values = [value for group in groups for value in group.values if value is not None]
    if not values:
        return None
    ends = axis(values)
    rows = []
    for position, client in enumerate(clients):
        dots = tuple(
            (group.tone, ends.at(value), f"{group.label}: {metric_text(value)}")
            for group in groups
            if (value := group.values[position]) is not None
        )
        places = {tone: at for tone, at, _ in dots}
        bar = (min(places.values()), max(places.values())) if places else None
        rows.append(DotRow(client, dots, bar, "" if dots else missing))
    return DotChart(
        title=title,
        subtitle=subtitle,
        description=f"{title}: {metric_text(min(values))} to {metric_text(max(values))}.",
        ticks=placed(ends, tick_text(ends.ticks)),
        rows=tuple(rows),
        legend=tuple(Entry(group.label, group.tone, shape="dot") for group in groups),
    )
