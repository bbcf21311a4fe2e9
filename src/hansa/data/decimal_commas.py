"""Numbers with decimal commas ("18,5", "1.019,25"), as spreadsheets write them in much of Europe."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from hansa.core.errors import DataError
from hansa.core.layout import Array
from hansa.core.sections import Features
from hansa.data.refusals import invalid
from hansa.data.table import TEXT, Table, as_number, joined, missing_in, parsed

_WHOLE: Final = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d+)([eE][+-]?\d+)?")
_COMMA: Final = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d+),\d+([eE][+-]?\d+)?")


def localised(table: Table, features: Features, exclude: Collection[str] = ()) -> tuple[Table, tuple[str, ...]]:
    """Return the table with decimal points where its numbers have decimal commas, and the names of those columns.

    It looks at the columns that ``features`` declares as numbers, or at all but ``exclude`` where it declares none,
    and at the label; a column that is not declared changes only where every cell is a number or missing. Raises
    DataError for decimal commas between cells that are separated by commas, and beside decimal points.
    """
    changed = {}
    for name, missing in _numbers(table, features, exclude).items():
        pointed = _pointed(table, name, missing)
        if pointed is not None:
            changed[name] = pointed
    return (replace(table, columns={**table.columns, **changed}), tuple(changed)) if changed else (table, ())


def concatenated(tables: Sequence[Table], features: Features, origin: str) -> tuple[Table, tuple[str, ...]]:
    """Return the rows of many tables, each :func:`localised`, with the columns that all of them have.

    A column that is not a number everywhere stays as it is written. Mixed types become texts. The names of the
    columns that were changed come second.
    """
    read = [localised(table, features) for table in tables]
    columns, changed = {}, []
    for name in tables[0].columns:
        if not all(name in table.columns for table in tables):
            continue
        parts = [table.columns[name] for table, _ in read]
        if any(name in names for _, names in read):
            if all(_is_number(part) for part in parts):
                changed.append(name)
            else:
                parts = [table.columns[name] for table in tables]
        columns[name] = joined(parts)
    return Table(columns, origin), tuple(changed)


def notes_of(names: Sequence[str], origin: str) -> tuple[str, ...]:
    """Return the note on columns that were changed, if any."""
    if not names:
        return ()
    listed = ", ".join(map(repr, names))
    return (f'numbers of {origin} with decimal commas were read as such ("18,5" is 18.5): {listed}',)


def _numbers(table: Table, features: Features, exclude: Collection[str]) -> dict[str, tuple[str, ...] | None]:
    """Return the columns that may hold numbers; with their marks for missing values where the plan declares them."""
    found: dict[str, tuple[str, ...] | None] = {
        column.name: column.missing for column in features.columns if column.kind == "number"
    }
    if not features.columns:
        found = dict.fromkeys(name for name in table.columns if name not in exclude)
    found.pop(features.label, None)
    if not any("," in name for name in features.classes):
        found[features.label] = None
    return {name: missing for name, missing in found.items() if name in table.columns}


def _pointed(table: Table, name: str, declared: tuple[str, ...] | None) -> Array | None:
    """Return a column with decimal points instead of commas, or None where it has none."""
    values = table.columns[name]
    if not table.separator or values.dtype != TEXT or not (np.strings.find(values, ",") >= 0).any():
        return None
    distinct, codes = np.unique(values, return_inverse=True)
    missing, written = missing_in(distinct, declared or ()), distinct.tolist()
    known = [text for text, out in zip(written, missing, strict=True) if not out]
    commas = [text for text in known if _COMMA.fullmatch(text)]
    others = [text for text in known if not _COMMA.fullmatch(text) and not _WHOLE.fullmatch(text)]
    if not commas or (declared is None and any(as_number(text) is None for text in others)):
        return None
    points = [text for text in others if "." in text and as_number(text) is not None]
    first = next(text for text in values.tolist() if _COMMA.fullmatch(text))
    if table.separator == "," or points:
        raise _refusal(table, name, first, points)
    read = [text if out else _read(text) for text, out in zip(written, missing, strict=True)]
    return np.array(read, dtype=TEXT)[codes]


def _read(text: str) -> str:
    if not (_COMMA.fullmatch(text) or _WHOLE.fullmatch(text)):
        return text
    return text.replace(".", "").replace(",", ".")


def _is_number(values: Array) -> bool:
    return not parsed(values, missing_in(values))[1].any()


def _refusal(table: Table, name: str, first: str, points: Sequence[str]) -> DataError:
    if points:
        return invalid(
            rule="A column of numbers has decimal commas or decimal points, not both.",
            found=f"Column {name!r} of {table.origin} has {first!r} and {points[0]!r}.",
            action='Write its numbers alike, or declare kind = "category".',
        )
    return invalid(
        rule="Numbers in a file whose cells are separated by commas have no commas of their own.",
        found=f"Column {name!r} of {table.origin} has {first!r}.",
        action="Save the file with decimal points, or with semicolons between the cells (decimal commas are read "
        'there); or declare kind = "category" where these are no numbers.',
    )
