"""What an .npz file of examples says: X, y, whose they are; checked for shape, type and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from hansa.core.datasets import Examples
from hansa.core.layout import Array
from hansa.core.registry import nearest
from hansa.data.archives import Archive, is_mapped
from hansa.data.encoding import first_distinct, fits
from hansa.data.labels import Labels, as_column
from hansa.data.refusals import invalid, plan_problem
from hansa.data.stores import Form, converted
from hansa.data.table import Table

INPUTS: Final = ("X", "x", "x_train")
LABELS: Final = ("y", "Y", "y_train")
TEST_INPUTS: Final = ("X_test", "x_test")
TEST_LABELS: Final = ("y_test", "Y_test")
_ROWS_LOOKED_AT: Final = 10_000
_UNLIKE: Final = 10.0
_NUMBERS_AT_ONCE: Final = 1 << 22


@dataclass(frozen=True, eq=False)
class ExampleArrays:
    """What one archive says: examples, labels, whose they are, names of columns, number of tokens."""

    x: Array
    y: Array
    client: Array | None
    columns: tuple[str, ...] | None
    vocabulary: int
    origin: str

    @property
    def form(self) -> Form:
        """Return how x is read: see ArrayStore."""
        if self.vocabulary:
            return "token"
        return "unit" if self.x.dtype == np.uint8 else "number"


def example_arrays(
    archive: Archive, inputs: tuple[str, ...] = INPUTS, labels: tuple[str, ...] = LABELS
) -> ExampleArrays:
    """Read an archive and check that lengths and shapes agree."""
    x, y, origin = picked(archive, inputs), picked(archive, labels), archive.path.name
    origin += "" if inputs is INPUTS else f" ({inputs[0]}, {labels[0]})"
    x = x[:, None] if x.ndim == 1 else x
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    y = y if y.dtype.kind == "f" else as_column(y, labels[0], origin)
    client = archive.array("client") if "client" in archive.names and inputs is INPUTS else None
    lengths = {len(array) if array.ndim else 0 for array in (x, y, client) if array is not None}
    if len(lengths) > 1 or y.ndim != 1 or (client is not None and client.ndim != 1):
        shapes = f"{inputs[0]} is {list(x.shape)}, {labels[0]} is {list(y.shape)}"
        shapes += "" if client is None else f", client is {list(client.shape)}"
        raise invalid(
            rule="X is [examples, ...], y and client are [examples].",
            found=f"In {origin} {shapes}.",
            action="Write arrays of one length.",
        )
    if x.size == 0:
        raise invalid(rule="A source has examples.", found=f"X of {origin} is {list(x.shape)}.", action="Add some.")
    columns = tuple(map(str, archive.array("columns").ravel().tolist())) if "columns" in archive.names else None
    return ExampleArrays(x, y, client, columns, _vocabulary(archive), origin)


def _vocabulary(archive: Archive) -> int:
    """Return the number of tokens, or 0 where x holds measurements."""
    if "vocabulary" not in archive.names:
        return 0
    number = archive.array("vocabulary")
    if number.size != 1 or number.dtype.kind not in "iu" or int(number.item()) < 1:
        raise invalid(
            rule="The array `vocabulary` is one whole number: how many tokens there are.",
            found=f"In {archive.path.name} it is {number.dtype} {list(number.shape)}.",
            action="Write vocabulary=numpy.int64(...), or leave it out where X holds measurements.",
        )
    return int(number.item())


def refuse_unlike(other: ExampleArrays, first: ExampleArrays) -> None:
    """Raise DataError where two files hold examples of different shape or type."""
    if other.x.shape[1:] == first.x.shape[1:] and other.form == first.form and other.vocabulary == first.vocabulary:
        return
    raise invalid(
        rule="All examples have one shape and are of one type.",
        found=f"X of {first.origin} is {first.x.dtype} {list(first.x.shape)}, "
        f"X of {other.origin} is {other.x.dtype} {list(other.x.shape)}.",
        action="Write them alike.",
    )


def picked(archive: Archive, names: tuple[str, ...]) -> Array:
    """Return the first of the arrays ``names`` that the archive has. Raises DataError where it has none."""
    for name in names:
        if name in archive.names:
            return archive.array(name)
    raise invalid(
        rule=f"The archive has an array {names[0]!r} (or {', '.join(names[1:])}).",
        found=f"{archive.path.name} has {', '.join(archive.names)}.",
        action=f"Write it with numpy.savez(path, {names[0]}=...); {nearest(names[0], archive.names)}",
    )


def checked_inputs(arrays: ExampleArrays) -> Array:
    """Return x after a check of its values; what is in memory is brought to the type it is read as."""
    x, origin = arrays.x, arrays.origin
    if x.dtype.kind not in "fiub" or (arrays.vocabulary and x.dtype.kind not in "iu"):
        wanted = "whole numbers (tokens)" if arrays.vocabulary else "numbers"
        action = "Encode texts as numbers, or declare [features] to have them encoded."
        raise invalid(rule=f"X holds {wanted}.", found=f"In {origin} it holds {x.dtype}.", action=action)
    if arrays.vocabulary or x.dtype.kind == "f":
        _check_values(x, arrays.vocabulary, origin)
    return x if is_mapped(x) or arrays.form == "unit" else converted(x, arrays.form)


def central_arrays(arrays: ExampleArrays, labels: Labels) -> Examples:
    """Return the server's own examples, labelled as the clients' are. Raises DataError for a class that none has."""
    return Examples(converted(checked_inputs(arrays), arrays.form), labels.of(arrays.y, arrays.origin))


def _check_values(x: Array, vocabulary: int, origin: str) -> None:
    """Refuse what is not finite, or not a token; read in pieces, for x may be larger than memory."""
    step = max(1, _NUMBERS_AT_ONCE // max(1, x[:1].size))
    for start in range(0, len(x), step):
        piece = x[start : start + step].reshape(len(x[start : start + step]), -1)
        good = (piece >= 0) & (piece < vocabulary) if vocabulary else fits(piece)
        if not good.all():
            row = int(np.argmin(good.all(axis=1)))
            raise invalid(
                rule=f"X holds tokens below {vocabulary}." if vocabulary else "X holds finite numbers.",
                found=f"Example {start + row} (from 0) of {origin} holds {piece[row][~good[row]][0]}.",
                action="Mend or remove it; with [features] NaN means missing and is imputed per client.",
            )


def unlike_spreads(arrays: ExampleArrays) -> tuple[str, ...]:
    """Return a note where the columns of X [N, p] differ much in their range: a gradient step suits few of them.

    Of a large array, some rows are looked at.
    """
    if arrays.form != "number" or arrays.x.ndim != 2 or arrays.x.dtype.kind not in "fiu":
        return ()
    x = np.asarray(arrays.x[:: max(1, len(arrays.x) // _ROWS_LOOKED_AT)], dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        spreads = np.fmax.reduce(x, axis=0) - np.fmin.reduce(x, axis=0)
    spreads = spreads[np.isfinite(spreads) & (spreads > 0)]
    factor = spreads.max() / spreads.min() if len(spreads) else 1.0
    if factor <= _UNLIKE:
        return ()
    note = f"columns differ in spread by a factor of {factor:,.0f}; "
    return (note + '[features] label = "y", scaling = "federated" would scale them',)


def table_of_arrays(arrays: ExampleArrays, label: str, names: tuple[str, ...] | None = None) -> Table:
    """Return X [N, p] and y as a table: its columns are called as the archive says, or x0, x1 ..."""
    if arrays.x.ndim != 2:
        raise plan_problem("features", f"needs X [examples, columns], but {arrays.origin} has {list(arrays.x.shape)}.")
    names = names or arrays.columns or tuple(f"x{number}" for number in range(arrays.x.shape[1]))
    if len(set(names)) != arrays.x.shape[1] or label in names:
        raise invalid(
            rule="Every column of X has a name of its own, and the label has another.",
            found=f"{arrays.origin} has {arrays.x.shape[1]} columns named {first_distinct(names)}; label {label!r}.",
            action="Correct the array `columns`, or features.label.",
        )
    columns = {name: as_column(arrays.x[:, i], name, arrays.origin) for i, name in enumerate(names)}
    return Table({**columns, label: as_column(arrays.y, label, arrays.origin)}, arrays.origin)
