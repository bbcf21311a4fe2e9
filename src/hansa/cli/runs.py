"""``hansa runs``: the runs of a server, and what an operator does with one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from hansa.cli.console import facts, new_table, print_json, screen, sentence
from hansa.cli.operator_client import in_path, operator, when, whole
from hansa.cli.options import AsJson, CaFile, ServerUrl, TokenFile

app = typer.Typer(no_args_is_help=False)

Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
Why = Annotated[str, typer.Option(help="Why; kept with the event.")]


@app.callback(invoke_without_command=True)
def command(  # noqa: PLR0913 - a command's options
    context: typer.Context,
    *,
    state: Annotated[str | None, typer.Option(help="Only running, paused, cancelled, finished or failed ones.")] = None,
    limit: Annotated[int, typer.Option(help="How many, at most.", min=1, max=1000)] = 20,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List the runs of a server, or pause, resume, cancel, prioritise one."""
    if context.invoked_subcommand is not None:
        return
    with operator(server, token_file, ca) as calls:
        found = calls.get("/runs", state=state, limit=limit)
    console = screen()
    if found["runs"]:
        table = whole(new_table(("run", "state", "name", "population", "round"), texts=4), 0, 1, 4)
        for run in found["runs"]:
            done = f"{run['round']} of {run['rounds']}"
            table.add_row(run["id"], run["state"], run["name"], run["population"], done)
        console.print(table)
    else:
        sentence(console, "no runs; submit a plan with: hansa submit PLAN.toml --population NAME")
    if as_json:
        print_json(found)


@app.command()
def show(
    run: Run, *, server: ServerUrl = None, token_file: TokenFile = None, ca: CaFile = None, as_json: AsJson = False
) -> None:
    """Show one run."""
    with operator(server, token_file, ca) as calls:
        found = calls.get(f"/runs/{in_path(run)}")
    _show(screen(), found, as_json=as_json)


@app.command()
def pause(  # noqa: PLR0913 - a command's options
    run: Run,
    *,
    why: Why = "",
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Open no more rounds until the run is resumed; an open round goes on to its end."""
    with operator(server, token_file, ca) as calls:
        found = calls.call("POST", f"/runs/{in_path(run)}/pause", {"why": why})
    _show(screen(), found, as_json=as_json)


@app.command()
def resume(  # noqa: PLR0913 - a command's options
    run: Run,
    *,
    why: Why = "",
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Let a paused run go on from its last closed round."""
    with operator(server, token_file, ca) as calls:
        found = calls.call("POST", f"/runs/{in_path(run)}/resume", {"why": why})
    _show(screen(), found, as_json=as_json)


@app.command()
def cancel(  # noqa: PLR0913 - a command's options
    run: Run,
    *,
    why: Why = "",
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """End a run now. Its models stay."""
    with operator(server, token_file, ca) as calls:
        found = calls.call("POST", f"/runs/{in_path(run)}/cancel", {"why": why})
    _show(screen(), found, as_json=as_json)


@app.command()
def prioritise(  # noqa: PLR0913 - a command's options
    run: Run,
    priority: Annotated[int, typer.Argument(help="-100 to 100; the higher run goes first.", min=-100, max=100)],
    *,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Let a run go before or after others of its population."""
    with operator(server, token_file, ca) as calls:
        found = calls.call("PUT", f"/runs/{in_path(run)}/priority", {"priority": priority})
    _show(screen(), found, as_json=as_json)


def _show(console: Console, run: dict[str, Any], *, as_json: bool) -> None:
    rows = [
        ("run", run["id"]),
        ("name", run["name"]),
        ("population", run["population"]),
        ("state", f"{run['state']}{': ' + run['why'] if run['why'] else ''}"),
        ("round", f"{run['round']} of {run['rounds']}"),
        ("priority", str(run["priority"])),
        ("model", run["model"]),
        ("started", when(run["started_at"])),
        ("ended", when(run["ended_at"])),
    ]
    facts(console, [(name, value) for name, value in rows if value])
    if as_json:
        print_json(run)
