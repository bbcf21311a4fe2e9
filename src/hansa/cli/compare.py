"""``hansa compare``: several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from hansa.cli.console import NOT_DEFINED_STYLE, command_line, new_table, print_json, screen, write_new
from hansa.cli.options import AsJson
from hansa.reporting.comparison import comparison_rows, render_comparison
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
        typer.Option(metavar="METRIC=VALUE", help="Count the rounds to it: federated.auc=0.9. May be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show finished runs side by side: results, rounds to a target, costs, and where their plans differ."""
    console = screen()
    targets = dict(_target(text) for text in target or [])
    runs = _labelled([RunFolder.open(path) for path in run_folders])
    header, *rows = comparison_rows(runs, targets=targets)
    table = new_table(header)
    for name, *cells in rows:
        table.add_row(Text(name), *(Text(cell, style=NOT_DEFINED_STYLE if cell in _ABSENT else "") for cell in cells))
    console.print(table)
    if out is not None:
        write_new(out, render_comparison(runs, targets=targets), "--out")
        console.print()
        command_line(console, "page", str(out))
    if as_json:
        print_json({"runs": header[1:], "rows": {name: cells for name, *cells in rows}, "page": out and str(out)})


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
