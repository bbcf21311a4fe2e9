"""Labels that come as arrays: class numbers, texts, or real values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hansa.core.layout import Array
from hansa.core.sections import Features
from hansa.data.encoding import encode_labels, fits
from hansa.data.inference import MOST_CLASSES, complete_label, few_whole
from hansa.data.refusals import invalid
from hansa.data.table import TEXT


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels ready for a model: int64 class numbers or float32 [N]. ``classes`` is 0 for real values."""

    values: Array
    classes: int
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def array_labels(y: Array, origin: str, *, most: int = MOST_CLASSES) -> Labels:
    """Return the labels in ``y`` [N]: whole numbers and texts are classes, other numbers are real values.

    Floats that are whole and few are classes too. Raises DataError for a class number that is negative or
    above ``most``, and for NaN or infinity.
    """
    if y.dtype.kind in "US" or y.dtype == TEXT:
        column = as_column(y, "y", origin)
        features = complete_label(Features(label="y", task="classification"), column, origin)
        return Labels(encode_labels(column, features, origin), len(features.classes), features.classes)
    if y.dtype.kind not in "fiub":
        action = "Store class numbers from 0, texts, or real values."
        raise invalid(rule="Labels are numbers or texts.", found=f"In {origin} they are {y.dtype}.", action=action)
    if y.dtype.kind != "f":
        return _classes(y, origin, most, ())
    if not fits(y).all():
        found = f"Label {int(np.argmin(fits(y)))} (from 0) of {origin} is not."
        raise invalid(rule="Labels are finite.", found=found, action="Remove examples without a label.")
    if few_whole(y):
        return _classes(y, origin, most, (f"y holds floats, all whole and few: they are read as classes ({origin})",))
    return Labels(y.astype(np.float32), 0, ())


def as_column(values: Array, what: str, origin: str) -> Array:
    """Return an array [N] as a table's column: float64, int64, or texts. Raises DataError for other types."""
    if values.dtype.kind == "f":
        return np.ascontiguousarray(values, dtype=np.float64)
    if values.dtype.kind in "iub":
        return np.ascontiguousarray(values, dtype=np.int64)
    if values.dtype.kind == "U" or values.dtype == TEXT:
        return np.strings.strip(values.astype(TEXT))
    try:
        if values.dtype.kind == "S":
            return np.strings.strip(np.strings.decode(values, "utf-8").astype(TEXT))
    except UnicodeDecodeError:
        pass
    raise invalid(
        rule="Arrays hold numbers or UTF-8 texts.",
        found=f"{what!r} of {origin} holds {values.dtype}.",
        action="Convert it before numpy.savez.",
    )


def _classes(y: Array, origin: str, most: int, notes: tuple[str, ...]) -> Labels:
    if not len(y):
        raise invalid(rule="A source has examples.", found=f"{origin} has none.", action="Correct data.path.")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= most or high == 0:
        raise invalid(
            rule=f"Class numbers run from 0 to one below the number of classes (2 to {most} classes).",
            found=f"In {origin} labels run from {low} to {high}.",
            action="Number the classes from 0; store real values as floats.",
        )
    classes = high + 1
    return Labels(y.astype(np.int64), classes, tuple(map(str, range(classes))), notes)
