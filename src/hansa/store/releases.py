"""Releases: the models that closed rounds gave."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from sqlalchemy import bindparam, select, update

from hansa.core.errors import StoreConflictError
from hansa.store import tables
from hansa.store.connections import Connection, first
from hansa.store.dialects import insert_once
from hansa.store.records import Release, Stage

_R: Final = tables.releases.c
_ADD: Final = insert_once(tables.releases, returning=_R.run)
_ALL: Final = select(_R.tenant, _R.run, _R.round, _R.sha256, _R.stage, _R.at)
_GET: Final = (
    _ALL.where(_R.tenant == bindparam("tenant"), _R.sha256 == bindparam("sha256")).order_by(_R.at.desc()).limit(1)
)
_OF: Final = _ALL.where(_R.tenant == bindparam("tenant")).order_by(_R.at.desc(), _R.run, _R.round.desc())
_OF_RUN: Final = _OF.where(_R.run == bindparam("run"))
_SET_STAGE: Final = (
    update(tables.releases)
    .where(_R.tenant == bindparam("whose"), _R.sha256 == bindparam("which"))
    .values(stage=bindparam("stage"))
)


class Releases:
    """The releases of all tenants."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def add(self, release: Release) -> None:
        """Keep a release. Raises StoreConflictError where that round has given one."""
        if not await self._on.rows(_ADD, asdict(release)):
            raise StoreConflictError(f"The release of round {release.round}")

    async def get(self, tenant: str, sha256: str) -> Release | None:
        """Return a tenant's release of a model by its digest: the latest, where several rounds gave the same model."""
        row = await first(self._on, _GET, {"tenant": tenant, "sha256": sha256})
        return None if row is None else Release(*row)

    async def of(self, tenant: str, run: str | None = None, *, limit: int | None = None) -> list[Release]:
        """Return a tenant's releases, or those of one of its runs, the latest first."""
        values = {"tenant": tenant, **({} if run is None else {"run": run})}
        statement = _OF if run is None else _OF_RUN
        rows = await self._on.rows(statement if limit is None else statement.limit(limit), values)
        return [Release(*row) for row in rows]

    async def set_stage(self, tenant: str, sha256: str, stage: Stage) -> Release | None:
        """Put a tenant's model into a stage; return its release, or None where there is none."""
        await self._on.run(_SET_STAGE, {"whose": tenant, "which": sha256, "stage": stage})
        return await self.get(tenant, sha256)
