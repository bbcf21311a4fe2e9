"""``hansa ledger``: the privacy budgets of a federation, what was spent of them, and whether the books stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hansa.cli.console import command_line, facts, new_table, print_json, screen, sentence, write_new
from hansa.cli.operator_client import Operator, in_path, operator, when, whole
from hansa.cli.options import AsJson, CaFile, ServerUrl, TokenFile
from hansa.core.errors import DataError

if TYPE_CHECKING:
    from hansa.governance.exports import RunSpent, Spent

app = typer.Typer(no_args_is_help=True)

AdjacencyName = Literal["add-or-remove-one", "zero-out", "replace-one"]
Scope = Annotated[str | None, typer.Argument(metavar="[SCOPE]", help="A scope of the ledger. Without: all of them.")]
Known = Annotated[
    str | None,
    typer.Option(metavar="HASH", help="The hash of a row that must be there: the head of an earlier export."),
]

_PAGE = 1000
_NUMBER = len("999.9999")
"""No number is broken, however narrow the terminal: their heads are, and keys and times."""


@app.command()
def show(  # noqa: PLR0913 - a command's options
    scope: Scope = None,
    *,
    limit: Annotated[int, typer.Option(help="How many of the newest reservations, at most.", min=1)] = 20,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw what is charged into a new file, with SCOPE.")
    ] = None,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List the budgets with what is spent and left; of one scope also what each run and round cost."""
    if picture is not None and (scope is None or picture.suffix != ".svg"):
        raise typer.BadParameter("name a SCOPE and a file that ends in .svg.", param_hint="--picture")
    with operator(server, token_file, ca) as calls:
        if scope is None:
            found = calls.get("/ledger")
            _show_scopes(found["scopes"])
        else:
            body = calls.get(f"/ledger/{in_path(scope)}")
            found = _show_scope(body, _rows(calls, body), limit, picture)
    if as_json:
        print_json(found)


@app.command()
def limit(  # noqa: PLR0913 - a command's options
    scope: Annotated[str, typer.Argument(metavar="SCOPE", help="Its name; a new one is made.")],
    *,
    epsilon: Annotated[float, typer.Option(metavar="E", help="What all releases together may cost: charged epsilon.")],
    delta: Annotated[
        float | None, typer.Option(metavar="D", help="For a new scope: the delta of (epsilon, delta).")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="For a new scope: who or what is protected, such as client.")] = None,
    adjacency: Annotated[
        AdjacencyName | None, typer.Option(help="For a new scope: which data sets are neighbours.")
    ] = None,
    population: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A population that spends from it, for ever. May be repeated. For a new scope: SCOPE."
        ),
    ] = None,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Set what a scope may spend; owners only. Populations that may share a person share a scope.

    A scope has one privacy unit, one adjacency and one delta for ever.
    """
    if not epsilon > 0:
        raise typer.BadParameter("must be greater than 0.", param_hint="--epsilon")
    wanted = {"epsilon": epsilon, "delta": delta, "unit": unit, "adjacency": adjacency}
    content: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    with operator(server, token_file, ca) as calls:
        known = {each["name"] for each in calls.get("/ledger")["scopes"]}
        content["populations"] = population or ([] if scope in known else [scope])
        found = calls.call("PUT", f"/ledger/{in_path(scope)}", content)
    _show_scopes([found])
    if as_json:
        print_json(found)


@app.command()
def export(  # noqa: PLR0913 - a command's options
    scope: Scope = None,
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to; it must not exist.")] = Path("ledger.jsonl"),
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Write all rows with their hashes as JSON lines, which anybody can verify."""
    from hansa.governance.exports import lines_of  # noqa: PLC0415 - help comes at once

    lines: list[str] = []
    with operator(server, token_file, ca) as calls:
        scopes = _scopes(calls, scope)
        for body in scopes:
            lines += lines_of(body, _rows(calls, body))
    write_new(out, "".join(f"{line}\n" for line in lines), "--out")
    console = screen()
    command_line(console, "export", str(out))
    for body in scopes:
        command_line(console, "head", f"{body['head']}  {body['name']}, {body['rows']} rows")
    if as_json:
        heads = {body["name"]: body["head"] for body in scopes}
        print_json({"file": str(out), "heads": heads, "rows": sum(body["rows"] for body in scopes)})


@app.command()
def verify(  # noqa: PLR0913 - a command's options
    scope: Scope = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="An export to verify, without any server.")
    ] = None,
    known: Known = None,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Walk the chain here: every hash and link, and what the events cost. Names the first row that does not stand."""
    from hansa.governance.exports import lines_of, verify_lines  # noqa: PLC0415 - help comes at once

    if file is not None:
        if scope is not None:
            raise typer.BadParameter("an export is verified as a whole: leave SCOPE out.", param_hint="--file")
        found = verify_lines(_lines(file), known=known)
    else:
        with operator(server, token_file, ca) as calls:
            lines = [line for body in _scopes(calls, scope) for line in lines_of(body, _rows(calls, body))]
        found = verify_lines(lines, known=known) if lines else []
    console = screen()
    for each in found:
        sentence(
            console,
            f"{each.scope}: {each.rows} rows stand, epsilon {each.charged:.4f} is charged, the head is {each.head}",
        )
        if each.repriced:
            sentence(console, f"{each.repriced} rows are priced by another version: their epsilon was not compared")
    if not found:
        sentence(console, "no scope yet")
    if as_json:
        told = [{"scope": each.scope, "rows": each.rows, "head": each.head, "epsilon_charged": each.charged}
                for each in found]  # fmt: skip
        print_json({"verified": told})


def _scopes(calls: Operator, scope: str | None) -> list[dict[str, Any]]:
    if scope is not None:
        return [calls.get(f"/ledger/{in_path(scope)}")]
    found: list[dict[str, Any]] = calls.get("/ledger")["scopes"]
    return found


def _rows(calls: Operator, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows that a scope had when it was told of; those that came since are left out."""
    found: list[dict[str, Any]] = []
    while len(found) < body["rows"]:
        page = calls.get(f"/ledger/{in_path(body['name'])}/rows", after=found[-1]["row"]["number"] if found else 0,
                         limit=_PAGE)["rows"]  # fmt: skip
        if not page:
            break
        found += page
    return found[: body["rows"]]


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "HANSA-DATA-MISSING",
            rule="An export of the ledger is a file of JSON lines.",
            found=f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}.",
            action="Check the path; write one with: hansa ledger export.",
        ) from None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _state(spent: Spent) -> str:
    return f"{spent.state}, {spent.noise_rows} rows" if spent.noise_rows else spent.state


def _show_scopes(scopes: list[dict[str, Any]]) -> None:
    console = screen()
    if not scopes:
        sentence(console, "no budget yet; an owner sets one with: hansa ledger limit SCOPE --epsilon E ...")
        return
    names = ("scope", "limit", "charged", "reserved only", "left", "reference", "rows")
    table = whole(new_table(names), *range(7))
    for each in scopes:
        only = each["epsilon_charged"] - each["epsilon_committed"]
        numbers = (each["epsilon_limit"], each["epsilon_charged"], only, each["remaining"], each["epsilon_reference"])
        table.add_row(each["name"], *map(_number, numbers), str(each["rows"]))
    console.print(table)
    for each in scopes:
        sentence(
            console,
            f"{each['name']}: epsilon at delta {each['delta']:g} for one {each['unit']} ({each['adjacency']}), spent "
            f"by {', '.join(each['populations'])}" + ("; restored: set its limit anew" if each["restored"] else ""),
        )
    sentence(console, "charged epsilon is the guarantee and counts; reference epsilon is for comparison, no guarantee")


def _show_scope(body: dict[str, Any], rows: list[dict[str, Any]], limit: int, picture: Path | None) -> dict[str, Any]:
    """Show a scope with its runs and newest reservations; return all of it for programs."""
    from hansa.governance.exports import statement_of  # noqa: PLC0415 - help comes at once

    statement = statement_of(rows)
    _show_scopes([body])
    console = screen()
    runs = whole(new_table(("run", "job", "releases", "committed", "given back", "epsilon by itself"), texts=2), 0, 1)
    runs.columns[-1].min_width = _NUMBER
    for run in statement.runs:
        states = run.states
        counts = (sum(states.values()) - states.get("void", 0), states.get("committed", 0), states.get("void", 0))
        runs.add_row(run.run, run.job, *map(str, counts), _number(run.course[-1][1]))
    console.print(runs)
    table = whole(new_table(("for", "state", "at", "cohort", "by itself", "charged after"), texts=3), 1, 3)
    for column in table.columns[-2:]:
        column.min_width = _NUMBER
    for each in statement.spent[-limit:]:
        cohort = "" if each.cohort is None else str(each.cohort)
        table.add_row(str(each.key), _state(each), when(each.at), cohort, _number(each.alone), _number(each.charged))
    console.print(table)
    facts(console, [("head", body["head"])])
    if picture is not None:
        from hansa.cli.ledger_picture import drawn  # noqa: PLC0415 - with a picture

        write_new(picture, drawn(body, statement), "--picture")
        command_line(console, "picture", str(picture))
    return {
        **body,
        "runs": [_told_run(each) for each in statement.runs],
        "spent": [_told(each) for each in statement.spent[-limit:]],
    }


def _told_run(run: RunSpent) -> dict[str, Any]:
    return {"run": run.run, "job": run.job, "states": dict(run.states), "epsilon_alone": run.course[-1][1]}


def _told(spent: Spent) -> dict[str, Any]:
    key = spent.key
    return {
        "run": key.run,
        "kind": key.kind,
        "round": key.round,
        "attempt": key.attempt,
        "job": spent.job,
        "state": spent.state,
        "mechanism": spent.mechanism,
        "cohort": spent.cohort,
        "noise_rows": spent.noise_rows,
        "at": spent.at,
        "epsilon_alone": spent.alone,
        "epsilon_charged": spent.charged,
    }
