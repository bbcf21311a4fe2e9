"""What a scope was charged, row by row, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hansa.cli.console import printable
from hansa.governance.exports import Statement
from hansa.reporting.charts import Level, Series, Style, line_chart
from hansa.reporting.pictures import svg

_RUNS: Final = 5
"""Runs that have a line of their own: those that cost most."""


def drawn(scope: Mapping[str, Any], statement: Statement) -> str:
    """Return an SVG: the charged epsilon of a scope after each row, of its costliest runs, and its limit."""
    rows = [number for number, _ in statement.course]
    costliest = sorted(statement.runs, key=lambda run: -run.course[-1][1])[:_RUNS]
    lines = [Series("charged", "s0", [epsilon for _, epsilon in statement.course])]
    lines += [
        Series(f"{run.run} by itself", f"s{place}", _held(rows, run.course), "dash")
        for place, run in enumerate(costliest, 1)
    ]
    limit = scope["epsilon_limit"]
    levels = [Level("limit", "s5", limit), *(Level(f"{share:.0%}", "before", share * limit) for share in (0.9, 0.7))]
    unit = f"one {scope['unit']}, {scope['adjacency']}, delta {scope['delta']:g}"
    style = Style(subtitle=f"charged epsilon, {unit}", zero=True, x_label="row")
    chart = line_chart(f"Privacy budget of {scope['name']}", rows, lines, levels=levels, style=style)
    if chart is None:
        raise LookupError("a scope has rows")
    return printable(svg(chart))


def _held(rows: Sequence[int], course: Sequence[tuple[int, float]]) -> list[float | None]:
    """Return the last value of a course at each row; None before the first."""
    known, found = dict(course), list[float | None]()
    for row in rows:
        found.append(known.get(row, found[-1] if found else None))
    return found
