"""How much memory there is to be had, and giving back what is not needed any more."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")


def free_memory() -> float:
    """Return the bytes of memory that programs can have."""
    with suppress(OSError, StopIteration):
        lines = _MEMINFO.read_text(encoding="utf-8").splitlines()
        return 1024 * float(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    return 2.0**32


def give_back_memory() -> None:
    """Return memory that this process has freed to the system, where the C library is glibc.

    It keeps what small arrays took, and takes more for the next ones, which often do not fit between what is still in
    use. Each page costs time when it is taken again: this is for the end of a phase, not of a step.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
