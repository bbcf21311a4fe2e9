"""How a process that serves uses memory: it keeps what it will need again at once."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_ARENAS: Final = (-8, 1)
_TRIM: Final = (-1, 64 << 20)
_MAPPED: Final = (-3, 32 << 20)
"""Options of mallopt(3) and their values: M_ARENA_MAX, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD."""
_YOUNG: Final = 10_000
"""Objects more than were freed, after which Python looks for cycles: those of a few calls, not of each."""


def keep_freed() -> None:
    """Let the C library keep up to 64 MiB of what is freed, in one heap for all threads.

    A body of a megabyte is freed once it is on disk. Given back to the system, and taken again for the next one, each
    of its pages is a fault and is cleared anew. What is larger than 32 MiB is still given back at once. Only glibc is
    told: other C libraries have no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in (_ARENAS, _TRIM, _MAPPED):
            mallopt(option, value)


def look_less_for_cycles() -> None:
    """Leave what is there out of all searches for cycles, and search less often: whoever calls waits meanwhile."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
