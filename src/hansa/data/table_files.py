"""Reading tables from files: comma-separated text (standard library) and Parquet (pyarrow)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from hansa.core.layout import Array
from hansa.data.recognition import not_utf8, recognised
from hansa.data.refusals import extra_missing, invalid, malformed, reading
from hansa.data.table import TEXT, Table

_ROWS_AT_ONCE: Final = 50_000


def read_table(path: Path) -> Table:
    """Return the table in a file: Parquet by its suffix, else text separated by comma, semicolon or tab.

    Raises DataError for a file that is missing, not a table, or empty.
    """
    return read_parquet(path) if path.suffix.lower() == ".parquet" else read_csv(path)


def read_csv(path: Path) -> Table:
    """Return a table of texts. The first line names the columns; UTF-8, with or without a byte order mark."""
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        _refuse_other_kinds(path)
        try:
            delimiter = _delimiter(file.readline())
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = _header(next(reader, []), path)
            blocks = list(_blocks(reader, len(header), path))
        except UnicodeDecodeError as error:
            action = "Save the file as UTF-8; it may be in Latin-1 or Windows-1252."
            raise malformed(path, not_utf8(path), action=action) from error
        except csv.Error as error:
            raise malformed(path, f"line {reader.line_num}: {error}", action="Mend the quotes of that line.") from error
    if not blocks:
        raise malformed(path, "the table has no rows", action="Add rows below the header.")
    columns = zip(*blocks, strict=True)
    read = {name: np.concatenate(parts) for name, parts in zip(header, columns, strict=True)}
    return Table(read, path.name, separator=delimiter)


def _refuse_other_kinds(path: Path) -> None:
    """Raise DataError for a file that is no text, and say what it is."""
    kind = recognised(path)
    if kind is not None:
        raise malformed(path, f"{kind[0]}, not a table as text", action=kind[1])


def _delimiter(line: str) -> str:
    """Return the separator that the header uses most, outside of quotes."""
    bare = "".join(line.split('"')[::2])
    return max(",;\t", key=bare.count)


def _header(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not any(names):
        raise malformed(path, "the first line does not name columns", action="Add a header line.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise malformed(path, f"the header names {repeated[0]!r} twice", action="Give every column its own name.")
    return names


def _blocks(reader: Any, width: int, path: Path) -> Iterator[list[Array]]:
    """Yield the columns of so many rows at once, as compact arrays of texts."""
    rows = _full_rows(reader, width, path)
    while block := list(islice(rows, _ROWS_AT_ONCE)):
        yield [np.strings.strip(np.array(cells, dtype=TEXT)) for cells in zip(*block, strict=True)]


def _full_rows(reader: Any, width: int, path: Path) -> Iterator[list[str]]:
    for row in reader:
        if len(row) == width:
            yield row
        elif row:
            why = f"line {reader.line_num} has {len(row)} cells, the header has {width}"
            raise malformed(path, why, action="Mend that line, or quote cells that hold the separator.")


def read_parquet(path: Path) -> Table:
    """Return a typed table. Raises HansaError where pyarrow is not installed."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - an optional dependency
        import pyarrow.parquet as files  # noqa: PLC0415
    except ImportError as error:
        raise extra_missing("pyarrow", "Reading Parquet", "hansa[parquet]") from error
    with reading(path):
        try:
            content = files.ParquetFile(path).read()
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise malformed(path, f"it is not a Parquet file ({_first_line(error)})") from error
    if not content.num_rows:
        raise malformed(path, "the table has no rows", action="Add rows.")
    names = content.column_names
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise invalid(
            rule="Columns have different names.",
            found=f"{path.name} has {repeated[0]!r} twice.",
            action="Rename one of them.",
        )
    columns = {name: _arrow_column(content.column(name)) for name in names}
    usable = {name: values for name, values in columns.items() if values is not None}
    return Table(usable, path.name, tuple(name for name in names if columns[name] is None))


def _arrow_column(column: Any) -> Array | None:
    """Return a Parquet column as numbers or texts, or None where it is neither.

    Whole numbers with gaps become texts, so that long ones keep every digit.
    """
    import pyarrow as pa  # noqa: PLC0415 - an optional dependency
    from pyarrow import compute  # noqa: PLC0415

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _arrow_column(column.cast(kind.value_type))
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    if pa.types.is_integer(kind) and not column.null_count and not pa.types.is_uint64(kind):
        return np.asarray(column.to_numpy(), dtype=np.int64)
    try:
        filled = compute.fill_null(column.cast(pa.string()), "")
    except pa.ArrowException:
        return None
    return np.strings.strip(np.array(filled.to_pylist(), dtype=TEXT))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
