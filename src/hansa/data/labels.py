"""Labels that come as arrays: class numbers, texts, or real values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from hansa.core.layout import Array
from hansa.core.sections import Features
from hansa.data.encoding import encode_labels, first_distinct, fits
from hansa.data.inference import FEW_CLASSES, MOST_CLASSES, complete_label, few_whole
from hansa.data.refusals import invalid
from hansa.data.table import TEXT, texts

_FEATURES: Final = Features(label="y", task="classification")
_LARGEST: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels ready for a model: int64 class numbers or float32 [N], and how they were made."""

    values: Array
    features: Features
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the values that are classes, in the order of their numbers; none for real values."""
        return self.features.classes

    @property
    def classes(self) -> int:
        """Return the number of classes, 0 for real values."""
        return len(self.names)

    def of(self, y: Array, origin: str) -> Array:
        """Return other examples' labels, numbered alike. Raises DataError for a value that is none of the classes."""
        return encode_labels(as_column(y, "y", origin), self.features, origin)


def array_labels(y: Array, origin: str, *, vocabulary: int = 0) -> Labels:
    """Return the labels in ``y`` [N]: whole numbers and texts are classes, other numbers are real values.

    The values that are used become classes 0, 1 ... in their order, with a note unless they are called so already.
    Floats that are whole and few are classes too. Many whole numbers below a ``vocabulary`` are tokens, each a
    class by its own number. Raises DataError for one class or too many, and for NaN or infinity.
    """
    if y.dtype.kind in "US" or y.dtype == TEXT:
        column = as_column(y, "y", origin)
        features = complete_label(_FEATURES, column, origin)
        return Labels(encode_labels(column, features, origin), features, (_mapped(features.classes, origin),))
    if y.dtype.kind not in "fiub":
        action = "Store class numbers, texts, or real values."
        raise invalid(rule="Labels are numbers or texts.", found=f"In {origin} they are {y.dtype}.", action=action)
    if y.dtype.kind != "f":
        return _classes(y, origin, vocabulary)
    if not fits(y).all():
        found = f"Label {int(np.argmin(fits(y)))} (from 0) of {origin} is not."
        raise invalid(rule="Labels are finite.", found=found, action="Remove examples without a label.")
    if few_whole(y):
        note = f"y holds floats, all whole and few: they are read as classes ({origin})"
        labels = _classes(y, origin, vocabulary)
        return replace(labels, notes=(note, *labels.notes))
    return Labels(y.astype(np.float32), replace(_FEATURES, task="regression"))


def as_column(values: Array, what: str, origin: str) -> Array:
    """Return an array [N] as a table's column: float64, int64, or texts. Raises DataError for other types."""
    if values.dtype.kind == "f":
        return np.ascontiguousarray(values, dtype=np.float64)
    if values.dtype.kind == "u" and values.max(initial=0) > _LARGEST:
        return values.astype(np.str_).astype(TEXT)
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


def _classes(y: Array, origin: str, vocabulary: int) -> Labels:
    """Return whole numbers as classes."""
    found, codes = np.unique(y, return_inverse=True)
    most = max(MOST_CLASSES, vocabulary)
    if not 2 <= len(found) <= most:
        raise invalid(
            rule=f"A label to classify by has 2 to {most} different values.",
            found=f"y of {origin} has {len(found)}.",
            action="Mend the labels; store real values as floats.",
        )
    numbered = found[0] == 0 and found[-1] == len(found) - 1
    if not numbered and len(found) > FEW_CLASSES and found[0] >= 0 and found[-1] < vocabulary:
        features = replace(_FEATURES, classes=tuple(map(str, range(vocabulary))))
        note = f"y holds tokens: each of the {vocabulary} of the vocabulary is a class ({origin})"
        return Labels(y.astype(np.int64), features, (note,))
    features = replace(_FEATURES, classes=tuple(texts(found).tolist()))
    notes = () if numbered else (_mapped(features.classes, origin),)
    return Labels(codes.astype(np.int64, copy=False), features, notes)


def _mapped(classes: tuple[str, ...], origin: str) -> str:
    return (
        f"the labels of {origin} became classes 0 to {len(classes) - 1}, in this order: {first_distinct(classes)}; "
        "they were found by looking at all clients' labels, which nobody can in a federation: number them from 0 there"
    )
