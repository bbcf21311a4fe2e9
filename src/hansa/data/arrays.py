"""The user's own arrays, and MNIST from a file."""

from __future__ import annotations

from dataclasses import replace

from hansa.core.nouns import Signature
from hansa.core.sections import Data, Features
from hansa.data.archives import Archive, open_archive
from hansa.data.example_arrays import (
    INPUTS,
    LABELS,
    TEST_INPUTS,
    TEST_LABELS,
    ExampleArrays,
    central_arrays,
    checked_inputs,
    example_arrays,
    picked,
    refuse_unlike,
    table_of_arrays,
    unlike_spreads,
)
from hansa.data.images import DIGITS, image_pool
from hansa.data.labels import array_labels, as_column
from hansa.data.partitions import Iid, Natural
from hansa.data.pool import Pool
from hansa.data.refusals import plan_problem, resolved
from hansa.data.sources import source
from hansa.data.stores import ArrayStore
from hansa.data.tables import pool_of_table, roster_of


@source(
    "mnist",
    "70,000 images of written digits, 28 x 28, from an .npz file (x_train, y_train, x_test, y_test)",
    licence="not stated by its authors; not shipped",
    origin="LeCun, Cortes, Burges: the MNIST database of handwritten digits",
    takes=("memory_map",),
    needs=("path",),
    partition=Iid(clients=100),
)
def mnist(data: Data, features: Features | None) -> Pool:  # noqa: ARG001 - a source's form
    """Read the images; the test images are the server's own."""
    archive = open_archive(resolved(data.path or ""), data.memory_map)
    central = None
    if any(name in archive.names for name in TEST_INPUTS):
        central = picked(archive, TEST_INPUTS), picked(archive, TEST_LABELS)
    return image_pool((picked(archive, INPUTS), picked(archive, LABELS)), central, DIGITS, archive.path.name)


@source(
    "npz",
    "your own arrays X [N, ...], y [N] and client [N] in an .npz file; X_test and y_test are the server's own",
    clients="the values of the array `client`",
    takes=("central_path", "memory_map", "features"),
    needs=("path",),
)
def npz(data: Data, features: Features | None) -> Pool:
    """Read arrays. Bytes become numbers in [0, 1]; with [features], X [N, p] is treated as a table."""
    archive = open_archive(resolved(data.path or ""), data.memory_map)
    arrays = example_arrays(archive)
    if arrays.client is None and isinstance(data.partition, Natural | None):
        raise plan_problem(
            "data.partition",
            f"{archive.path.name} has no array `client`, so examples must be dealt: set data.partition.",
        )
    central = _central(data, archive)
    pool = _as_they_are(arrays, central) if features is None else _as_table(arrays, central, features)
    scaled = features is not None and features.scaling != "none"
    return pool if scaled else replace(pool, notes=pool.notes + unlike_spreads(arrays))


def _central(data: Data, archive: Archive) -> ExampleArrays | None:
    """Return the server's own examples: from data.central_path, or X_test and y_test."""
    if data.central_path is not None:
        return example_arrays(open_archive(resolved(data.central_path), data.memory_map))
    if any(name in archive.names for name in TEST_INPUTS):
        return example_arrays(archive, TEST_INPUTS, TEST_LABELS)
    return None


def _as_they_are(arrays: ExampleArrays, central: ExampleArrays | None) -> Pool:
    """Return the examples as they are: floats, bytes in [0, 1], or tokens."""
    if central is not None:
        refuse_unlike(central, arrays)
    labels = array_labels(arrays.y, arrays.origin, vocabulary=arrays.vocabulary)
    owners = None if arrays.client is None else as_column(arrays.client, "client", arrays.origin)
    scaled = (f"X holds bytes; they are divided by 255 ({arrays.origin})",) if arrays.form == "unit" else ()
    return Pool(
        store=ArrayStore(checked_inputs(arrays), labels.values, arrays.form),
        signature=Signature(arrays.x.shape[1:], labels.classes, bool(arrays.vocabulary), arrays.vocabulary),
        class_names=labels.names,
        roster=None if owners is None else roster_of(owners, arrays.origin, "array `client`"),
        central=None if central is None else central_arrays(central, labels),
        notes=labels.notes + scaled,
    )


def _as_table(arrays: ExampleArrays, central: ExampleArrays | None, features: Features) -> Pool:
    """Return X [N, p] as a table with the columns `columns`, or x0, x1 ..., under the plan's [features]."""
    table = table_of_arrays(arrays, features.label)
    own = (
        None
        if central is None
        else table_of_arrays(central, features.label, names=tuple(table.columns)[: arrays.x.shape[1]])
    )
    pool = pool_of_table(table, features, central=own)
    if arrays.client is None:
        return pool
    owners = as_column(arrays.client, "client", arrays.origin)
    return replace(pool, roster=roster_of(owners, arrays.origin, "array `client`"))
