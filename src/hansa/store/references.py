"""Which blobs the rows of all tenants refer to: what no row refers to may go."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select, union

from hansa.store import tables
from hansa.store.connections import Connection

_RUNS: Final = tables.runs.c
_JOBS: Final = tables.jobs.c
_ROUNDS: Final = tables.rounds.c
_REFERRED: Final = union(
    select(_RUNS.model),
    select(_RUNS.slots).where(_RUNS.slots.is_not(None)),
    select(_JOBS.model),
    select(_JOBS.descriptor),
    select(tables.releases.c.sha256),
    select(_ROUNDS.model).where(_ROUNDS.state.not_in(["closed", "abandoned"])),
)


class References:
    """What rows refer to outside the database. For the server itself."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def digests(self) -> frozenset[str]:
        """Return the digests of the models, slots and job descriptors that a row refers to."""
        return frozenset(row[0] for row in await self._on.rows(_REFERRED, long=True))
