"""A site's own examples: read from its files, encoded by the plan's [features], and checked against the job.

A folder with train.csv and test.csv (or .parquet, .npz); or one file, of which a share tests. Which examples test is
a function of their content and of a seed that the site keeps, so that no test example ever becomes a training example
when rows are added or moved, and equal rows are on one side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa.client.learner import SiteExamples
from hansa.core.errors import DataError
from hansa.core.layout import Array
from hansa.core.nouns import Signature
from hansa.core.sections import Features

SUFFIXES: Final = (".csv", ".parquet", ".npz")
Own = Callable[[Features | None, Signature], Mapping[str, Any]]
"""A site's own reader: returns arrays "X", "y" and, if it holds some out, "X_test", "y_test"; not scaled."""


@dataclass(frozen=True)
class SiteData:
    """Where a site's examples come from, and what share of one file tests; ``seed`` is the site's own secret."""

    source: Path | Own
    seed: bytes
    test_fraction: float = 0.0

    def version(self) -> tuple[Any, ...]:
        """Return what changes when the files do."""
        if callable(self.source):
            return (self.source,)
        return tuple((str(path), *_changed(path)) for path in self.files() if path is not None)

    def files(self) -> tuple[Path, Path | None]:
        """Return the file to train from, and the one to test on. Raises DataError where there is none."""
        source = self.source
        if callable(source):
            raise TypeError("a function has no files")
        if not source.is_dir():
            return source, None
        train = [path for suffix in SUFFIXES if (path := source / f"train{suffix}").is_file()]
        if len(train) != 1:
            found = " and ".join(path.name for path in train) or "none"
            raise _unfit(f"{source} has {found}", "Keep one train.csv, train.parquet or train.npz in it.")
        test = source / f"test{train[0].suffix}"
        return train[0], test if test.is_file() else None

    def examples(self, features: Features | None, signature: Signature) -> SiteExamples:
        """Return the examples as the plan has them encoded, with missing numbers imputed from the training part.

        Raises DataError (or PlanError with key paths) for data that do not fit the plan.
        """
        x, y, test, form = self._read(features, signature)
        if x.shape[1:] != signature.shape:
            found = f"An example here has shape {list(x.shape[1:])}, the job's have {list(signature.shape)}"
            raise _unfit(found, "Bring the data to the plan's form; this site cannot take part with others.")
        if test.all():
            raise _unfit("No example is left to train on", "Lower --test-fraction, or add examples.")
        return _assembled(x, y, test, features, form)

    def _read(self, features: Features | None, signature: Signature) -> tuple[Array, Array, NDArray[np.bool_], Any]:
        if callable(self.source):
            return _called(self.source, features, signature)
        train, test = self.files()
        if features is not None:
            return self._tables(train, test, features)
        if train.suffix.lower() != ".npz":
            found = f"The plan has no [features], which a {train.suffix} file needs"
            raise _unfit(found, "Use an .npz file with X and y, or ask for a plan with [features].")
        return self._arrays(train, test, signature)

    def _tables(
        self, train: Path, test: Path | None, features: Features
    ) -> tuple[Array, Array, NDArray[np.bool_], Any]:
        from hansa.data.decimal_commas import localised  # noqa: PLC0415 - a client at rest reads no tables
        from hansa.data.encoding import check_columns, encode  # noqa: PLC0415 - likewise
        from hansa.data.inference import is_open  # noqa: PLC0415 - likewise
        from hansa.data.table import texts  # noqa: PLC0415 - likewise
        from hansa.data.tables import labels_of  # noqa: PLC0415 - likewise

        if is_open(features):
            raise _unfit("The plan's [features] leaves columns or classes open", "Ask for a plan that declares them.")
        first = _tables_in(train, features.label)
        held_out = first[1:] if test is None else _tables_in(test, features.label)[:1]
        parts = [(first[0], False), *((table, True) for table in held_out)]
        xs, ys, tests = [], [], []
        for table, tested in parts:
            check_columns(table, features)
            read = localised(table, features)[0]
            xs.append(encode(read, features))
            ys.append(labels_of(read, features))
            mask = np.full(len(table), tested)
            if not held_out:
                names = sorted({features.label, *(column.name for column in features.columns)})
                mask = self._held_out([texts(read.column(name)).tolist() for name in names])
            tests.append(mask)
        return np.concatenate(xs), np.concatenate(ys), np.concatenate(tests), "number"

    def _arrays(
        self, train: Path, test: Path | None, signature: Signature
    ) -> tuple[Array, Array, NDArray[np.bool_], Any]:
        from hansa.data.archives import open_archive  # noqa: PLC0415 - a client at rest reads no archives
        from hansa.data.example_arrays import (  # noqa: PLC0415 - likewise
            TEST_INPUTS,
            TEST_LABELS,
            checked_inputs,
            example_arrays,
            refuse_unlike,
        )

        archive = open_archive(train)
        first = example_arrays(archive)
        if first.vocabulary != signature.vocabulary:
            found = f"The archive has {first.vocabulary} tokens, the job {signature.vocabulary}"
            raise _unfit(found, "Write the array `vocabulary` as the job has it.")
        second = None if test is None else example_arrays(open_archive(test))
        if second is None and any(name in archive.names for name in TEST_INPUTS):
            second = example_arrays(archive, TEST_INPUTS, TEST_LABELS)
        x, y = checked_inputs(first), _labels(first.y, signature)
        if second is None:
            held = self._held_out([[row.tobytes().hex() for row in np.ascontiguousarray(x)], y.tolist()])
            return x, y, held, first.form
        refuse_unlike(second, first)
        test_y = _labels(second.y, signature)
        tests = np.repeat([False, True], [len(y), len(test_y)])
        return np.concatenate([x, checked_inputs(second)]), np.concatenate([y, test_y]), tests, first.form

    def _held_out(self, columns: list[list[Any]]) -> NDArray[np.bool_]:
        """Return which rows test, by a keyed hash of each row's content: bool [n]."""
        if not self.test_fraction:
            return np.zeros(len(columns[0]), dtype=np.bool_)
        limit = int(self.test_fraction * 2**64)
        rows = ("\x1f".join(map(str, row)).encode() for row in zip(*columns, strict=True))
        drawn = (hashlib.blake2b(row, key=self.seed, digest_size=8).digest() for row in rows)
        return np.array([int.from_bytes(word, "big") < limit for word in drawn], dtype=np.bool_)


def _assembled(x: Array, y: Array, test: NDArray[np.bool_], features: Features | None, form: Any) -> SiteExamples:
    """Return the parts of one client, its missing numbers replaced by what its training rows say."""
    from hansa.data.clients import ClientExamples  # noqa: PLC0415 - a client at rest holds no examples
    from hansa.data.imputation import Imputation  # noqa: PLC0415 - likewise
    from hansa.data.rows import ClientRows, Names  # noqa: PLC0415 - likewise
    from hansa.data.stores import ArrayStore  # noqa: PLC0415 - likewise

    everything = ClientRows.contiguous(np.array([len(y)]))
    train, held_out = everything.where(~test), everything.where(test)
    store = ArrayStore(x, y, form)
    if features is not None:
        store = store.imputed(train, everything, Imputation.of(features))
    names = Names.listing(["this site"])
    tested = ClientExamples(names, store, held_out) if test.any() else None
    return SiteExamples(ClientExamples(names, store, train), tested)


def _called(read: Own, features: Features | None, signature: Signature) -> tuple[Array, Array, NDArray[np.bool_], Any]:
    arrays = read(features, signature)
    form = "token" if signature.integer_inputs else "number"
    x, y = np.asarray(arrays["X"]), _labels(np.asarray(arrays["y"]), signature)
    if "X_test" not in arrays:
        return x, y, np.zeros(len(y), dtype=np.bool_), form
    test_y = _labels(np.asarray(arrays["y_test"]), signature)
    tests = np.repeat([False, True], [len(y), len(test_y)])
    return np.concatenate([x, np.asarray(arrays["X_test"])]), np.concatenate([y, test_y]), tests, form


def _tables_in(path: Path, label: str) -> list[Any]:
    """Return the table in a file; of an archive also the one of X_test and y_test, where it has them."""
    from hansa.data.archives import open_archive  # noqa: PLC0415 - a client at rest reads no files
    from hansa.data.example_arrays import (  # noqa: PLC0415 - likewise
        TEST_INPUTS,
        TEST_LABELS,
        example_arrays,
        table_of_arrays,
    )
    from hansa.data.table_files import read_table  # noqa: PLC0415 - likewise

    if path.suffix.lower() != ".npz":
        return [read_table(path)]
    archive = open_archive(path)
    first = table_of_arrays(example_arrays(archive), label)
    if not any(name in archive.names for name in TEST_INPUTS):
        return [first]
    names = tuple(name for name in first.columns if name != label)
    return [first, table_of_arrays(example_arrays(archive, TEST_INPUTS, TEST_LABELS), label, names=names)]


def _labels(y: Array, signature: Signature) -> Array:
    """Return labels as the job has them: class numbers from 0, or finite numbers. Raises DataError for others."""
    if not signature.classes:
        numbers = y.astype(np.float32) if y.dtype.kind in "fiub" else np.full(1, np.nan, dtype=np.float32)
        if not np.isfinite(numbers).all():
            raise _unfit("The label y holds something else than finite numbers", "Mend the labels.")
        return numbers
    whole = y.dtype.kind in "iub" or (y.dtype.kind == "f" and bool((y == np.rint(y)).all()))
    if not whole or (len(y) and (y.min() < 0 or y.max() >= signature.classes)):
        found = f"The label y holds something else than the job's class numbers, 0 to {signature.classes - 1}"
        raise _unfit(found, "Number the classes as the job does.")
    return y.astype(np.int64)


def _changed(path: Path) -> tuple[int, int, int]:
    """Return what tells that a file was written anew. Raises DataError where it cannot be read."""
    from hansa.data.refusals import reading  # noqa: PLC0415 - a client at rest reads no files

    with reading(path):
        status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _unfit(found: str, action: str) -> DataError:
    return DataError(
        "HANSA-DATA-INVALID", rule="A site's data fit the job that it takes part in.", found=f"{found}.", action=action
    )
