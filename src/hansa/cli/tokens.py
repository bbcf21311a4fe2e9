"""``hansa tokens``: who may do what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hansa.cli.console import command_line, new_table, print_json, screen
from hansa.cli.operator_client import in_path, new_secret, operator, when, whole
from hansa.cli.options import AsJson, CaFile, ServerUrl, TokenFile

app = typer.Typer()


@app.callback(invoke_without_command=True)
def command(
    context: typer.Context,
    *,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List operator tokens; create or revoke one."""
    if context.invoked_subcommand is not None:
        return
    with operator(server, token_file, ca) as calls:
        found = calls.get("/tokens")
    _show(found["tokens"])
    if as_json:
        print_json(found)


@app.command()
def create(  # noqa: PLR0913 - a command's options
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose or what for.")],
    *,
    role: Annotated[str, typer.Option(help="owner, operator, analyst, auditor or site-administrator.")],
    days: Annotated[float | None, typer.Option(help="Days that it holds. Default: as the server is set.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it to a new file there, for its owner only.")
    ] = None,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a token. It is told this once."""
    wanted: dict[str, Any] = {"name": name, "role": role, **({} if days is None else {"days": days})}
    if out is not None and out.exists():
        raise typer.BadParameter("there is a file already.", param_hint="--out")
    with operator(server, token_file, ca) as calls:
        found = calls.call("POST", "/tokens", wanted)
    if out is not None:
        found["file"] = str(new_secret(out, found.pop("token"), "A token"))
    _show([found])
    if as_json:
        print_json(found)
    else:
        command_line(screen(), "token", found.get("file") or found["token"])


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="ID", help="The token's id, not its secret.")],
    *,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Let a token in no more."""
    with operator(server, token_file, ca) as calls:
        found = calls.call("DELETE", f"/tokens/{in_path(token)}")
    _show([found])
    if as_json:
        print_json(found)


def _show(tokens: list[dict[str, Any]]) -> None:
    table = whole(new_table(("id", "role", "name", "until"), texts=4), 0, 1)
    for each in tokens:
        revoked = f"revoked {when(each['revoked_at'])}" if each["revoked_at"] is not None else ""
        table.add_row(each["id"], each["role"], each["name"], revoked or when(each["expires_at"]) or "it is revoked")
    screen().print(table)
