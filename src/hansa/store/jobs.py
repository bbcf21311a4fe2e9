"""Jobs: plans submitted to a population."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from sqlalchemy import bindparam, select

from hansa.core.errors import StoreConflictError
from hansa.store import tables
from hansa.store.connections import Connection, first
from hansa.store.dialects import insert_once
from hansa.store.records import Job

_J: Final = tables.jobs.c
_ADD: Final = insert_once(tables.jobs, returning=_J.id)
_ALL: Final = select(
    _J.id,
    _J.tenant,
    _J.population,
    _J.name,
    _J.plan,
    _J.plan_sha256,
    _J.descriptor,
    _J.model,
    _J.eligibility,
    _J.priority,
    _J.submitted_by,
    _J.submitted_at,
)
_BY_ID: Final = _ALL.where(_J.id == bindparam("id"))
_OF: Final = (
    _ALL.where(_J.tenant == bindparam("tenant")).order_by(_J.submitted_at.desc(), _J.id).limit(bindparam("count"))
)


class Jobs:
    """The jobs of all tenants."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def add(self, job: Job) -> None:
        """Keep a job. Raises StoreConflictError where there is one with that id."""
        if not await self._on.rows(_ADD, {**asdict(job), "plan": dict(job.plan)}):
            raise StoreConflictError(f"The job {job.id}")

    async def get(self, job: str) -> Job | None:
        """Return a job by its id."""
        row = await first(self._on, _BY_ID, {"id": job})
        return None if row is None else Job(*row)

    async def of(self, tenant: str, limit: int) -> list[Job]:
        """Return a tenant's jobs, the latest first."""
        return [Job(*row) for row in await self._on.rows(_OF, {"tenant": tenant, "count": limit})]
