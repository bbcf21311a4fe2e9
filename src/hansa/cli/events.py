"""``hansa events``: what happened on a server."""

from __future__ import annotations

from typing import Annotated

import typer

from hansa.cli.console import new_table, print_json, screen, sentence
from hansa.cli.operator_client import in_path, operator, when, whole
from hansa.cli.options import AsJson, CaFile, ServerUrl, TokenFile


def command(  # noqa: PLR0913 - a command's options
    *,
    after: Annotated[
        int | None, typer.Option(help="What comes after this number; 0: from the first on. Without: the newest.", min=0)
    ] = None,
    limit: Annotated[int, typer.Option(help="How many, at most.", min=1, max=1000)] = 100,
    run: Annotated[str | None, typer.Option(metavar="RUN", help="The newest events of this run only.")] = None,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List what happened on a server, in its order: the newest events, or those after a number."""
    with operator(server, token_file, ca) as calls:
        if run is not None:
            found = calls.get(f"/runs/{in_path(run)}/events", limit=limit)
        else:
            newest = "true" if after is None else None
            found = calls.get("/events", after=after, limit=limit, newest=newest)
    console = screen()
    table = whole(new_table(("number", "at", "event", "about"), texts=4), 0, 1, 2)
    for event in found["events"]:
        about = {"run": event["run"] if run is None else None, "client": event["client"], **event["detail"]}
        text = ", ".join(f"{key} {value}" for key, value in about.items() if value not in ("", None))
        table.add_row(str(event["number"]), when(event["at"]), event["kind"], text)
    console.print(table)
    if len(found["events"]) == limit and run is None and after is None:
        sentence(console, "these are the newest; from the first on: hansa events --after 0")
    elif len(found["events"]) == limit and run is None:
        sentence(console, f"there may be more: hansa events --after {found['next']}")
    if as_json:
        print_json(found)
