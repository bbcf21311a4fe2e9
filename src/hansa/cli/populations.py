"""``hansa populations``: named sets of clients."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from hansa.cli.console import new_table, print_json, screen, sentence
from hansa.cli.operator_client import in_path, operator
from hansa.cli.options import AsJson, CaFile, ServerUrl, TokenFile

app = typer.Typer()

_KINDS: Final = ("string", "number", "boolean")
Attributes = Annotated[
    list[str] | None,
    typer.Option(
        "--attribute", metavar="NAME=KIND", help=f"What clients may declare: {', '.join(_KINDS)}. May be repeated."
    ),
]
MinimumVersion = Annotated[str | None, typer.Option(metavar="VERSION", help="Older clients are not picked: 1.2.0.")]


@app.callback(invoke_without_command=True)
def command(
    context: typer.Context,
    *,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List populations of a server; create or change one."""
    if context.invoked_subcommand is not None:
        return
    with operator(server, token_file, ca) as calls:
        found = calls.get("/populations")
    _show(found["populations"])
    if as_json:
        print_json(found)


@app.command()
def create(  # noqa: PLR0913 - a command's options
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called.")],
    *,
    attributes: Attributes = None,
    admission: Annotated[
        str, typer.Option(help="enrolled: drawn from all active clients; checked-in: from those that called lately.")
    ] = "enrolled",
    minimum_version: MinimumVersion = None,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a population."""
    wanted: dict[str, Any] = {"name": name, "admission": admission, "attributes": _schema(attributes or [])}
    if minimum_version is not None:
        wanted["minimum_version"] = minimum_version
    with operator(server, token_file, ca) as calls:
        found = calls.call("POST", "/populations", wanted)
    _show([found])
    if as_json:
        print_json(found)


@app.command()
def change(  # noqa: PLR0913 - a command's options
    name: Annotated[str, typer.Argument(metavar="NAME", help="The population.")],
    *,
    attributes: Attributes = None,
    minimum_version: MinimumVersion = None,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Change what clients may declare, all of it, or the minimum version."""
    wanted: dict[str, Any] = {}
    if attributes is not None:
        wanted["attributes"] = _schema(attributes)
    if minimum_version is not None:
        wanted["minimum_version"] = minimum_version or None
    if not wanted:
        raise typer.BadParameter("say what to change: --attribute or --minimum-version.")
    with operator(server, token_file, ca) as calls:
        found = calls.call("PATCH", f"/populations/{in_path(name)}", wanted)
    _show([found])
    if as_json:
        print_json(found)


def _schema(given: list[str]) -> dict[str, str]:
    schema = {}
    for text in given:
        name, separator, kind = text.partition("=")
        if not separator or not name or kind not in _KINDS:
            raise typer.BadParameter(f"{text!r} is not NAME=KIND with {', '.join(_KINDS)}.", param_hint="--attribute")
        schema[name] = kind
    return schema


def _show(populations: list[dict[str, Any]]) -> None:
    if not populations:
        sentence(screen(), "no population; make one with: hansa populations create NAME")
        return
    table = new_table(("population", "admission", "attributes", "minimum version", "clients"), texts=4)
    for each in populations:
        schema = ", ".join(f"{name}={kind}" for name, kind in each["attributes"].items())
        table.add_row(each["name"], each["admission"], schema, each["minimum_version"] or "", str(each["clients"]))
    screen().print(table)
