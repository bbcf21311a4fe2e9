"""Charts as data for the templates: paths in a box of 100 by 100 that stretches, ticks in per cent, hover texts.

The box is an SVG that fills its place at any width; ticks, legends and hover texts are HTML around it, so
that letters and strokes keep their size on a phone and on paper. Without scripts everything is there but hovering.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hansa.reporting.figures import count_text, metric_text

Text = Callable[[float | None], str]

_LARGEST: Final = 1e250
_LOG_FROM: Final = 1e3
_DRAWN: Final = 2000
_LISTED: Final = 40
_DOTTED: Final = 20


@dataclass(frozen=True)
class Tick:
    """A label at a place of an axis, in per cent of its length."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A path to draw: ``kind`` is line, dots or area; ``tone`` its colour, ``dash`` its pattern."""

    kind: str
    tone: str
    path: str
    dash: str = ""


@dataclass(frozen=True)
class Entry:
    """One line of a legend."""

    label: str
    tone: str
    dash: str = ""
    shape: str = "line"
    value: str = ""


@dataclass(frozen=True)
class Table:
    """The numbers of a chart."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart that the template can draw."""

    title: str
    subtitle: str
    description: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_label: str
    legend: tuple[Entry, ...]
    table: Table
    hover: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gutter(self) -> int:
        """Return the width of the y labels in letters."""
        return max(len(tick.label) for tick in self.y_ticks)


@dataclass(frozen=True)
class Series:
    """Values over x, drawn as a line where they are defined."""

    label: str
    tone: str
    values: Sequence[float | None]
    dash: str = ""


@dataclass(frozen=True)
class Level:
    """A value that does not change over x, drawn as a horizontal line."""

    label: str
    tone: str
    value: float | None
    dash: str = "long"


@dataclass(frozen=True)
class Axis:
    """What lies between two ends of an axis; ``log`` spaces by ratio."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value in per cent, within the axis."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return 50.0 if high <= low else round(100 * (value - low) / (high - low), 3)


def axis(values: Sequence[float], *, zero: bool = False, log: bool = False, tight: bool = False) -> Axis:
    """Return an axis with round ticks around values.

    ``zero`` includes 0; ``log`` allows powers of ten where positive values spread widely; ``tight`` ends
    at the values themselves and puts ticks on whole numbers only.
    """
    clamped = [min(max(value, -_LARGEST), _LARGEST) for value in values]
    low, high = min(clamped), max(clamped)
    if log and low > 0 and high / low > _LOG_FROM:
        return _log_axis(low, high)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if tight:
        step = max(1.0, _step((high - low) or 1.0, 6))
        first = math.ceil(low / step)
        return Axis(low, high, tuple(step * i for i in range(first, math.floor(high / step) + 1)) or (low,))
    step = _step((high - low) or abs(high) / 4 or 1.0, 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple(step * (first + i) for i in range(min(last - first, 12) + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def _log_axis(low: float, high: float) -> Axis:
    """Return an axis of powers of ten, at most seven of them labelled."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / 6))
    last = first + stride * math.ceil((last - first) / stride)
    ticks = tuple(10.0**power for power in range(first, last + 1, stride))
    return Axis(ticks[0], ticks[-1], ticks, log=True)


def _step(span: float, count: int) -> float:
    """Return a round step that divides a span into about so many parts."""
    power = math.floor(math.log10(span / count))
    ratio = span / count / 10.0**power
    return next(float(round_step) for round_step in (1, 2, 5, 10) if ratio <= round_step + 1e-9) * 10.0**power


def tick_text(ticks: Sequence[float]) -> Text:
    """Return a function that writes ticks with as many decimals as they need."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    largest = max(map(abs, ticks))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    if largest >= 1e6 or decimals > 4 or (ticks[0] and ticks[-1] / ticks[0] >= _LOG_FROM):
        return lambda value: f"{value:.3g}"
    return lambda value: f"{value:,.{decimals}f}"


def placed(ends: Axis, text: Text) -> tuple[Tick, ...]:
    """Return the ticks of an axis with their labels."""
    return tuple(Tick(ends.at(tick), text(tick)) for tick in ends.ticks)


@dataclass(frozen=True)
class Style:
    """How a chart of lines looks: its words, its axis from zero or logarithmic, and how numbers are written."""

    subtitle: str = ""
    zero: bool = False
    log: bool = False
    text: Text = metric_text
    ticks: Text | None = None
    x_label: str = "round"
    x_text: Text = count_text


def line_chart(
    title: str,
    xs: Sequence[float],
    lines: Sequence[Series],
    *,
    levels: Sequence[Level] = (),
    style: Style | None = None,
) -> Chart | None:
    """Return lines over x, or None when no line has a value."""
    style = style or Style()
    lines = [line for line in lines if any(value is not None for value in line.values)]
    values = [value for line in lines for value in line.values if value is not None]
    if not values:
        return None
    flat = [(level, value) for level in levels if (value := level.value) is not None]
    keep = thinned(len(xs), _DRAWN)
    across = axis(xs, tight=True)
    up = axis(values + [value for _, value in flat], zero=style.zero, log=style.log)
    marks = [Mark("line", level.tone, f"M0 {down(up, value)}H100", level.dash) for level, value in flat]
    for line in lines:
        marks += _line_marks(line, [(across.at(xs[i]), line.values[i]) for i in keep], up)
    legend = [Entry(line.label, line.tone, line.dash, value=style.text(_last(line.values))) for line in lines]
    legend += [Entry(level.label, level.tone, level.dash, value=style.text(value)) for level, value in flat]
    drawn = f"Drawn: {count_text(len(keep))} of {count_text(len(xs))} points." if len(keep) < len(xs) else ""
    return Chart(
        title=title,
        subtitle=" ".join(filter(None, [style.subtitle, drawn, "Logarithmic scale." if up.log else ""])),
        description=f"{title}. Last values: " + "; ".join(f"{entry.label} {entry.value}" for entry in legend) + ".",
        marks=tuple(marks),
        x_ticks=placed(across, count_text),
        y_ticks=placed(up, style.ticks or tick_text(up.ticks)),
        x_label=style.x_label,
        legend=tuple(legend),
        table=_line_table(xs, lines, style),
        hover={
            "at": [across.at(xs[i]) for i in keep],
            "head": [f"{style.x_label} {style.x_text(xs[i])}" for i in keep],
            "lines": [[line.label, [_brief(line.values[i], style.text) for i in keep]] for line in lines],
        },
    )


def _brief(value: float | None, text: Text) -> str:
    """Return a value as it stands in a hover text: nothing where nothing was measured."""
    return "" if value is None else text(value)


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def down(up: Axis, value: float) -> float:
    """Return a place from the top, as SVG counts."""
    return round(100 - up.at(value), 3)


def _line_marks(line: Series, points: Sequence[tuple[float, float | None]], up: Axis) -> list[Mark]:
    """Return a line through the values there are, and dots when there are few."""
    placed = [(x, down(up, value)) for x, value in points if value is not None]
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in placed)
    marks = [Mark("line", line.tone, path, line.dash)] if len(placed) > 1 else []
    if len(placed) <= _DOTTED:
        marks.append(Mark("dots", line.tone, "".join(f"M{x:g} {y:g}h0" for x, y in placed)))
    return marks


def thinned(count: int, limit: int) -> list[int]:
    """Return positions evenly over a range, with the last, at most about ``limit`` of them."""
    stride = max(1, math.ceil(count / limit))
    return sorted({*range(0, count, stride), count - 1})


def _line_table(xs: Sequence[float], lines: Sequence[Series], style: Style) -> Table:
    keep = thinned(len(xs), _LISTED)
    rows = [(style.x_text(xs[i]), *(_brief(line.values[i], style.text) for line in lines)) for i in keep]
    note = "" if len(keep) == len(xs) else f"{len(keep)} of {count_text(len(xs))} rows."
    return Table((style.x_label, *(line.label for line in lines)), tuple(rows), note)
