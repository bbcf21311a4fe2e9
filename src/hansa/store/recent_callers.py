"""Who called lately, as replicas tell each other: now and then a row with the numbers of all that did.

Whose row it is does not matter to anybody, so none says it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam, delete, insert, select

from hansa.store import tables
from hansa.store.connections import Connection

_R: Final = tables.recent_callers.c
_ADD: Final = insert(tables.recent_callers)
_SINCE: Final = select(_R.callers).where(_R.population == bindparam("population"), _R.at >= bindparam("since"))
_FORGET: Final = delete(tables.recent_callers).where(_R.at < bindparam("before"))
_FORGET_OF: Final = _FORGET.where(_R.population == bindparam("population"))


class RecentCallers:
    """The recent callers of all populations, as :func:`hansa.store.numbers.packed` makes them."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def add(self, population: str, callers: bytes, *, at: float) -> None:
        """Take note of the numbers of clients that called since the last time, packed."""
        await self._on.run(_ADD, {"population": population, "callers": callers, "at": at})

    async def since(self, population: str, at: float) -> list[bytes]:
        """Return what was noted from a moment on."""
        rows = await self._on.rows(_SINCE, {"population": population, "since": at})
        return [bytes(row[0]) for row in rows]

    async def forget(self, before: float, *, population: str | None = None) -> None:
        """Remove what was noted before a moment, of one population or of all."""
        if population is None:
            await self._on.run(_FORGET, {"before": before})
        else:
            await self._on.run(_FORGET_OF, {"before": before, "population": population})
