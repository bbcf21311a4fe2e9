"""Who took part in a run when, and how often: what samplers ask for."""

from __future__ import annotations

from typing import Final

import numpy as np
from sqlalchemy import and_, bindparam, select, text

from hansa.core.layout import Int64s
from hansa.store import tables
from hansa.store.connections import Connection
from hansa.store.dialects import PerDialect, among_numbers, joined, listed
from hansa.store.numbers import numbers_of, parsed, wanted_of

_P: Final = tables.participation.c
_MANY: Final = 20_000
_SOME: Final = select(joined(_P.number, _P.last_round, _P.times)).where(
    and_(_P.run == bindparam("run"), among_numbers(_P.number, "numbers"))
)
_BETWEEN: Final = select(joined(_P.number, _P.last_round, _P.times)).where(
    _P.run == bindparam("run"), _P.number.between(bindparam("low"), bindparam("high"))
)
_UPSERT: Final = """
INSERT INTO participation (run, number, last_round, times)
SELECT :run, CAST(value AS BIGINT), :round, 1 FROM {numbers} WHERE true
ON CONFLICT (run, number) DO UPDATE SET last_round = excluded.last_round, times = participation.times + 1
WHERE participation.last_round < excluded.last_round
"""
_RECORD: Final = PerDialect(
    text(_UPSERT.format(numbers="json_each(:numbers)")).bindparams(listed("numbers")),
    text(_UPSERT.format(numbers="unnest(CAST(:numbers AS BIGINT[])) AS value")).bindparams(listed("numbers")),
)


class Participation:
    """The participation of all runs."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def of(self, run: str, numbers: Int64s) -> tuple[Int64s, Int64s]:
        """Return the last round in which each took part (-1: none), and how often: int64 [n] each."""
        last = np.full(len(numbers), -1, dtype=np.int64)
        times = np.zeros(len(numbers), dtype=np.int64)
        if len(numbers) == 0:
            return last, times
        if len(numbers) > _MANY:
            bounds = {"run": run, "low": int(numbers.min()), "high": int(numbers.max())}
            rows = await self._on.rows(_BETWEEN, bounds, long=True)
        else:
            rows = await self._on.rows(_SOME, {"run": run, "numbers": wanted_of(numbers)}, long=len(numbers) > 500)
        found = parsed(rows[0][0]).reshape(-1, 3)
        if len(found):
            order, known = numbers_of(found[:, 0], numbers)
            last[known] = found[order, 1]
            times[known] = found[order, 2]
        return last, times

    async def record(self, run: str, numbers: Int64s, round_: int) -> None:
        """Take note that some took part in a round. The same round again changes nothing."""
        if len(numbers):
            await self._on.run(_RECORD, {"run": run, "numbers": wanted_of(numbers), "round": round_})
