"""Reports: one for each assignment, whatever comes how often."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import and_, bindparam, delete, insert, select, update

from hansa.core.errors import StoreConflictError
from hansa.store import tables
from hansa.store.connections import AnyRow, Connection, first
from hansa.store.dialects import among
from hansa.store.records import Report, RoundKey
from hansa.store.rounds import key_values

_R: Final = tables.reports.c
_ADD: Final = insert(tables.reports)
_THESE: Final = and_(
    _R.run == bindparam("of_run"),
    _R.kind == bindparam("of_kind"),
    _R.round == bindparam("of_round"),
    _R.attempt == bindparam("of_attempt"),
)
_ALL: Final = select(_R.client, _R.position, _R.sha256, _R.size, _R.blob, _R.received_at, _R.folded).where(_THESE)
_OF: Final = _ALL.order_by(_R.position)
_GET: Final = _ALL.where(_R.client == bindparam("of_client"))
_WAITING: Final = _OF.where(_R.folded == 0).limit(bindparam("count"))
_FOLDED: Final = select(_R.client).where(_THESE, _R.folded > 0, among(_R.client, "of_clients"))
_FOLD: Final = (
    update(tables.reports)
    .where(_THESE, _R.folded == 0, among(_R.client, "of_clients"))
    .values(folded=bindparam("number"))
)
_REMOVE: Final = delete(tables.reports).where(_THESE)


class Reports:
    """The reports of all rounds."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def add(self, reports: Sequence[Report]) -> None:
        """Record reports. Raises StoreConflictError where a client has reported in that round, or is not asked there.

        Whoever looks first locks the client's assignment.
        """
        await self._on.run_many(_ADD, [_values(report) for report in reports])

    async def of(self, key: RoundKey) -> list[Report]:
        """Return a round's reports, by position."""
        return [_report(key, row) for row in await self._on.rows(_OF, key_values(key))]

    async def get(self, key: RoundKey, client: str) -> Report | None:
        """Return a client's report in a round."""
        row = await first(self._on, _GET, {**key_values(key), "of_client": client})
        return None if row is None else _report(key, row)

    async def waiting(self, key: RoundKey, count: int) -> list[Report]:
        """Return reports of a round that are in no partial sum, so many at most, by position."""
        return [_report(key, row) for row in await self._on.rows(_WAITING, {**key_values(key), "count": count})]

    async def fold(self, key: RoundKey, clients: Collection[str], number: int) -> None:
        """Note that the updates of some clients are in a partial sum. StoreConflictError: one is in another."""
        values = {**key_values(key), "of_clients": sorted(clients), "number": number}
        if await self._on.run(_FOLD, values) != len(clients):
            raise StoreConflictError(f"A partial sum of {key.name}")

    async def folded(self, key: RoundKey, clients: Collection[str]) -> frozenset[str]:
        """Return those of some clients whose updates are in a partial sum."""
        rows = await self._on.rows(_FOLDED, {**key_values(key), "of_clients": sorted(clients)})
        return frozenset(row[0] for row in rows)

    async def remove(self, key: RoundKey) -> None:
        """Forget the reports of a round. Only for one that was abandoned: what is counted stays on record."""
        await self._on.run(_REMOVE, key_values(key))


def _report(key: RoundKey, row: AnyRow) -> Report:
    return Report(key, *row)


def _values(report: Report) -> dict[str, Any]:
    of = report.round
    return {
        "run": of.run,
        "kind": of.kind,
        "round": of.round,
        "attempt": of.attempt,
        "client": report.client,
        "position": report.position,
        "sha256": report.sha256,
        "size": report.size,
        "blob": report.blob,
        "received_at": report.received_at,
    }
