"""``hansa clients``: the clients of a population, and what an operator does with one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from hansa.cli.console import command_line, facts, new_table, print_json, screen, sentence
from hansa.cli.operator_client import Operator, in_path, new_secret, operator, when, whole
from hansa.cli.options import AsJson, CaFile, ServerUrl, TokenFile

app = typer.Typer()

Population = Annotated[str, typer.Argument(metavar="POPULATION", help="The population's name.")]
Client = Annotated[str, typer.Argument(metavar="CLIENT", help="The client's id.")]
Why = Annotated[str, typer.Option(help="Why; kept with the event.")]


@app.callback(invoke_without_command=True)
def command(
    context: typer.Context,
    *,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Count the clients of every population; list, invite, suspend, resume, retire them."""
    if context.invoked_subcommand is not None:
        return
    with operator(server, token_file, ca) as calls:
        names = [each["name"] for each in calls.get("/populations")["populations"]]
        counts = {name: calls.get(f"/populations/{in_path(name)}/counts")["counts"] for name in names}
    table = new_table(("population", "state", "version", "clients"), texts=3)
    for name, rows in counts.items():
        for row in rows:
            table.add_row(name, row["state"], row["version"] or "none yet", str(row["clients"]))
    screen().print(table)
    if as_json:
        print_json({"populations": counts})


@app.command(name="list")
def list_(  # noqa: PLR0913 - a command's options
    population: Population,
    *,
    state: Annotated[
        str | None, typer.Option(help="Only invited, enrolled, active, suspended or retired ones.")
    ] = None,
    after: Annotated[int, typer.Option(help="Only numbers above this one.", min=-1)] = -1,
    limit: Annotated[int, typer.Option(help="How many, at most.", min=1, max=1000)] = 100,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List the clients of a population in the order of their numbers.

    `seen` is a client's last check-in with the server (of several replicas, with the one that answers) since that was
    started; one that waits for work checks in every half minute or as the server told it to.
    """
    with operator(server, token_file, ca) as calls:
        found = calls.get(f"/populations/{in_path(population)}/clients", state=state, after=after, limit=limit)
    console = screen()
    table = whole(new_table(("number", "client", "state", "seen", "name, version, attributes"), texts=5), 0, 1, 2)
    for each in found["clients"]:
        parts = [each["name"], each["version"]]
        if not each["consent"] and each["state"] != "invited":
            parts.append("no consent")
        parts += [f"{name}={value}" for name, value in each["attributes"].items()]
        told = Text(", ".join(part for part in parts if part))
        table.add_row(str(each["number"]), each["id"], each["state"], when(each["last_seen"]) or "-", told)
    console.print(table)
    if found["next"] is not None:
        sentence(console, f"there may be more: hansa clients list {population} --after {found['next']}")
    if as_json:
        print_json(found)


@app.command()
def invite(  # noqa: PLR0913 - a command's options
    population: Population,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME ...]", help="The clients' names: an invitation each.")
    ] = None,
    *,
    again: Annotated[
        str | None, typer.Option(metavar="CLIENT", help="Let this known client enrol again, whose device was lost.")
    ] = None,
    uses: Annotated[int, typer.Option(help="Without names: how many clients the one invitation lets in.", min=1)] = 1,
    days: Annotated[float, typer.Option(help="Days that it holds.", min=0.001)] = 7.0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each to a file NAME.token there, for its owner only.")
    ] = None,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Invite clients by name, or several without. Each invitation is told this once: hand it on with care."""
    with operator(server, token_file, ca) as calls:
        one: dict[str, Any] = {"uses": uses} if again is None else {"client": again}
        wanted: list[dict[str, Any]] = [{"name": name} for name in names or []] or [one]
        path = f"/populations/{in_path(population)}/invitations"
        made = [{**each, **calls.call("POST", path, {**each, "days": days})} for each in wanted]
    console = screen()
    for each in made:
        label = str(each.get("name") or again or f"{each['uses']} uses")
        if out is not None:
            each["file"] = str(_write(out, str(each.get("name") or again or population), each.pop("token")))
        command_line(console, label, each.get("file") or each["token"])
    if as_json:
        print_json({"invitations": made})


@app.command()
def suspend(  # noqa: PLR0913 - a command's options
    client: Client,
    *,
    why: Why = "",
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Pick a client no more, and refuse its calls, until it is resumed."""
    with operator(server, token_file, ca) as calls:
        _set(calls, client, "suspend", why, as_json=as_json)


@app.command()
def resume(  # noqa: PLR0913 - a command's options
    client: Client,
    *,
    why: Why = "",
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Let a suspended client take part again."""
    with operator(server, token_file, ca) as calls:
        _set(calls, client, "resume", why, as_json=as_json)


@app.command()
def retire(  # noqa: PLR0913 - a command's options
    client: Client,
    *,
    why: Why = "",
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Let a client never take part again."""
    with operator(server, token_file, ca) as calls:
        _set(calls, client, "retire", why, as_json=as_json)


def _set(calls: Operator, client: str, what: str, why: str, *, as_json: bool) -> None:
    found = calls.call("POST", f"/clients/{in_path(client)}/{what}", {"why": why})
    facts(screen(), [("client", found["id"]), ("name", found["name"]), ("state", found["state"])])
    if as_json:
        print_json(found)


def _write(folder: Path, name: str, token: str) -> Path:
    """Write an invitation into a new file for its owner only. Raises RunError where there is one."""
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('.') or 'client'}.token"
    return new_secret(path, token, "An invitation")
