"""Charts as files of their own: SVG, with the letters that a report has around its charts."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Final

from hansa.reporting.charts import Chart, Mark

_WIDTH, _HEIGHT = 900, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 30, 70, 110
_INK, _SOFT, _LINE = "#1a1e23", "#5a636e", "#dfe3e8"
_TONES: Final = {
    "before": "#6b7580", "s0": "#0b5cad", "s1": "#b84a00", "s2": "#00785a", "s3": "#96407f", "s4": "#7a6200",
    "s5": "#a8283c", "s6": "#00798c", "s7": "#5a636e",
}  # fmt: skip
"""The light colours of the report's style sheet."""
_DASHES: Final = {"": "none", "dash": "7 5", "dot": "1 5", "long": "12 4 2 4"}


def svg(chart: Chart) -> str:
    """Return a chart as an SVG document."""
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="system-ui, sans-serif">',
        f"<title>{escape(chart.title)}</title><desc>{escape(chart.description)}</desc>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        _text(_LEFT, 28, chart.title, size=16),
        _text(_LEFT, 48, chart.subtitle, colour=_SOFT),
    ]
    for tick in chart.y_ticks:
        y = _TOP + high * (1 - tick.at / 100)
        parts.append(f'<path d="M{_LEFT} {y:.1f}h{wide}" stroke="{_LINE}" fill="none"/>')
        parts.append(_text(_LEFT - 8, y + 4, tick.label, anchor="end", colour=_SOFT))
    parts += [
        _text(_LEFT + wide * tick.at / 100, _TOP + high + 18, tick.label, anchor="middle", colour=_SOFT)
        for tick in chart.x_ticks
    ]
    parts.append(_text(_LEFT + wide / 2, _TOP + high + 38, chart.x_label, anchor="middle", colour=_SOFT))
    box = f'x="{_LEFT}" y="{_TOP}" width="{wide}" height="{high}"'
    parts.append(f'<svg {box} viewBox="0 0 100 100" preserveAspectRatio="none" overflow="visible">')
    parts += [_path(mark) for mark in chart.marks]
    return "\n".join([*parts, "</svg>", *_legend(chart, _TOP + high + 62), "</svg>"]) + "\n"


def _path(mark: Mark) -> str:
    width = 7 if mark.kind == "dots" else 2
    return (
        f'<path d="{mark.path}" fill="none" stroke="{_TONES[mark.tone]}" stroke-width="{width}" '
        f'stroke-dasharray="{_DASHES[mark.dash]}" stroke-linecap="round" stroke-linejoin="round" '
        f'vector-effect="non-scaling-stroke"/>'
    )


def _legend(chart: Chart, y: float) -> Iterator[str]:
    """Yield the entries of the legend, three in a row."""
    step = (_WIDTH - _LEFT - _RIGHT) / 3
    for place, entry in enumerate(chart.legend):
        x, line = _LEFT + step * (place % 3), y + 18 * (place // 3)
        yield _path(Mark("line", entry.tone, f"M{x:.1f} {line - 4:.1f}h22", entry.dash))
        yield _text(x + 30, line, f"{entry.label}  {entry.value}".strip())


def _text(  # noqa: PLR0913 - where and how a text stands
    x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", colour: str = _INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
    )
