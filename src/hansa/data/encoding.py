"""Rows of a table as a model reads them, by the plan's [features]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from hansa.core.errors import DataError, PlanError, Problem
from hansa.core.layout import Array, Floats
from hansa.core.sections import Column, Features
from hansa.data.refusals import invalid
from hansa.data.table import TEXT, Mask, Table, canonical, missing_in, nearest_column, parsed, texts

_LARGEST: Final = float(np.finfo(np.float32).max)


def check_columns(table: Table, features: Features) -> None:
    """Raise PlanError for every column of ``features`` that the table lacks, with its key path."""
    named = [(f"features.columns.{i}.name", column.name) for i, column in enumerate(features.columns)]
    problems = [
        Problem(path, f"{table.origin} has no usable column {name!r}; {nearest_column(name, table.columns)}")
        for path, name in [("features.label", features.label), *named]
        if name not in table.columns
    ]
    if problems:
        raise PlanError(problems)


def encode(table: Table, features: Features) -> Floats:
    """Return the encoded features, float32 [rows, slots]: clamped, not scaled, NaN where missing.

    Raises DataError for a text or an infinite value in a column of numbers.
    """
    x = np.empty((len(table), len(features.slots())), dtype=np.float32)
    slot = 0
    for column in features.columns:
        if column.kind == "number":
            x[:, slot] = encode_number(table.column(column.name), column, table.origin)
            slot += 1
        else:
            width = len(column.categories) + 1
            x[:, slot : slot + width] = _encode_category(table.column(column.name), column)
            slot += width
    return x


def encode_number(values: Array, column: Column, origin: str) -> Array:
    """Return one column of numbers, clamped to its bounds: float64 [rows], NaN where missing."""
    missing = missing_in(values, column.missing)
    numbers, bad = parsed(values, missing)
    if bad.any():
        row = int(np.argmax(bad))
        raise invalid(
            rule=f"Column {column.name!r} holds numbers.",
            found=f"{_count(bad, 'row')} of {origin} hold{'s' if bad.sum() == 1 else ''} something else, "
            f"the first is row {row + 1}: {_shown(values[row])}.",
            action='Declare kind = "category", or list the text under missing.',
        )
    refuse_infinite(numbers, f"Column {column.name!r}", origin)
    return numbers if column.low is None else np.clip(numbers, column.low, column.high)


def fits(numbers: Array) -> Mask:
    """Return which numbers are finite in float32."""
    if numbers.dtype.itemsize <= 4:
        return np.isfinite(numbers)
    return np.asarray(np.abs(numbers) <= _LARGEST)


def refuse_infinite(numbers: Array, what: str, origin: str) -> None:
    """Raise DataError for a value that is infinite or too large for float32."""
    infinite = ~(fits(numbers) | np.isnan(numbers))
    if infinite.any():
        row = int(np.argmax(infinite))
        raise invalid(
            rule=f"{what} holds finite numbers.",
            found=f"{_count(infinite, 'row')} of {origin} {'is' if infinite.sum() == 1 else 'are'} infinite, "
            f"the first is row {row + 1}.",
            action="Mend the value, or leave it empty where it is not known.",
        )


def _encode_category(values: Array, column: Column) -> Floats:
    """Return one slot a category and a last one for unknown or missing: float32 [rows, categories + 1]."""
    as_texts = texts(values)
    slots = np.full(len(as_texts), len(column.categories), dtype=np.int64)
    marks = np.array(column.missing, dtype=TEXT)
    for number, category in enumerate(column.categories):
        if category not in marks:
            slots[as_texts == category] = number
    encoded: Floats = np.eye(len(column.categories) + 1, dtype=np.float32)[slots]
    return encoded


def encode_labels(values: Array, features: Features, origin: str) -> Array:
    """Return the labels by a complete ``features``: int64 class numbers [rows], or float32 for regression.

    Raises DataError for a missing label, a text under regression, or a value that is not a declared class.
    """
    missing = missing_in(values)
    if missing.any() and features.classes:
        missing &= ~np.isin(texts(values), np.array(features.classes, dtype=TEXT))
    if missing.any():
        raise _label_error(features, missing, origin, "are missing", "Remove these rows; a label cannot be imputed.")
    if features.task == "regression":
        numbers, bad = parsed(values, missing)
        if bad.any():
            raise _label_error(features, bad, origin, "are not numbers", 'Set features.task = "classification".')
        refuse_infinite(numbers, f"Label {features.label!r}", origin)
        return numbers.astype(np.float32)
    return _class_numbers(values, features, origin)


def _class_numbers(values: Array, features: Features, origin: str) -> Array:
    distinct, codes = np.unique(values, return_inverse=True)
    classes, written = list(features.classes), texts(distinct).tolist()
    if len(set(canonical(classes))) == len(classes):
        classes, written = canonical(classes), canonical(written)
    known = {name: number for number, name in enumerate(classes)}
    numbers = np.array([known.get(name, -1) for name in written], dtype=np.int64)[codes]
    strange = numbers < 0
    if strange.any():
        first = written[codes[int(np.argmax(strange))]]
        what = f"are none of the classes ({first_distinct(features.classes)}), the first is {_shown(first)}"
        raise _label_error(
            features, strange, origin, what, "Correct the rows, or features.classes where the plan has [features]."
        )
    return numbers


def _label_error(features: Features, where: Mask, origin: str, what: str, action: str) -> DataError:
    return invalid(
        rule=f"Every row has a label in column {features.label!r} that fits the plan.",
        found=f"{_count(where, 'label')} of {origin} {what} (row {int(np.argmax(where)) + 1}).",
        action=action,
    )


def _count(where: Mask, noun: str) -> str:
    count = int(where.sum())
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _shown(value: object, longest: int = 40) -> str:
    text = str(value)
    return repr(text if len(text) <= longest else text[:longest] + "...")


def first_distinct(values: Sequence[str], limit: int = 10) -> str:
    """Return a few values for a message."""
    return ", ".join(values[:limit]) + (", ..." if len(values) > limit else "")
