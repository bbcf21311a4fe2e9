"""Clients, sizes and labels as a table and a picture: in the terminal with bars, and as a page."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa.cli.console import facts, heading, new_table
from hansa.core.datasets import FederatedData
from hansa.core.layout import Array
from hansa.data import Description
from hansa.reporting.data_section import data_section
from hansa.reporting.figures import count_text, plural
from hansa.reporting.report import render

FEW: Final = 40
"""Most clients with a line of their own."""
_SAMPLE: Final = 10
"""Clients shown as examples where there are more."""
_DRAWN: Final = 12
"""Most labels that are drawn."""
_COUNTED: Final = 3
"""Most labels with a column of counts."""
_BINS: Final = 8
_GLYPHS: Final = "█▓▒░▚▞▙▟▛▜▀▄"
_COLOURS: Final = (
    "blue", "yellow", "green", "red", "cyan", "magenta",
    "bright_blue", "bright_yellow", "bright_green", "bright_red", "bright_cyan", "bright_magenta",
)  # fmt: skip


def show(console: Console, source: str, data: FederatedData, found: Description) -> None:
    """Print what the data are, then the clients."""
    console.print(Text(source, style="bold"))
    for note in data.notes:
        console.print(Text("note: ", style="yellow").append(note, style="none"))
    facts(console, _facts(data, found))
    if len(found.names) <= FEW:
        _legend(console, found)
        console.print(_clients(console, found, range(len(found.names))))
        return
    totals = found.label_counts.sum(axis=1)
    heading(console, "Clients by number of examples")
    console.print(_histogram(totals.astype(np.float64), console.width, whole=True))
    heading(console, "Clients by label skew (0: the pooled mix, 1: nothing in common with it)")
    console.print(_histogram(found.client_skews, console.width, whole=False))
    heading(console, f"The first {_SAMPLE} of {count_text(len(found.names))} clients")
    _legend(console, found)
    console.print(_clients(console, found, range(_SAMPLE)))


def _facts(data: FederatedData, found: Description) -> list[tuple[str, str]]:
    """Return the population in names and values."""
    quantiles = found.size_quantiles
    low, middle, high = (count_text(quantiles[at]) for at in (0.0, 0.5, 1.0))
    parts = ", ".join(f"{_PARTS.get(part, part)} {count_text(int(sizes.sum()))}" for part, sizes in found.sizes.items())
    single = int((np.count_nonzero(found.label_counts, axis=1) == 1).sum())
    what = (
        plural(len(found.label_names), "class").replace("classs", "classes")
        if data.signature.classes
        else "real values"
    )
    rows = [
        ("clients", f"{count_text(found.population)}, each with {low} to {high} examples, median {middle}"),
        ("examples", f"{count_text(found.total)}: {parts}"),
        (
            "labels",
            what + (f"; {plural(single, 'client')} with one of them only" if single and data.signature.classes else ""),
        ),
        ("label skew", f"{found.skew:.3f} from 0 (all alike) to 1; by chance alone about {found.skew_by_chance:.3f}"),
        ("data_sha256", data.sha256),
    ]
    if len(found.names) < found.population:
        some = f"{count_text(len(found.names))} of these clients, evenly spaced: all that is said here is of them"
        rows.insert(1, ("looked at", some))
    if found.central:
        rows.insert(-3, ("server's own", plural(found.central, "example")))
    return rows


_PARTS: Final = {"train": "training", "test": "testing", "held_out": "held-out clients"}


def _legend(console: Console, found: Description) -> None:
    """Print which block stands for which label; a name is never cut from its block."""
    console.print()
    if len(found.label_names) > _DRAWN:
        return
    line = Text("labels", style="dim")
    for position, name in enumerate(found.label_names):
        if len(line) + len(name) + 5 > console.width:
            console.print(line)
            line = Text("      ")
        line.append("  ").append(_GLYPHS[position] * 2, style=f"not dim {_COLOURS[position]}")
        line.append(f" {name}", style="not dim")
    console.print(line)


def _clients(console: Console, found: Description, some: range) -> Table:
    """Return a line for some clients: size, a bar of it, the mix of labels, and their skew."""
    counts = found.label_counts
    totals = counts.sum(axis=1)
    drawn = len(found.label_names) <= _DRAWN
    counted = found.label_names if len(found.label_names) <= _COUNTED and console.width >= 80 else ()
    bar, mix = (14, 24) if console.width >= 90 else (8, 14)
    labels = ["mix of labels" if drawn else "most frequent label"]
    table = new_table(["client", "examples", "", *counted, *labels, "skew"])
    table.columns[2].justify = "left"
    table.columns[-2].justify = "left"
    top = max(1, int(totals[list(some)].max(initial=0)))
    skews = found.client_skews
    for place in some:
        blocks = _mix(counts[place], mix) if drawn else _largest(counts[place], found.label_names)
        table.add_row(
            Text(_shortened(found.names[place], max(12, console.width // 3))),
            count_text(int(totals[place])),
            Text(_bar(int(totals[place]) / top, bar), style="green"),
            *(count_text(int(counts[place, column])) for column in range(len(counted))),
            blocks,
            f"{skews[place]:.2f}",
        )
    return table


def _shortened(name: str, width: int) -> str:
    """Return a name without its middle where it is too long."""
    return (
        name
        if len(name) <= width
        else f"{name[: width // 2]}\N{HORIZONTAL ELLIPSIS}{name[-(width - width // 2 - 1) :]}"
    )


def _bar(share: float, width: int) -> str:
    """Return a bar of eighths of a block."""
    eighths = round(share * width * 8)
    whole, rest = divmod(eighths, 8)
    partial = " ▏▎▍▌▋▊▉"[rest] if rest else ""
    return ("█" * whole + partial) or "▏"


def _mix(counts: Array, width: int) -> Text:
    """Return a bar cut by labels; what is there has one block at least."""
    total = int(counts.sum())
    text = Text()
    if not total:
        return text
    shares = counts / total * width
    cells = np.where(counts > 0, np.maximum(1, np.floor(shares)), 0).astype(int)
    order = np.argsort(-(shares - cells), kind="stable")
    for place in order[: max(0, width - int(cells.sum()))]:
        cells[place] += 1
    while cells.sum() > width and cells.max() > 1:
        cells[int(np.argmax(cells - shares * (cells > 1)))] -= 1
    for place, size in enumerate(cells.tolist()):
        text.append(_GLYPHS[place] * size, style=_COLOURS[place])
    return text


def _largest(counts: Array, names: tuple[str, ...]) -> Text:
    """Return the most frequent label and its share."""
    best = int(np.argmax(counts))
    return Text(f"{names[best]!r} {counts[best] / max(1, int(counts.sum())):.0%}")


def _histogram(values: Array, width: int, *, whole: bool) -> Table:
    """Return how many clients have which value, a line a bin."""
    counts, edges = np.histogram(values, bins=_bins(values, whole=whole))
    top = max(1, int(counts.max()))
    table = Table.grid(padding=(0, 2))
    for justify in ("right", "left", "right"):
        table.add_column(justify=justify, no_wrap=True)
    for place, count in enumerate(counts.tolist()):
        low, high = edges[place], edges[place + 1]
        if whole:
            last = min(int(high) - 1, int(values.max()))
            label = count_text(low) if last <= low else f"{count_text(low)} to {count_text(last)}"
        else:
            label = f"{low:.2f} to {high:.2f}"
        bar = _bar(count / top, max(10, min(40, width - 36))) if count else ""
        table.add_row(label, Text(bar, style="green"), count_text(count))
    return table


def _bins(values: Array, *, whole: bool) -> Array:
    """Return edges of bins; whole numbers where sizes are counted."""
    low, high = float(values.min()), float(values.max())
    if not whole:
        return np.linspace(0.0, max(0.1, np.ceil(high * 10) / 10), 11)
    step = max(1, int(np.ceil((high - low + 1) / _BINS)))
    return np.arange(int(low), int(high) + step + 1, step)


def page(source: str, data: FederatedData, found: Description) -> str:
    """Return the same as a self-contained page, with the charts of the report."""
    section = data_section(
        {
            "source": source,
            "clients": found.population,
            "sizes": found.label_counts.sum(axis=1).tolist(),
            "names": list(found.names),
            "class_names": list(found.label_names),
            "label_counts": found.label_counts.tolist(),
        }
    )
    charts = tuple(
        replace(chart, title=chart.title.replace("Training examples", "Examples")) for chart in section.charts
    )
    return render(
        "data.html",
        title=f"Data: {source}",
        facts_of=_facts(data, found),
        notes=list(data.notes),
        data=replace(section, charts=charts, counted="Examples"),
    )
