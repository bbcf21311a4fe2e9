"""A table in memory: columns of texts as written, or of numbers where the file has types."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa.core.layout import Array
from hansa.data.refusals import invalid

TEXT: Final = np.dtypes.StringDType()
MISSING: Final = ("", "?", "NA", "NaN", "nan", "null", "NULL", "None")
"""What stands for a missing value in any column, beside what the column itself declares."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of equal length, by name: texts (without white space around them) or numbers.

    ``origin`` names the file in messages. ``unusable`` names columns whose type is neither text nor number.
    ``separator`` is what stands between the cells of a text, empty for other files.
    """

    columns: Mapping[str, Array]
    origin: str
    unusable: tuple[str, ...] = ()
    separator: str = ""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str) -> Array:
        """Return one column. Raises DataError for a name that the table does not have."""
        if name in self.columns:
            return self.columns[name]
        found = f"{self.origin} has no column {name!r}"
        if name in self.unusable:
            found = f"Column {name!r} of {self.origin} holds neither texts nor numbers"
        raise invalid(
            rule="A column that the plan names must be in the file.",
            found=f"{found}.",
            action=f"Correct the name; {nearest_column(name, self.columns)}",
        )

    def with_column(self, name: str, values: Array) -> Table:
        """Return the table with a column added or replaced."""
        return replace(self, columns={**self.columns, name: values})


def nearest_column(name: str, columns: Iterable[str], limit: int = 30) -> str:
    """Return a hint that names a column almost called ``name``, or lists the columns in the file's order."""
    names = list(columns)
    folded = {each.casefold(): each for each in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.75)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    return f"its columns are: {', '.join(names[:limit])}{', ...' if len(names) > limit else ''}"


def texts(column: Array) -> Array:
    """Return a column as texts; whole numbers without a decimal point, a missing number as ""."""
    if column.dtype.kind not in "fiub":
        return column
    distinct, codes = np.unique(column, return_inverse=True)
    return np.array([_text(value) for value in distinct.tolist()], dtype=TEXT)[codes]


def missing_in(column: Array, declared: Sequence[str] = ()) -> Mask:
    """Return where a column holds a missing value: by the common marks, or by the ``declared`` ones.

    A declared mark that is a number stands for the number however it is written.
    """
    if column.dtype.kind in "fiub":
        marks = [number for mark in declared if (number := as_number(mark)) is not None]
        return (
            np.asarray(np.isnan(column) | np.isin(column, marks))
            if column.dtype.kind == "f"
            else np.isin(column, marks)
        )
    mask = np.zeros(len(column), dtype=np.bool_)
    for mark in (*MISSING, *declared):
        mask |= column == mark
    return mask


def parsed(column: Array, missing: Mask) -> tuple[NDArray[np.float64], Mask]:
    """Return a column as numbers, NaN where ``missing``, and where a text is not a number."""
    if column.dtype.kind in "fiub":
        numbers = column.astype(np.float64)
        numbers[missing] = np.nan
        return numbers, np.zeros(len(column), dtype=np.bool_)
    numbers = np.full(len(column), np.nan)
    bad = np.zeros(len(column), dtype=np.bool_)
    known = column[~missing]
    try:
        numbers[~missing] = known.astype(np.float64)
    except ValueError:
        found = [as_number(value) for value in known.tolist()]
        numbers[~missing] = [np.nan if number is None else number for number in found]
        bad[~missing] = [number is None for number in found]
    return numbers, bad


def as_number(text: str) -> float | None:
    """Return the number that a text writes, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def canonical(values: Sequence[str]) -> list[str]:
    """Return texts so that equal whole numbers have equal texts ("1", "1.0", "01"), as far as floats hold them."""
    numbers = [as_number(value) for value in values]
    return [
        value if number is None or not number.is_integer() or abs(number) >= 2**53 else str(int(number))
        for value, number in zip(values, numbers, strict=True)
    ]


def joined(parts: Sequence[Array]) -> Array:
    """Return columns one after another; texts and numbers together become texts."""
    mixed = any(part.dtype == TEXT for part in parts)
    return np.concatenate([texts(part) for part in parts] if mixed else list(parts))


def _text(value: float) -> str:
    if value != value:  # noqa: PLR0124 - NaN
        return ""
    return str(int(value)) if float(value).is_integer() else repr(value)
