"""Which blobs the rows of all tenants refer to: what no row refers to may go."""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam, or_, select, union

from hansa.store import tables
from hansa.store.connections import Connection

_RUNS: Final = tables.runs.c
_JOBS: Final = tables.jobs.c
_ROUNDS: Final = tables.rounds.c
_RELEASES: Final = tables.releases.c
_IN_USE: Final = ("canary", "production")
_REFERRED: Final = union(
    select(_RUNS.model),
    select(_RUNS.slots).where(_RUNS.slots.is_not(None)),
    select(_JOBS.model),
    select(_JOBS.descriptor),
    select(_RELEASES.sha256)
    .join(tables.runs, _RUNS.id == _RELEASES.run)
    .where(or_(_RUNS.ended_at.is_(None), _RUNS.ended_at >= bindparam("ended"), _RELEASES.stage.in_(_IN_USE))),
    select(_ROUNDS.model).where(_ROUNDS.state.not_in(["closed", "abandoned"])),
)


class References:
    """What rows refer to outside the database. For the server itself."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def digests(self, *, ended: float = 0.0) -> frozenset[str]:
        """Return the digests of the models, slots and job descriptors that a row refers to.

        Of a run that ended before a moment only the last model counts, and those in production or canary.
        """
        return frozenset(row[0] for row in await self._on.rows(_REFERRED, {"ended": ended}, long=True))
