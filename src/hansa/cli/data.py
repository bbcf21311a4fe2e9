"""``hansa data``: the sources of examples, and how one source's examples lie with its clients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa.algorithms.plan import Plan
from hansa.cli.console import command_line, print_json, screen, sentence, write_new
from hansa.cli.data_picture import page, show
from hansa.cli.options import AsJson, Overrides
from hansa.core.datasets import FederatedData
from hansa.core.errors import PlanError, Problem
from hansa.core.registry import PIECES, nearest
from hansa.core.schema import build, fields_of
from hansa.core.sections import Data, Features
from hansa.data import Description, Source, describe, listing, load
from hansa.data.sources import find
from hansa.wire.plans import read_tables, with_overrides

_SUFFIXES: Final = {".npz": "npz", ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet"}


def command(  # noqa: PLR0913 - a command's options
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE|PLAN.toml|FILE", help="A source, a plan, or a file of your own.", show_default=False
        ),
    ] = None,
    *,
    path: Annotated[str | None, typer.Option(help="The file or folder, for sources that need one.")] = None,
    client: Annotated[str | None, typer.Option(help="Tables: the column that names the client of each row.")] = None,
    label: Annotated[str | None, typer.Option(help="Tables: the column that is predicted.")] = None,
    clients: Annotated[
        int | None, typer.Option(help="Deal the examples to so many clients (iid, unless --set says).")
    ] = None,
    settings: Overrides = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write the clients, sizes and labels as one page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the sources of examples; or show the clients, sizes and label skew of one source or plan."""
    console = screen()
    if what is None:
        _list(console)
        if as_json:
            print_json({"sources": [_source(source) for source in listing()]})
        return
    if picture is not None and picture.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter("the picture is a page; name a file that ends in .html.", param_hint="--picture")
    tables = _tables(what)
    given = {"path": path, "client": client}
    tables["data"] = {**tables.get("data", {}), **{key: value for key, value in given.items() if value is not None}}
    if label is not None:
        tables["features"] = {**tables.get("features", {}), "label": label}
    if clients is not None:
        tables["data"] = {**tables["data"], **_so_many(tables["data"], clients)}
    sections = _sections(with_overrides(tables, settings or []))
    data = load(**sections)
    found = describe(data)
    title = sections["data"].path or sections["data"].source
    show(console, title, data, found)
    if picture is not None:
        write_new(picture, page(title, data, found), "--picture")
        console.print()
        command_line(console, "picture", str(picture))
    if as_json:
        print_json(_answer(sections["data"].source, data, found))


def _list(console: Console) -> None:
    """Print every source with what a user should know of it."""
    table = Table.grid(padding=(0, 2, 1, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for source in listing():
        text = Text(source.summary)
        about = [f"clients: {source.clients or 'dealt from one pool by data.partition'}", f"licence: {source.licence}"]
        about += (
            ["needs " + " and ".join(_NEEDS[need] for need in sorted(source.needs, reverse=True))]
            if source.needs
            else []
        )
        text.append("\n" + "; ".join(about), style="dim")
        table.add_row(source.name, text)
    console.print(table)
    sentence(console, "Show one: hansa data heart. Your own: hansa data FILE.csv --client COLUMN --label COLUMN.")


_NEEDS: Final = {"path": "a path", "features": "a label column", "client": "a client column"}


def _source(source: Any) -> dict[str, Any]:
    return {
        "name": source.name,
        "summary": source.summary,
        "clients": source.clients or None,
        "licence": source.licence,
        "origin": source.origin,
        "needs": sorted(source.needs),
        "takes": sorted(source.takes),
    }


def _tables(what: str) -> dict[str, Any]:
    """Return the tables of a plan, or those that name a source or a file."""
    path = Path(what)
    if what not in PIECES["source"] and ":" not in what:
        if path.suffix == ".toml":
            return read_tables(path)
        if path.is_dir():
            return {"data": {"source": "folder", "path": what}}
        if path.suffix.lower() in _SUFFIXES:
            return {"data": {"source": _SUFFIXES[path.suffix.lower()], "path": what}}
    return {"data": {"source": what}}


def _so_many(data: Mapping[str, Any], clients: int) -> dict[str, Any]:
    """Return the table that gives the examples so many clients: the source's own arguments, or a partition."""
    found = find(str(data.get("source", "")))
    if isinstance(found, Source) and "clients" in fields_of(found.arguments or Data):
        return {"arguments": {**data.get("arguments", {}), "clients": clients}}
    return {"partition": {**_partition(data), "clients": clients}}


def _partition(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the partition that tables hold, or one that deals evenly."""
    partition = data.get("partition", "iid")
    return dict(partition) if isinstance(partition, Mapping) else {"kind": str(partition)}


def _sections(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return data, features and seed of tables. Raises PlanError with their problems; other sections are not read."""
    known = {*fields_of(Plan), "recipe"}
    problems = [Problem(key, f"unknown key; {nearest(key, known)}") for key in tables if key not in known]
    data, found = build(Data, tables.get("data", {}), "data")
    problems += found
    features = None
    if "features" in tables:
        features, found = build(Features, tables["features"], "features")
        problems += found
    seed = tables.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        problems.append(Problem("seed", "must be a whole number from 0."))
    if problems:
        raise PlanError(problems)
    return {"data": data, "features": features, "seed": seed}


def _answer(source: str, data: FederatedData, found: Description) -> dict[str, Any]:
    """Return what was found, for programs."""
    return {
        "source": source,
        "clients": found.population,
        "described": len(found.names),
        "examples": found.total,
        "central_examples": found.central,
        "names": list(found.names),
        "sizes": {part: sizes.tolist() for part, sizes in found.sizes.items()},
        "size_quantiles": {str(quantile): value for quantile, value in found.size_quantiles.items()},
        "label_names": list(found.label_names),
        "label_counts": found.label_counts.tolist(),
        "label_skew": found.skew,
        "label_skew_by_chance": found.skew_by_chance,
        "data_sha256": data.sha256,
        "notes": list(data.notes),
    }
