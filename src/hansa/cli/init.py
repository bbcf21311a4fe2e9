"""``hansa init``: a commented plan for a table of the user's own."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from hansa.algorithms.plan import plan_from_mapping
from hansa.cli.console import command_line, print_json, screen, sentence, shown, write_new
from hansa.cli.init_plan import Found, plan_text
from hansa.cli.options import AsJson
from hansa.core.errors import DataError
from hansa.core.registry import nearest
from hansa.data.inference import infer, read_table_at
from hansa.data.table import Table
from hansa.simulation.preparation import prepare

_ENOUGH: Final = 4
"""Rows of the largest client, at least."""


def command(
    data: Annotated[Path, typer.Argument(metavar="DATA.csv", help="Your table, .csv or .parquet: a row an example.")],
    *,
    client: Annotated[str, typer.Option(metavar="COLUMN", help="The column that says whose a row is.")],
    label: Annotated[str, typer.Option(metavar="COLUMN", help="The column that is predicted.")],
    out: Annotated[
        Path | None, typer.Option(metavar="PLAN.toml", help="Where to write the plan. Default: the data's name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented plan for your own table, ready to run.

    The plan declares every column as it was found in the file, and says why it chooses what it chooses.
    """
    console = screen()
    path = Path(f"{data.stem}.toml") if out is None else out
    found = _look(data, client, label)
    text = plan_text(found, path)
    prepared = prepare(plan_from_mapping(tomllib.loads(text)))
    write_new(path, text, "--out")
    console.print(Text(str(path), style="bold").append(f": {found.summary()}", style="not bold"))
    for note in (*found.notes, *prepared.notes):
        console.print(Text("note: ", style="yellow").append(note, style="none"))
    sentence(console, "It looked at all rows of the file, as you can; each choice is explained in the plan.")
    for verb in ("check", "run"):
        command_line(console, verb, f"hansa {verb} {shown(path)}")
    if as_json:
        print_json(
            {
                "plan": str(path),
                "plan_sha256": prepared.plan_sha256,
                "clients": prepared.population,
                "notes": found.notes,
            }
        )


def _look(data: Path, client: str, label: str) -> Found:
    """Read the table and find its features. Raises DataError for columns that are not there."""
    table = read_table_at(data)
    _check_columns(table, client, label)
    inferred = infer(table, label, (client,))
    found = Found.of(data, table, client, inferred.features, inferred.notes)
    if found.sizes.max() < _ENOUGH:
        raise DataError(
            "HANSA-DATA-INVALID",
            rule=f"To train and to test, a client needs {_ENOUGH} rows at least.",
            found=f"In {table.origin}, column {client!r} names {found.clients} clients for {found.rows} rows.",
            action=f"Is {client!r} the column that says whose a row is? The columns are: {', '.join(table.columns)}.",
        )
    return found


def _check_columns(table: Table, client: str, label: str) -> None:
    wrong = [
        f"{option} {name!r} is no column; {nearest(name, table.columns)}"
        for option, name in (("--client", client), ("--label", label))
        if name not in table.columns
    ]
    if client == label:
        wrong.append(f"{client!r} is named twice, but whose a row is cannot also be what is predicted")
    if wrong:
        raise DataError(
            "HANSA-DATA-INVALID",
            rule="A plan for a table names its client column and its label column.",
            found=f"In {table.origin}: {'; '.join(wrong)}".rstrip(".") + ".",
            action=f"The columns are: {', '.join(table.columns)}.",
        )
