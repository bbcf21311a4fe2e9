"""``hansa compare``: several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from hansa.cli.console import (
    NOT_DEFINED_STYLE,
    command_line,
    heading,
    new_table,
    print_json,
    screen,
    sentence,
    write_new,
)
from hansa.cli.options import AsJson
from hansa.reporting.comparison import (
    MANY,
    comparison_rows,
    differences,
    overview,
    render_comparison,
    unlike_note,
)
from hansa.reporting.run_folder import PLAN, RunFolder

_ABSENT: Final = frozenset({"not defined", "not measured", "not reached", "not recorded", "absent"})


def command(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of finished runs.")],
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write the comparison with its curves as one page.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="Count the rounds (and the simulated time) to it: federated.auc=0.9. May be repeated.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show finished runs side by side: results, rounds to a target, costs, and where their plans differ."""
    console = screen()
    targets = dict(_target(text) for text in target or [])
    runs = _labelled([RunFolder.open(path) for path in run_folders])
    if note := unlike_note(runs):
        sentence(console, f"note: {note}", "yellow")
        console.print()
    if len(runs) > MANY:
        _show_many(console, runs, targets)
    else:
        _show_table(console, comparison_rows(runs, targets=targets))
    if out is not None:
        write_new(out, render_comparison(runs, targets=targets), "--out")
        console.print()
        command_line(console, "page", str(out))
    if as_json:
        header, *rows = comparison_rows(runs, targets=targets)
        cells = {name: cells for name, *cells in rows}
        print_json({"runs": header[1:], "note": note or None, "rows": cells, "page": out and str(out)})


def _show_table(console: Console, rows: Sequence[Sequence[str]]) -> None:
    """Print a table: a header, then rows that each begin with their name."""
    header, *body = rows
    table = new_table(header)
    for name, *cells in body:
        table.add_row(Text(name), *(Text(cell, style=NOT_DEFINED_STYLE if cell in _ABSENT else "") for cell in cells))
    console.print(table)


def _show_many(console: Console, runs: Sequence[Mapping[str, Any]], targets: Mapping[str, float]) -> None:
    """Print a line per run with the figures that differ, and where their plans do."""
    _show_table(console, overview(runs, targets=targets))
    found = differences(runs)
    if not found:
        return
    heading(console, "Where the plans differ")
    for key, values in found:
        console.print(Text(key, style="dim"))
        for line in _values(values):
            console.print(Padding(Text(line), (0, 0, 0, 2)))


def _values(values: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Return a line per value with the runs that have it; the most frequent is that of all others."""
    most = max(len(names) for _, names in values)
    rest = next(value for value, names in values if len(names) == most) if most > MANY else None
    lines = [f"{value}: {', '.join(names)}" for value, names in values if value != rest]
    return lines if rest is None else [*lines, f"{rest}: all others"]


def _labelled(folders: list[RunFolder]) -> list[dict[str, Any]]:
    """Return what a comparison takes; runs of one name are told apart by their folders."""
    runs: list[dict[str, Any]] = [
        {
            "summary": folder.summary(),
            "events": [event for event in folder.events() if event["event"] != "summary"],
            "plan_text": folder.read(PLAN),
        }
        for folder in folders
    ]
    names = [str(run["summary"].get("name")) for run in runs]
    labels = names if len(set(names)) == len(names) else [folder.path.resolve().name for folder in folders]
    return [{**run, "label": label} for run, label in zip(runs, labels, strict=True)]


def _target(text: str) -> tuple[str, float]:
    """Return the metric and value of ``federated.auc=0.9``."""
    name, separator, value = text.partition("=")
    try:
        if separator and "." in name:
            return name.strip(), float(value)
    except ValueError:
        pass
    message = f"{text!r} is not of the form part.metric=value, such as federated.auc=0.9."
    raise typer.BadParameter(message, param_hint="--target")
