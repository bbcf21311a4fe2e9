"""How much memory there is to be had."""

from __future__ import annotations

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
