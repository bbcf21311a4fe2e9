"""The user's own tables, csv and parquet: features, a label, and a column that names each row's client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hansa.core.datasets import Examples
from hansa.core.layout import Array, Int64s
from hansa.core.nouns import Signature
from hansa.core.sections import Data, Features
from hansa.data.decimal_commas import localised, notes_of
from hansa.data.encoding import check_columns, encode, encode_labels
from hansa.data.imputation import Imputation
from hansa.data.inference import complete
from hansa.data.partitions import Natural
from hansa.data.pool import Pool
from hansa.data.refusals import invalid, plan_problem, resolved
from hansa.data.rows import ClientRows, Names, Roster
from hansa.data.sources import source
from hansa.data.stores import ArrayStore
from hansa.data.table import Table, missing_in, nearest_column, parsed, texts
from hansa.data.table_files import read_csv, read_parquet

_OWN_CLIENTS = "the values of the column named by data.client"


@source(
    "csv",
    "your own table as text, separated by comma, semicolon or tab",
    clients=_OWN_CLIENTS,
    takes=("client", "central_path"),
    needs=("path", "features"),
)
def csv(data: Data, features: Features | None) -> Pool:
    """Read a table of texts; see :func:`pool_of_table`."""
    return _from_files(data, features, read_csv)


@source(
    "parquet",
    "your own table as Parquet (needs hansa[parquet])",
    clients=_OWN_CLIENTS,
    takes=("client", "central_path"),
    needs=("path", "features"),
)
def parquet(data: Data, features: Features | None) -> Pool:
    """Read a typed table; see :func:`pool_of_table`."""
    return _from_files(data, features, read_parquet)


def pool_of_table(
    table: Table,
    features: Features,
    *,
    client: str | None = None,
    central: Table | None = None,
    notes: tuple[str, ...] = (),
) -> Pool:
    """Return the encoded examples of a table, whose column ``client`` names the client of each row.

    ``features`` may be incomplete: what it leaves open is found in the table and noted. ``central`` is encoded
    by the same features and imputed from its own rows.
    """
    check_columns(table, features)
    exclude = () if client is None else (client,)
    owners = None if client is None else table.column(client)
    table, pointed = localised(table, features, exclude)
    found = complete(features, table, exclude)
    features = found.features
    store = ArrayStore(encode(table, features), labels_of(table, features))
    return Pool(
        store=store,
        signature=signature_of(features),
        class_names=features.classes,
        roster=None if owners is None else roster_of(owners, table.origin, f"column {client!r}"),
        central=None if central is None else central_examples(central, features),
        features=features,
        notes=notes + found.notes + notes_of(pointed, table.origin),
    )


def signature_of(features: Features) -> Signature:
    """Return what a model must know of a table's examples: a slot each, and the classes."""
    return Signature(shape=(len(features.slots()),), classes=len(features.classes))


def labels_of(table: Table, features: Features) -> Array:
    """Return the labels of a table by complete features: int64 class numbers, or float32."""
    return encode_labels(table.column(features.label), features, table.origin)


def central_examples(table: Table, features: Features) -> Examples:
    """Return the server's own examples, encoded by complete features; the server is a client of one here."""
    check_columns(table, features)
    table = localised(table, features)[0]
    x = encode(table, features)
    rows = ClientRows.contiguous(np.array([len(x)]))
    return Examples(Imputation.of(features).apply(x, rows, rows), labels_of(table, features))


def roster_of(owners: Array, origin: str, what: str) -> Roster:
    """Return the clients named by ``owners`` [N], in order (by number where all names are numbers).

    Raises DataError for a row without a client.
    """
    unnamed = missing_in(owners)
    if unnamed.any():
        raise invalid(
            rule="Every row names its client.",
            found=f"{int(unnamed.sum())} of {len(owners)} rows of {origin} do not ({what}, first at row "
            f"{int(np.argmax(unnamed)) + 1}).",
            action="Fill them in, or remove these rows.",
        )
    if owners.dtype.kind in "iu":
        names, numbers = _unique_whole(owners)
        return Roster(Names.listing(names), ClientRows.from_numbers(numbers, len(names)))
    names, numbers = np.unique(texts(owners), return_inverse=True)
    order = natural_order(names)
    ranks = np.empty(len(names), dtype=np.int64)
    ranks[order] = np.arange(len(names))
    return Roster(Names.listing(names[order]), ClientRows.from_numbers(ranks[numbers], len(names)))


def _unique_whole(values: Array) -> tuple[Array, Int64s]:
    """Return the different whole numbers, and which of them each value is; counted instead of sorted where dense."""
    low, high = int(values.min()), int(values.max())
    if high - low > 4 * len(values):
        return np.unique(values, return_inverse=True)
    used = np.bincount(values - low) > 0
    return np.flatnonzero(used) + low, (np.cumsum(used) - 1)[values - low]


def natural_order(names: Array) -> Int64s:
    """Return the order of names: by number where all are numbers, else as texts."""
    numbers, bad = parsed(names, np.zeros(len(names), dtype=np.bool_))
    return np.argsort(names if bad.any() or np.isnan(numbers).any() else numbers, kind="stable").astype(np.int64)


def _from_files(data: Data, features: Features | None, read: Callable[[Path], Table]) -> Pool:
    """Read the table, and the server's own beside it."""
    if features is None or data.path is None:
        raise plan_problem("features.label", f"is required by source {data.source!r}.")
    if data.client is None and isinstance(data.partition, Natural | None):
        raise plan_problem(
            "data.client",
            "is required unless examples are dealt: name the column that says whose a row is, or set data.partition.",
        )
    table = read(resolved(data.path))
    if data.client is not None and data.client not in table.columns:
        hint = nearest_column(data.client, table.columns)
        raise plan_problem("data.client", f"{table.origin} has no column {data.client!r}; {hint}")
    if data.client == features.label:
        raise plan_problem("data.client", f"{data.client!r} is also the label; a client is not predicted.")
    central = None if data.central_path is None else read(resolved(data.central_path))
    return pool_of_table(table, features, client=data.client, central=central)
