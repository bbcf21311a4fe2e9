"""Devices from a file: a csv table with a row for each class of devices, or for each client."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from hansa.core.errors import DataError
from hansa.core.layout import Int64s
from hansa.core.registry import nearest
from hansa.core.schema import build, fields_of
from hansa.core.sections import DeviceClass

_LISTED: Final = 20
"""Most problems of a file that are told."""


@dataclass(frozen=True)
class Traces:
    """Classes of devices, and the number of each client's class where clients have one each."""

    classes: tuple[DeviceClass, ...]
    owner: Int64s | None = None


def read_traces(path: Path, names: Sequence[str]) -> tuple[Traces, bytes]:
    """Return the devices in a file, and its content.

    The first column is "class" or "client"; the others are settings of a class of devices, and an empty cell means the
    default. A file of clients has a row for each of ``names``; others are passed over. Raises DataError, which names
    every line that is wrong.
    """
    try:
        content = path.expanduser().read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "HANSA-DATA-MISSING",
            rule="A file of devices must exist, be readable and be UTF-8.",
            found=f"{path}: {error}.",
            action="Correct devices.path; it is relative to the folder in which you run.",
        ) from error
    lines = list(csv.reader(io.StringIO(text)))
    header = [name.strip() for name in lines[0]] if lines else []
    key = header[0] if header else ""
    problems = _header_problems(header)
    rows: dict[str, DeviceClass] = {}
    for number, cells in enumerate(lines[1:] if not problems else [], start=2):
        if any(cell.strip() for cell in cells):
            problems += _take(rows, number, header, cells)
    if not problems and not rows:
        problems.append(f"it has no row below its header; write one for each {key}")
    if not problems and key == "client":
        problems += [f"it has no row for client {name!r}" for name in names if name not in rows]
    if problems:
        raise _invalid(path, problems)
    if key == "class":
        return Traces(tuple(rows.values())), content
    return Traces(tuple(rows[name] for name in names), np.arange(len(names))), content


def _header_problems(header: Sequence[str]) -> list[str]:
    known = [name for name in fields_of(DeviceClass) if name != "name"]
    if not header or header[0] not in ("class", "client"):
        return ['line 1: its first column must be "class" or "client"']
    found = [
        f"line 1: unknown column {name!r}; {nearest(name, known).rstrip('.')}"
        for name in header[1:]
        if name not in known
    ]
    if header[0] == "client" and "share" in header:
        found.append('line 1: a file of clients has no "share"; remove the column')
    found += [f"line 1: column {name!r} comes twice" for name in sorted(set(header)) if header.count(name) > 1]
    return found


def _take(rows: dict[str, DeviceClass], number: int, header: Sequence[str], cells: Sequence[str]) -> list[str]:
    """Add the row of one line; return what is wrong with it."""
    if len(cells) != len(header):
        return [f"line {number}: it has {len(cells)} cells, and the header {len(header)}"]
    given = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}
    name = given.pop(header[0], "")
    if not name:
        return [f"line {number}: the {header[0]} has no name"]
    if name in rows:
        return [f"line {number}: {header[0]} {name!r} comes twice"]
    built, problems = build(DeviceClass, {"name": name, **_values(given)}, f"line {number}")
    if built is not None:
        rows[name] = built
    return [str(problem).replace(f"line {number}.", f"line {number}, ", 1).rstrip(".") for problem in problems]


def _values(cells: Mapping[str, str]) -> dict[str, str | float]:
    """Return cells with those that hold numbers as numbers; what is no number is told by the check that follows."""
    values: dict[str, str | float] = dict(cells)
    for name in cells:
        if name != "available":
            try:
                values[name] = float(cells[name])
            except ValueError:
                continue
    return values


def _invalid(path: Path, problems: Sequence[str]) -> DataError:
    more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return DataError(
        "HANSA-DATA-INVALID",
        rule="Every line of a file of devices must be right before a run begins.",
        found=f"{path}: {'; '.join(problems[:_LISTED])}{more}.",
        action="Mend the lines, or remove devices.path and use a preset.",
    )
