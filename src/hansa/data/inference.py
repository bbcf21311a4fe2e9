"""Features found in a file: kinds, categories, bounds, classes. It looks at pooled data, and says so."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from hansa.core.layout import Array
from hansa.core.sections import Column, Features
from hansa.data.decimal_commas import localised, notes_of
from hansa.data.encoding import refuse_infinite
from hansa.data.refusals import invalid, plan_problem
from hansa.data.table import Table, missing_in, parsed, texts
from hansa.data.table_files import read_table

__all__ = [
    "Inferred",
    "complete",
    "complete_label",
    "infer",
    "infer_features",
    "is_open",
    "read_table_at",
    "round_outwards",
]

FEW_CLASSES: Final = 20
MOST_CLASSES: Final = 1000
FEW_CATEGORIES: Final = 50
MOST_CATEGORIES: Final = 1000
_TIME: Final = r"([T ]\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?(Z|[+-]\d{2}(:?\d{2})?))?)?"
_DAY: Final = r"(\d{4}[-/]\d{1,2}[-/]\d{1,2}|\d{1,2}([./-])\d{1,2}\2\d{4})"
_DATE: Final = re.compile(_DAY + _TIME)
POOLED_NOTE: Final = (
    "[features] was found by looking at the pooled file ({what}); in a federation nobody can, so declare it in the plan"
)


@dataclass(frozen=True)
class Inferred:
    """Features found in a table, and what a user should know of how."""

    features: Features
    notes: tuple[str, ...]


def read_table_at(path: str | Path) -> Table:
    """Return the table in a file, by its suffix. Raises DataError where that fails."""
    return read_table(Path(path).expanduser())


def infer_features(table: Table, label: str, exclude: Collection[str] = ()) -> Features:
    """Return features for every useful column of ``table`` but ``exclude`` (the client column): see :func:`infer`."""
    return infer(table, label, exclude).features


def infer(table: Table, label: str, exclude: Collection[str] = ()) -> Inferred:
    """Return features for every useful column, and a note for each that was left out.

    Texts with many different values, row numbers and columns with a single value are left out. Bounds of numbers
    are what the file has, rounded outwards. Raises DataError where nothing useful is left.
    """
    table, pointed = localised(table, Features(label=label), exclude)
    columns, notes = [], [f"column {name!r} was left out: neither text nor number" for name in table.unusable]
    for name, values in table.columns.items():
        if name == label or name in exclude or not name:
            continue
        why = _useless(name, values, table.origin)
        if why:
            notes.append(f"column {name!r} was left out: {why}")
        else:
            columns.append(_column(name, values))
    if not columns:
        raise invalid(
            rule="A table has feature columns.",
            found=f"{table.origin} has none beside the label: {'; '.join(notes) or 'no other column'}.",
            action="Add columns, or declare them under [[features.columns]].",
        )
    features = complete_label(Features(label=label, columns=tuple(columns)), table.column(label), table.origin)
    return Inferred(features, (*notes, *notes_of(pointed, table.origin)))


def complete(features: Features, table: Table, exclude: Collection[str] = ()) -> Inferred:
    """Return ``features`` with what the plan left open found in the table: columns, categories, bounds, classes."""
    notes: tuple[str, ...] = ()
    if features.columns:
        columns = tuple(_filled(column, table, place) for place, column in enumerate(features.columns))
        found = ["categories and bounds"] if columns != features.columns else []
        filled = replace(features, columns=columns)
    else:
        inferred = infer(table, features.label, exclude)
        filled, notes, found = replace(features, columns=inferred.features.columns), inferred.notes, ["columns"]
    filled = complete_label(filled, table.column(features.label), table.origin)
    if filled.classes != features.classes:
        found.append("classes")
    if features.task is None and filled.task == "regression":
        notes = (*notes, *_read_as_real(table.column(features.label), features.label))
    if found:
        notes = (POOLED_NOTE.format(what=", ".join(found)), *notes)
    return Inferred(filled, notes)


def _read_as_real(values: Array, label: str) -> tuple[str, ...]:
    """Return a note where the numbers that are taken for real values might be classes: they are all whole."""
    numbers = parsed(values, missing_in(values))[0]
    known = numbers[np.isfinite(numbers)]
    if (known != np.floor(known)).any():
        return ()
    note = f"label {label!r} holds {len(np.unique(known))} different whole numbers, read as real values to predict; "
    return (note + 'if they are classes, set features.task = "classification"',)


def is_open(features: Features) -> bool:
    """Return True where columns, categories or bounds are left open, so that examples must be looked at."""
    return not features.columns or any(map(_is_open, features.columns))


def complete_label(features: Features, values: Array, origin: str) -> Features:
    """Return ``features`` with task and classes, found from the label's column where they are not declared."""
    if features.classes:
        if features.task == "regression" or len(features.classes) == 1:
            raise plan_problem("features.classes", "a label with classes has two or more, and is not for regression.")
        return replace(features, task="classification")
    missing = missing_in(values)
    numbers, bad = parsed(values, missing)
    numeric = not bad.any() and not missing.all()
    if features.task is None:
        real = numeric and not few_whole(numbers[~missing])
        features = replace(features, task="regression" if real else "classification")
    if features.task == "regression":
        return features
    classes = _sorted_values(values[~missing], numbers[~missing], numeric=numeric)
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise invalid(
            rule=f"A label to classify by has 2 to {MOST_CLASSES} different values, or its classes are declared.",
            found=f"Column {features.label!r} of {origin} has {len(classes)}.",
            action='Check features.label, declare features.classes, or set features.task = "regression".',
        )
    return replace(features, classes=classes)


def round_outwards(low: float, high: float) -> tuple[float, float]:
    """Return round bounds a little wider than [low, high]: two digits of the width, and 5% to spare.

    What is never negative keeps 0 as its lowest bound.
    """
    width = high - low or abs(high) or 1.0
    digits = 1 - math.floor(math.log10(width))
    step = 10.0**-digits
    lowest = math.floor((low - 0.05 * width) / step) * step
    highest = math.ceil((high + 0.05 * width) / step) * step
    if low >= 0 > lowest:
        lowest = 0.0
    return min(low, round(lowest, max(digits, 0))), max(high, round(highest, max(digits, 0)))


def few_whole(numbers: Array) -> bool:
    """Return True for whole numbers with few different values, most of them met more than once."""
    if not np.isfinite(numbers).all() or (numbers != np.floor(numbers)).any():
        return False
    distinct = len(np.unique(numbers))
    return distinct <= 2 or (distinct <= FEW_CLASSES and 2 * distinct <= len(numbers))


def _sorted_values(values: Array, numbers: Array, *, numeric: bool) -> tuple[str, ...]:
    """Return the different values in order: by number where all are numbers, else by text."""
    if numeric and (np.abs(numbers) < 2**53).all():
        return tuple(texts(np.unique(numbers)).tolist())
    if numeric:  # a float would run together whole numbers that differ
        return tuple(sorted(np.unique(texts(values)).tolist(), key=float))
    return tuple(np.unique(texts(values)).tolist())


def _column(name: str, values: Array) -> Column:
    missing = missing_in(values)
    numbers, bad = parsed(values, missing)
    if bad.any():
        return Column(name=name, kind="category", categories=tuple(np.unique(values[~missing]).tolist()))
    low, high = _bounds(numbers)
    return Column(name=name, low=low, high=high)


def _is_open(column: Column) -> bool:
    return not column.categories if column.kind == "category" else column.low is None


def _filled(column: Column, table: Table, place: int) -> Column:
    """Return a declared column with its categories or bounds found in the table."""
    if not _is_open(column):
        return column
    values = table.column(column.name)
    missing = missing_in(values, column.missing)
    if column.kind == "number":
        low, high = _bounds(parsed(values, missing)[0])
        return replace(column, low=low, high=high)
    categories = tuple(np.unique(texts(values[~missing])).tolist())
    if len(categories) > MOST_CATEGORIES:
        message = f"column {column.name!r} has {len(categories)} different values; declare those that matter."
        raise plan_problem(f"features.columns.{place}.categories", message)
    return replace(column, categories=categories)


def _bounds(numbers: Array) -> tuple[float, float]:
    """Return round bounds of the finite numbers; of a column without any, 0 and 1."""
    finite = numbers[np.isfinite(numbers)]
    return round_outwards(float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)


def _useless(name: str, values: Array, origin: str) -> str | None:
    """Return why a column cannot help, or None. Raises DataError for an infinite number."""
    missing = missing_in(values)
    numbers, bad = parsed(values, missing)
    refuse_infinite(numbers, f"Column {name!r}", origin)
    known = values[~missing] if bad.any() else numbers[~np.isnan(numbers)]
    distinct = len(np.unique(known))
    if distinct == 0:
        return "every value is missing"
    if distinct == 1:
        return f"it has one value only, {str(known[0])!r}"
    if not bad.any():
        return _like_row_numbers(name, known, distinct)
    if all(map(_DATE.fullmatch, np.unique(known).tolist())):
        return "a date; turn it into a number (days since ...) to use it"
    if distinct > MOST_CATEGORIES or (distinct > FEW_CATEGORIES and distinct > 0.2 * len(known)):
        return f"it holds {distinct} different texts in {len(known)} rows, such as identifiers or free text"
    return None


def _like_row_numbers(name: str, numbers: Array, distinct: int) -> str | None:
    if distinct < len(numbers) or (numbers != np.floor(numbers)).any():
        return None
    consecutive = distinct >= FEW_CLASSES and numbers.max() - numbers.min() == distinct - 1
    if consecutive or name.casefold() in {"id", "index", "unnamed: 0"}:
        return "it looks like a row number or identifier"
    return None
