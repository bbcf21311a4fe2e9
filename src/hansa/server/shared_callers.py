"""Who called lately, whichever replica: what admission "checked-in" picks from.

Check-ins write nothing. Where a population is admitted so, each replica writes, now and then, one row with the numbers
of all that called it since its last one; whoever opens a round takes them together with those that called itself. So
a replica that was started a moment ago picks from the same clients as one that heard them all.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from hansa.core.layout import Int64s
from hansa.server.services import Services
from hansa.store.numbers import among_packed, packed
from hansa.store.store import Rows

_INTERVALS: Final = 3.0
"""Check-in intervals within which a client must have called to be picked: the window."""
_PART: Final = 0.1
"""Part of the window that a replica lets pass between two rows: so long, at most, do others not know who called it."""
_SELDOM: Final = 5.0
"""Seconds, at least, between two rows, and so of a check-in interval."""


def window(services: Services, size: int) -> float:
    """Return within how many seconds clients of a population of some size must have called to be picked."""
    return _INTERVALS * max(services.pace.interval(size), services.settings.long_poll_seconds, _SELDOM)


async def recent_callers(services: Services, rows: Rows, population: str) -> Int64s:
    """Return the numbers of the clients that called any replica within the window, in order: int64 [n]."""
    size = await rows.clients.size(population)
    since = services.clock.now() - window(services, size)
    told = await rows.recent_callers.since(population, since)
    among = await asyncio.to_thread(among_packed, told, size)
    own = services.board.callers.recent(population, since)
    among[own[own < size]] = True  # who enrolled since these rows were read is picked next time
    return np.flatnonzero(among).astype(np.int64)


@dataclass
class SharedCallers:
    """Tells other replicas, and this one after a restart, who called."""

    services: Services
    shared: dict[str, float] = field(default_factory=dict)
    """Population -> until when its calls are told, or need not be."""
    due: dict[str, float] = field(default_factory=dict)
    """Population -> when to look again."""

    async def share(self, *, at_once: bool = False) -> None:
        """Write a row for each population that is due, or for all of them ``at_once``."""
        now = self.services.clock.now()
        for population in tuple(self.services.board.callers.times):
            if at_once or now >= self.due.get(population, -math.inf):
                await self._share(population, now)

    async def _share(self, population: str, now: float) -> None:
        services = self.services
        async with services.store.reading() as rows:
            found = await rows.populations.get(population)
            seconds = window(services, await rows.clients.size(population))
        since = max(self.shared.get(population, -math.inf), now - seconds)
        callers = services.board.callers.recent(population, since)
        if found is not None and found.admission == "checked-in" and len(callers):
            content = await asyncio.to_thread(packed, callers)
            async with services.store.transaction() as rows:
                await rows.recent_callers.add(population, content, at=now)
                await rows.recent_callers.forget(now - seconds, population=population)
        self.shared[population] = now
        self.due[population] = now + max(_SELDOM, _PART * seconds)
