"""``hansa rounds``: the rounds of a run, with who took part and what was measured."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hansa.cli.console import new_table, print_json, screen, sentence
from hansa.cli.operator_client import in_path, operator, when
from hansa.cli.options import AsJson, CaFile, ServerUrl, TokenFile


def command(  # noqa: PLR0913 - a command's options
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")],
    *,
    limit: Annotated[int, typer.Option(help="How many of the newest, at most.", min=1, max=1000)] = 20,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List the rounds of a run, with who took part and what was measured."""
    with operator(server, token_file, ca) as calls:
        found = calls.get(f"/runs/{in_path(run)}/rounds", limit=limit)
    console = screen()
    if found["rounds"]:
        columns = ("round", "state", "opened", "measured", "of", "in", "others")
        table = new_table(columns, texts=4)
        for each in found["rounds"]:
            funnel = each["funnel"]
            counts = (funnel["picked"], funnel["included"])
            table.add_row(
                named(each),
                each["state"],
                when(each["opened_at"])[11:],
                measured(each["report"]),
                *map(str, counts),
                others(funnel),
            )
        console.print(table)
    else:
        sentence(console, "no round was opened yet: clients must enrol and be eligible first")
    if as_json:
        print_json(found)


def named(round_: dict[str, Any]) -> str:
    """Return a round's name: its kind and number, and its attempt after the first."""
    attempt = "" if round_["attempt"] <= 1 else f" (attempt {round_['attempt']})"
    return f"{round_['kind']} {round_['round']}{attempt}"


def measured(report: dict[str, Any] | None) -> str:
    """Return what a closed round told, in a few words."""
    if report is None:
        return ""
    if "why" in report:
        return str(report["why"])
    federated = report.get("federated") or {}
    numbers = {name: row.get("overall") for name, row in federated.items()} or {"loss": report.get("train_loss")}
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if value is not None)


def others(funnel: dict[str, Any]) -> str:
    """Return how many clients of a round are not included, by what became of them."""
    fates = funnel["fates"]
    return ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items()) if fate != "included" and count)
