"""What a file is whatever it is called, by its first bytes; and where a text is not UTF-8."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Final

_MAGIC: Final = (
    (b"\x1f\x8b", "it is packed by gzip", "Unpack it first (gunzip)."),
    (b"BZh", "it is packed by bzip2", "Unpack it first (bunzip2)."),
    (b"\xfd7zXZ", "it is packed by xz", "Unpack it first (unxz)."),
    (b"PAR1", "it is a Parquet file", 'Set source = "parquet"; its name ends with .parquet.'),
    (b"\x93NUMPY", "it is a single array (.npy)", 'Write X and y with numpy.savez, and set source = "npz".'),
    (b"\xd0\xcf\x11\xe0", "it is an Excel workbook", "Save it as CSV (UTF-8)."),
    (b"\xff\xfe", "it is text in UTF-16", "Save it as UTF-8."),
    (b"\xfe\xff", "it is text in UTF-16", "Save it as UTF-8."),
)


def recognised(path: Path) -> tuple[str, str] | None:
    """Return what a file is that is no plain text, and what to do with it; None where it is not known."""
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"PK"):
        return _zipped(path)
    return next(((what, action) for magic, what, action in _MAGIC if head.startswith(magic)), None)


def not_utf8(path: Path) -> str:
    """Return which line of a text is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"line {number} is not UTF-8"
    return "it is not UTF-8"


def _zipped(path: Path) -> tuple[str, str] | None:
    """Return what a ZIP file holds: arrays, a workbook, or something else; None where it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "it is a damaged ZIP or .npz archive", "Write it again."
    if any(name.endswith(".npy") for name in names):
        return "it is an .npz archive of arrays", 'Set source = "npz"; its name ends with .npz.'
    if any(name.startswith("xl/") for name in names):
        return "it is an Excel workbook", "Save it as CSV (UTF-8)."
    return "it is a zip archive", "Unpack it first."
