"""A folder with a file per client: tables (.csv, .parquet) or arrays (.npz). A client is called as its file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from hansa.core.layout import Array
from hansa.core.nouns import Signature
from hansa.core.sections import Data, Features
from hansa.data.archives import open_archive
from hansa.data.decimal_commas import concatenated, localised, notes_of
from hansa.data.encoding import check_columns, encode
from hansa.data.example_arrays import (
    ExampleArrays,
    central_arrays,
    checked_inputs,
    example_arrays,
    refuse_unlike,
    table_of_arrays,
)
from hansa.data.folder_store import FolderStore
from hansa.data.inference import complete, is_open
from hansa.data.labels import array_labels
from hansa.data.partitions import Natural
from hansa.data.pool import Pool
from hansa.data.refusals import invalid, plan_problem, reading, resolved, unreadable
from hansa.data.rows import ClientRows, Names, Roster, offsets_of
from hansa.data.sources import source
from hansa.data.stores import Form
from hansa.data.table import TEXT, Table, joined
from hansa.data.table_files import read_table
from hansa.data.tables import central_examples, labels_of, natural_order, signature_of

SUFFIXES: Final = (".csv", ".parquet", ".npz")


@source(
    "folder",
    "your own folder with a file per client: .csv, .parquet, or .npz with X and y",
    clients="the files; a client is called as its file",
    takes=("central_path", "features"),
    needs=("path",),
)
def folder(data: Data, features: Features | None) -> Pool:
    """Read every file once to check it, and keep labels and sizes only; examples are read when needed.

    A partition other than natural deals from the pool, so all examples are then kept in memory. Raises DataError
    for a folder without files or with several kinds of them, and for a file that is bad or unlike the others.
    """
    paths = client_files(resolved(data.path or ""))
    if features is None and paths[0].suffix.lower() != ".npz":
        raise plan_problem(
            "features.label", f"is required for {paths[0].suffix} files: name the column that is predicted."
        )
    pool = _tables(paths, features, data) if features is not None else _arrays(paths, data)
    store = pool.store
    if isinstance(store, FolderStore) and not isinstance(data.partition, Natural | None):
        pool = replace(pool, store=store.in_memory())
    return pool


def client_files(path: Path) -> tuple[Path, ...]:
    """Return the clients' files in the order of their names. Raises DataError where there are none, or a mixture."""
    with reading(path):
        if not path.is_dir():
            raise unreadable(
                path, "it is not a folder", action='Name a folder, or use source "csv", "parquet" or "npz".'
            )
        found = [each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and not each.name.startswith(".")]
    suffixes = sorted({each.suffix.lower() for each in found})
    if len(suffixes) != 1:
        held = f"{path} has {', '.join(suffixes) if suffixes else 'none'}."
        rule = f"A folder of clients has files of one kind ({', '.join(SUFFIXES)})."
        raise invalid(rule=rule, found=held, action="Name another folder, or convert the files.")
    by_name = _by_name(found)
    stems = np.array(sorted(by_name), dtype=TEXT)
    return tuple(by_name[stem] for stem in stems[natural_order(stems)].tolist())


def _by_name(found: Sequence[Path]) -> dict[str, Path]:
    """Return the files by their clients' names. Raises DataError for a name that is no text, or not unique."""
    by_name: dict[str, Path] = {}
    for path in sorted(found):
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            raise invalid(
                rule="A client is called as its file, in UTF-8.",
                found=f"The name {str(os.fsencode(path.name))[2:-1]!s} is not.",
                action="Rename the file.",
            ) from error
        other = by_name.setdefault(path.stem, path)
        if other is not path:
            raise invalid(
                rule="Every client has one file.",
                found=f"Client {path.stem!r} has {other.name}, {path.name}.",
                action="Rename or join them.",
            )
    return by_name


def _tables(paths: Sequence[Path], features: Features, data: Data) -> Pool:
    """Check every client's table, complete the features, and keep labels only."""
    read = partial(_table, label=features.label)
    keep_all = is_open(features)
    kept: list[Table] = []
    for path in paths:
        table = read(path)
        check_columns(table, features)
        _refuse_empty(len(table), path)
        label = {features.label: table.column(features.label)}
        kept.append(table if keep_all else replace(table, columns=label))
    origin = paths[0].parent.name
    whole, pointed = concatenated(kept, features, origin)
    found = complete(features, whole)
    features = found.features
    labels = [labels_of(localised(table, features)[0], features) for table in kept]
    read_x = partial(_encoded, features=features)
    for path in paths:
        read_x(path)
    central = None if data.central_path is None else central_examples(read(resolved(data.central_path)), features)
    pool = _pool(paths, labels, read_x, signature=signature_of(features), form="number")
    notes = found.notes + notes_of(pointed, origin)
    return replace(pool, central=central, features=features, class_names=features.classes, notes=notes)


def _arrays(paths: Sequence[Path], data: Data) -> Pool:
    """Check every client's arrays against the first's, and keep labels only."""
    first, sizes, ys = _read_arrays(paths[0]), [], []
    for path in paths:
        arrays = _read_arrays(path)
        refuse_unlike(arrays, first)
        _refuse_empty(len(arrays.y), path)
        checked_inputs(arrays)
        sizes.append(len(arrays.y))
        ys.append(arrays.y)
    central = None if data.central_path is None else _read_arrays(resolved(data.central_path))
    if central is not None:
        refuse_unlike(central, first)
    labels = array_labels(joined(ys), paths[0].parent.name, vocabulary=first.vocabulary)
    values = np.split(labels.values, np.cumsum(sizes)[:-1])
    own = None if central is None else central_arrays(central, labels)
    signature = Signature(first.x.shape[1:], labels.classes, bool(first.vocabulary), first.vocabulary)
    pool = _pool(paths, values, _read_x, signature=signature, form=first.form)
    return replace(pool, central=own, class_names=labels.names, notes=labels.notes)


def _pool(
    paths: Sequence[Path],
    labels: Sequence[Array],
    read: Callable[[Path], Array],
    *,
    signature: Signature,
    form: Form,
) -> Pool:
    """Return the pool of clients whose labels are known and whose examples are read when needed."""
    sizes = np.array([len(each) for each in labels], dtype=np.int64)
    store = FolderStore(
        paths=tuple(paths),
        starts=offsets_of(sizes),
        labels=np.concatenate(labels),
        shape=signature.shape,
        form=form,
        read=read,
        digests=np.stack([_digest(path) for path in paths]),
    )
    roster = Roster(Names.listing([path.stem for path in paths]), ClientRows.contiguous(sizes))
    return Pool(store=store, signature=signature, class_names=(), roster=roster)


def _table(path: Path, label: str) -> Table:
    return table_of_arrays(_read_arrays(path), label) if path.suffix.lower() == ".npz" else read_table(path)


def _encoded(path: Path, features: Features) -> Array:
    table = _table(path, features.label)
    check_columns(table, features)
    return encode(localised(table, features)[0], features)


def _read_arrays(path: Path) -> ExampleArrays:
    return example_arrays(open_archive(path, "never"))


def _read_x(path: Path) -> Array:
    return checked_inputs(_read_arrays(path))


def _refuse_empty(examples: int, path: Path) -> None:
    if not examples:
        raise invalid(
            rule="Every client has examples.",
            found=f"Client {path.stem!r} has none ({path.name}).",
            action="Remove the file.",
        )


def _digest(path: Path) -> Array:
    with reading(path), path.open("rb") as file:
        return np.frombuffer(hashlib.file_digest(file, "sha256").digest(), dtype=np.uint8)
