"""``hansa explain``: what an error code means."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from hansa.cli.console import print_json, screen
from hansa.cli.options import AsJson
from hansa.core.errors import CATALOGUE
from hansa.core.registry import nearest


def command(
    code: Annotated[str | None, typer.Argument(metavar="CODE", help="An error's code.", show_default=False)] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Say what an error code means and with which exit status a command ends; without one, list all."""
    wanted = None if code is None else code.strip().upper()
    if wanted is not None and wanted not in CATALOGUE:
        raise typer.BadParameter(f"unknown code; {nearest(wanted, CATALOGUE)}", param_hint="CODE")
    found = {name: about for name, about in CATALOGUE.items() if wanted in (None, name)}
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right")
    table.add_column()
    for name, entry in found.items():
        table.add_row(name, str(entry.exit_status), Text(entry.meaning))
    screen().print(table)
    if as_json:
        print_json(
            {name: {"exit_status": entry.exit_status, "meaning": entry.meaning} for name, entry in found.items()}
        )
