"""Runs: changed by whoever read their last version, looked after by whoever holds their lease."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from sqlalchemy import bindparam, case, exists, or_, select, update

from hansa.core.errors import StoreConflictError
from hansa.store import tables
from hansa.store.connections import Connection, first
from hansa.store.dialects import among, insert_once
from hansa.store.records import Run, RunState

_R: Final = tables.runs.c
_ADD: Final = insert_once(tables.runs, returning=_R.id)
_CHANGED: Final = ("state", "round", "model", "slots", "notes", "priority", "ended_at", "why")
"""What a change writes; the lease has a life of its own."""
_ALL: Final = select(
    _R.id,
    _R.tenant,
    _R.job,
    _R.population,
    _R.state,
    _R.version,
    _R.round,
    _R.model,
    _R.slots,
    _R.notes,
    _R.priority,
    _R.started_at,
    _R.ended_at,
    _R.why,
    _R.lease_owner,
    _R.lease_until,
)
_BY_ID: Final = _ALL.where(_R.id == bindparam("id"))
_LOCKED: Final = _BY_ID.with_for_update()
_OF: Final = (
    _ALL.where(_R.tenant == bindparam("tenant")).order_by(_R.started_at.desc(), _R.id).limit(bindparam("count"))
)
_GOING_ON: Final = _ALL.where(_R.state.in_(["running", "paused"])).order_by(_R.id)
_OF_STATE: Final = _OF.where(_R.state == bindparam("state"))
_CHANGE: Final = (
    update(tables.runs)
    .where(_R.id == bindparam("which"), _R.version == bindparam("read"))
    .values(version=_R.version + 1, **{name: bindparam(name) for name in _CHANGED})
)
_HAS_OPEN_ROUND: Final = exists().where(
    tables.rounds.c.run == _R.id, tables.rounds.c.state.not_in(["closed", "abandoned"])
)
_OURS: Final = _R.lease_owner == bindparam("owner")
_FREE: Final = (
    _ALL.where(
        or_(_R.state == "running", _HAS_OPEN_ROUND),
        or_(_R.lease_owner.is_(None), _OURS, _R.lease_until <= bindparam("now")),
    )
    .order_by(case((_OURS, 0), else_=1), _R.priority.desc(), _R.started_at, _R.id)
    .limit(bindparam("count"))
    .with_for_update(skip_locked=True, of=tables.runs)
)
_TAKE: Final = (
    update(tables.runs)
    .where(among(_R.id, "which"))
    .values(lease_owner=bindparam("owner"), lease_until=bindparam("until"))
)
_RELEASE: Final = update(tables.runs).where(_OURS).values(lease_owner=None, lease_until=0.0)


class Runs:
    """The runs of all tenants."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def add(self, run: Run) -> None:
        """Keep a run. Raises StoreConflictError where there is one with that id."""
        values = {name: getattr(run, name) for name in Run.__dataclass_fields__}
        if not await self._on.rows(_ADD, {**values, "notes": dict(run.notes)}):
            raise StoreConflictError(f"The run {run.id}")

    async def get(self, run: str, *, for_change: bool = False) -> Run | None:
        """Return a run by its id; ``for_change``: nobody else changes it before this transaction ends."""
        row = await first(self._on, _LOCKED if for_change else _BY_ID, {"id": run})
        return None if row is None else Run(*row)

    async def of(self, tenant: str, *, state: RunState | None = None, limit: int) -> list[Run]:
        """Return a tenant's runs, the latest first."""
        values = {"tenant": tenant, "count": limit, **({} if state is None else {"state": state})}
        return [Run(*row) for row in await self._on.rows(_OF if state is None else _OF_STATE, values)]

    async def going_on(self) -> list[Run]:
        """Return the runs of all tenants that have not ended. For the server itself."""
        return [Run(*row) for row in await self._on.rows(_GOING_ON)]

    async def change(self, run: Run) -> Run:
        """Write a run anew, its lease apart; return it. Raises StoreConflictError if another changed it."""
        values: dict[str, Any] = {name: getattr(run, name) for name in _CHANGED}
        values |= {"notes": dict(run.notes), "which": run.id, "read": run.version}
        if await self._on.run(_CHANGE, values) != 1:
            raise StoreConflictError(f"The run {run.id}")
        return replace(run, version=run.version + 1)

    async def lease(self, owner: str, *, now: float, seconds: float, limit: int) -> list[Run]:
        """Take the runs that nobody else looks after, and keep those that are this owner's; return them.

        Those are the running ones, and others that still have an open round. A lease of which more than half is left
        is not written anew, so that a tick without work writes nothing.
        """
        rows = await self._on.rows(_FREE, {"owner": owner, "now": now, "count": limit})
        found = [Run(*row) for row in rows]
        ends = {run.id for run in found if run.lease_owner != owner or run.lease_until < now + seconds / 2}
        if ends:
            await self._on.run(_TAKE, {"which": sorted(ends), "owner": owner, "until": now + seconds})
        return [replace(run, lease_owner=owner, lease_until=now + seconds) if run.id in ends else run for run in found]

    async def release(self, owner: str) -> None:
        """Let go of all leases of an owner."""
        await self._on.run(_RELEASE, {"owner": owner})
