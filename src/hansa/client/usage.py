"""The bytes that a client sent and received today, for a policy that limits them."""

from __future__ import annotations

import time
from typing import Any, Final

from hansa.client.state import StateFolder
from hansa.core.clock import Clock

USAGE: Final = "usage.json"
_UNWRITTEN: Final = 8 * 2**20
"""Bytes, at most, that came and that a process which is killed forgets. What it sends is on disk before it leaves."""


class Usage:
    """Counts bytes by the local day; kept on disk where a limit is set, so that no restart begins a new day."""

    def __init__(self, state: StateFolder, clock: Clock, *, kept: bool) -> None:
        self._state, self._clock, self._kept = state, clock, kept
        nothing = {"day": "", "up": 0, "down": 0}
        self._counts: dict[str, Any] = (state.read_json(USAGE) or nothing) if kept else nothing
        self._unwritten = 0

    def today(self) -> int:
        """Return the bytes sent and received today."""
        self._new_day()
        return int(self._counts["up"] + self._counts["down"])

    def count(self, up: int, down: int) -> None:
        """Add bytes; those that go up are on disk when this returns."""
        self._new_day()
        self._counts["up"] += up
        self._counts["down"] += down
        self._unwritten += up + down
        if up or self._unwritten >= _UNWRITTEN:
            self.write()

    def write(self) -> None:
        """Bring the counts to disk."""
        if self._kept and self._unwritten:
            self._state.write_json(USAGE, self._counts)
        self._unwritten = 0

    def _new_day(self) -> None:
        day = time.strftime("%Y-%m-%d", time.localtime(self._clock.now()))
        if self._counts["day"] != day:
            self._counts = {"day": day, "up": 0, "down": 0}
