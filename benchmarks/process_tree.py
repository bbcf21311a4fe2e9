"""A command and everything it starts: its memory, sampled from outside, and its end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SET_CHILD_SUBREAPER: Final = 36
"""prctl(2): orphans of the tree become this process's children, so that none is lost from sight."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PROC: Final = Path("/proc")


def adopt_orphans() -> None:
    """Make this process the parent of every orphan among its descendants (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Return the ids of all processes below one, itself left out."""
    found: list[int] = []
    waiting = [root]
    while waiting:
        folder = _PROC / str(waiting.pop()) / "task"
        with contextlib.suppress(OSError):
            for thread in os.listdir(folder):  # noqa: PTH208 - called 40 times a second
                with contextlib.suppress(OSError):
                    children = [int(child) for child in (folder / thread / "children").read_text().split()]
                    found += children
                    waiting += children
    return found


def resident(process: int) -> int:
    """Return the resident set of a process in bytes, 0 if it is gone."""
    try:
        return int((_PROC / str(process) / "statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def proportional(process: int) -> int:
    """Return the proportional set of a process in bytes (shared pages counted in parts), 0 if it is gone."""
    with contextlib.suppress(OSError):
        for line in (_PROC / str(process) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


@dataclass
class Peak:
    """The largest sums seen.

    The resident sum is cheap and read each time. The proportional one makes the kernel walk all pages of a process,
    so it is read as often as that takes at most a fiftieth of the time.
    """

    resident: int = 0
    proportional: int = 0
    processes: int = 0
    _next: float = 0.0

    def look(self) -> None:
        """Take a sample of all descendants of this process."""
        tree = descendants(os.getpid())
        self.processes = max(self.processes, len(tree))
        self.resident = max(self.resident, sum(map(resident, tree)))
        now = time.monotonic()
        if now >= self._next:
            self.proportional = max(self.proportional, sum(map(proportional, tree)))
            self._next = now + max(0.045, 50 * (time.monotonic() - now))


def end_all(patience: float = 5.0) -> None:
    """End what is left of the tree and reap it."""
    for name in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + patience
        for process in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, name)
        while descendants(os.getpid()) and time.monotonic() < until:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            time.sleep(0.01)
