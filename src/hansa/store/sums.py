"""The records of secure sums: what a round's machine needs to go on after a crash, in order, each at one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import and_, bindparam, delete, func, select

from hansa.core.errors import StoreConflictError
from hansa.store import tables
from hansa.store.connections import Connection
from hansa.store.dialects import insert_once
from hansa.store.records import RoundKey, SumRecord
from hansa.store.rounds import key_values

_S: Final = tables.sum_records.c
_ADD: Final = insert_once(tables.sum_records, returning=_S.place)
_THESE: Final = and_(
    _S.run == bindparam("of_run"),
    _S.kind == bindparam("of_kind"),
    _S.round == bindparam("of_round"),
    _S.attempt == bindparam("of_attempt"),
)
_OF: Final = select(_S.place, _S.content, _S.at, _S.part).where(_THESE).order_by(_S.part, _S.place)
_COUNTS: Final = select(_S.part, func.count()).where(_THESE).group_by(_S.part)
_REMOVE: Final = delete(tables.sum_records).where(_THESE)


class Sums:
    """The records of all secure sums. Their contents are sealed by whoever adds them."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def add(self, key: RoundKey, records: Sequence[SumRecord]) -> None:
        """Append records. Raises StoreConflictError where another replica has put one at such a place."""
        for each in records:
            values = {
                "run": key.run,
                "kind": key.kind,
                "round": key.round,
                "attempt": key.attempt,
                "part": each.part,
                "place": each.place,
                "content": each.content,
                "at": each.at,
            }
            if not await self._on.rows(_ADD, values):
                raise StoreConflictError(f"Record {each.place} of the sum of {key.name}")

    async def of(self, key: RoundKey) -> list[SumRecord]:
        """Return the records of a round's sums, one sum after another, each in order."""
        return [SumRecord(*row) for row in await self._on.rows(_OF, key_values(key))]

    async def counts(self, key: RoundKey) -> dict[int, int]:
        """Return how many records each sum of a round has."""
        return {part: count for part, count in await self._on.rows(_COUNTS, key_values(key))}  # noqa: C416 - rows

    async def remove(self, key: RoundKey) -> None:
        """Forget the records of a round that is over."""
        await self._on.run(_REMOVE, key_values(key))
