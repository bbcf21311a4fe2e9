"""Time, as a server and a client read it; a test brings a clock of its own."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> float:
        """Return Unix time in seconds."""


class SystemClock:
    """The clock of this machine."""

    def now(self) -> float:
        """Return Unix time in seconds."""
        return time.time()
