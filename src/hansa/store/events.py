"""What happened, append-only, and which clients changed, as feeds that miss nothing.

Both are written when a transaction is about to commit, after a lock that is held till then: numbers are in the order
of the commits, so whoever has read up to a number will never find a smaller one later. The lock is the last one taken,
so nobody waits in a circle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import bindparam, delete, insert, select, text

from hansa.store import tables
from hansa.store.connections import Connection
from hansa.store.records import Event

_E: Final = tables.events.c
_ADD: Final = insert(tables.events)
_ALL: Final = select(_E.number, _E.tenant, _E.at, _E.kind, _E.run, _E.client, _E.detail)
_AFTER: Final = (
    _ALL.where(_E.tenant == bindparam("tenant"), _E.number > bindparam("after"))
    .order_by(_E.number)
    .limit(bindparam("count"))
)
_NEWEST: Final = _ALL.where(_E.tenant == bindparam("tenant")).order_by(_E.number.desc()).limit(bindparam("count"))
_OF_RUN: Final = _ALL.where(_E.run == bindparam("run")).order_by(_E.number.desc()).limit(bindparam("count"))
_FORGET: Final = delete(tables.events).where(_E.at < bindparam("before"))
_ADD_CHANGES: Final = insert(tables.client_changes)
_LOCK: Final = text("SELECT pg_advisory_xact_lock(hashtextextended(:feed, 0))")


@dataclass
class Pending:
    """What a transaction will write to the feeds when it commits."""

    events: list[dict[str, Any]] = field(default_factory=list)
    clients: dict[str, None] = field(default_factory=dict)

    def tell(  # noqa: PLR0913 - what an event is made of
        self,
        kind: str,
        *,
        tenant: str,
        at: float,
        run: str | None = None,
        client: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Take note of an event."""
        told = {"tenant": tenant, "at": at, "kind": kind, "run": run, "client": client, "detail": dict(detail or {})}
        self.events.append(told)

    async def write(self, connection: Connection) -> None:
        """Write it."""
        feeds = ["hansa:clients"] * bool(self.clients)
        feeds += sorted({f"hansa:events:{event['tenant']}" for event in self.events})
        if connection.dialect == "postgresql":
            for feed in feeds:
                await connection.rows(_LOCK, {"feed": feed})
        await connection.run_many(_ADD_CHANGES, [{"client": client} for client in self.clients])
        await connection.run_many(_ADD, self.events)


class Events:
    """What happened. Nothing of a client's data may be in a detail, and no secret."""

    def __init__(self, connection: Connection, pending: Pending) -> None:
        self._on = connection
        self._pending = pending

    async def add(  # noqa: PLR0913 - what an event is made of
        self,
        kind: str,
        *,
        tenant: str,
        at: float,
        run: str | None = None,
        client: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Tell an event. It is written, and gets its number, when the transaction commits."""
        self._pending.tell(kind, tenant=tenant, at=at, run=run, client=client, detail=detail)

    async def after(self, tenant: str, number: int, limit: int) -> list[Event]:
        """Return a tenant's events after a number, in order."""
        rows = await self._on.rows(_AFTER, {"tenant": tenant, "after": number, "count": limit})
        return [Event(*row) for row in rows]

    async def newest(self, tenant: str, limit: int) -> list[Event]:
        """Return a tenant's last events, in order."""
        rows = await self._on.rows(_NEWEST, {"tenant": tenant, "count": limit})
        return [Event(*row) for row in reversed(rows)]

    async def of_run(self, run: str, limit: int) -> list[Event]:
        """Return the last events of a run, in order."""
        rows = await self._on.rows(_OF_RUN, {"run": run, "count": limit})
        return [Event(*row) for row in reversed(rows)]

    async def forget(self, before: float) -> int:
        """Remove the events of all tenants before a moment; return how many. Only retention may."""
        return await self._on.run(_FORGET, {"before": before})
