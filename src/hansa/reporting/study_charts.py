"""Charts of a study: utility against the budget and against the cohort, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hansa.reporting.charts import Axis, Chart, Entry, Mark, Table, axis, down, placed, tick_text
from hansa.reporting.figures import count_text, metric_text, metric_title

Row = Mapping[str, Any]
Point = tuple[float, Sequence[float]]
"""A place on the horizontal axis, and the utilities of its seeds."""

_TONES: Final = 8
_ROOM: Final = 1.15
"""Room beside the outermost points, as a ratio."""


def utility_charts(rows: Sequence[Row], metric: str) -> list[Chart]:
    """Return utility against epsilon, a line for each cohort; and where there are several, against the cohort too."""
    measured = [row for row in rows if row["utility"]]
    cohorts = list(dict.fromkeys(row["cohort"] for row in measured))
    budgets = [row["epsilon"] for row in measured if row["epsilon"] is not None]
    title = metric_title(metric)
    charts = [
        _chart(
            f"{title} against epsilon",
            "charged epsilon",
            {_cohort(size): _points(measured, "epsilon", cohort=size) for size in cohorts},
            {f"{_cohort(size)}, no privacy": _twin(measured, size) for size in cohorts},
        )
    ]
    if len(cohorts) > 1:
        lines = {f"epsilon {each:g}": _points(measured, "cohort", epsilon=each) for each in sorted(set(budgets))}
        lines["no privacy"] = _points(measured, "cohort", epsilon=None)
        charts.append(_chart(f"{title} against the cohort", "clients in a round", lines, {}))
    return [chart for chart in charts if chart]


def _cohort(size: int | None) -> str:
    return "the plan's cohort" if size is None else f"{count_text(size)} clients a round"


def _points(rows: Sequence[Row], place: str, **of: Any) -> list[Point]:
    """Return the points of a line: of rows with the values ``of``, by what ``place`` says."""
    chosen = [row for row in rows if all(row[key] == value for key, value in of.items())]
    return sorted((row[place], list(row["utility"].values())) for row in chosen if row[place] is not None)


def _twin(rows: Sequence[Row], size: int | None) -> float | None:
    return next((row["mean"] for row in rows if row["epsilon"] is None and row["cohort"] == size), None)


def _chart(
    title: str, x_label: str, lines: Mapping[str, Sequence[Point]], levels: Mapping[str, float | None]
) -> Chart | None:
    """Return lines through the means, with a whisker from the lowest to the highest seed, and horizontal levels."""
    lines = {name: points for name, points in lines.items() if points}
    flat = {name: value for name, value in levels.items() if value is not None}
    xs = sorted({x for points in lines.values() for x, _ in points})
    if not xs:
        return None
    across = Axis(xs[0] / _ROOM, xs[-1] * _ROOM, tuple(xs), log=True)
    up = axis([*flat.values(), *(value for points in lines.values() for _, values in points for value in values)])
    marks, legend = [], []
    for position, (name, value) in enumerate(flat.items()):
        marks.append(Mark("line", f"s{position % _TONES}", f"M0 {down(up, value)}H100", "long"))
        legend.append(Entry(name, f"s{position % _TONES}", "long", value=metric_text(value)))
    for position, (name, points) in enumerate(lines.items()):
        tone = f"s{position % _TONES}"
        marks += _marks(points, across, up, tone)
        legend.insert(position, Entry(name, tone))
    return Chart(
        title=title,
        subtitle="Mean over seeds; whiskers from the lowest seed to the highest. Logarithmic horizontal axis.",
        description=f"{title}: {_described(lines)}.",
        marks=tuple(marks),
        x_ticks=placed(across, lambda value: f"{value:g}"),
        y_ticks=placed(up, tick_text(up.ticks)),
        x_label=x_label,
        legend=tuple(legend),
        table=_table(x_label, xs, lines),
        hover={
            "at": [across.at(x) for x in xs],
            "head": [f"{x_label} {x:g}" for x in xs],
            "lines": [[name, [_spread(dict(points).get(x)) for x in xs]] for name, points in lines.items()],
        },
    )


def _marks(points: Sequence[Point], across: Axis, up: Axis, tone: str) -> list[Mark]:
    means = [(across.at(x), down(up, sum(values) / len(values))) for x, values in points]
    whiskers = "".join(f"M{across.at(x):g} {down(up, min(values))}V{down(up, max(values))}" for x, values in points)
    marks = [Mark("line", tone, whiskers), Mark("dots", tone, "".join(f"M{x:g} {y:g}h0" for x, y in means))]
    if len(means) > 1:
        marks.append(Mark("line", tone, "M" + "L".join(f"{x:g} {y:g}" for x, y in means)))
    return marks


def _spread(values: Sequence[float] | None) -> str:
    if values is None:
        return ""
    mean = metric_text(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({metric_text(min(values))} to {metric_text(max(values))})"


def _described(lines: Mapping[str, Sequence[Point]]) -> str:
    return "; ".join(
        f"{name} from {_spread(points[0][1])} at {points[0][0]:g} to {_spread(points[-1][1])} at {points[-1][0]:g}"
        for name, points in lines.items()
    )


def _table(x_label: str, xs: Sequence[float], lines: Mapping[str, Sequence[Point]]) -> Table:
    rows = tuple((f"{x:g}", *(_spread(dict(points).get(x)) for points in lines.values())) for x in xs)
    return Table((x_label, *lines), rows, "Mean over seeds (lowest to highest).")
