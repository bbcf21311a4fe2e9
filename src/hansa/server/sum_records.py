"""The machine of a secure sum and its records at rest: sealed one by one, each bound to its place.

The first record holds the public keys of the sum's clients, the next one what others prepared, if others are asked
before it begins, and all that follow are the machine's own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Final

from hansa.secagg.keys import Signer
from hansa.secagg.protocols import Server, restore_server, start_server
from hansa.secagg.records import closes_phase
from hansa.secagg.step import Step
from hansa.server.contexts import RunContext
from hansa.server.held_sums import Held
from hansa.server.rounds_at_rest import sum_binding
from hansa.server.secure_tasks import Prepared, convention_of, is_prepared
from hansa.store.records import Round, RoundKey, SumRecord
from hansa.store.sealing import seal, unseal
from hansa.store.store import Rows

_THREADS: Final = len(os.sched_getaffinity(0))
"""On which masks are taken off a sum: the processors that the server may use."""
_KEY_BYTES: Final = 32


async def start(
    context: RunContext, round_: Round, identities: Sequence[bytes], signer: Signer, prepared: Prepared | None = None
) -> tuple[Server, Step]:
    """Return a new machine, and the first step of its sum."""
    convention = convention_of(context, round_, identities=identities, signer=signer, prepared=prepared or Prepared())
    return await asyncio.to_thread(start_server, convention, threads=_THREADS)


async def restore(
    held: Held, records: Sequence[SumRecord], context: RunContext, round_: Round, signer: Signer
) -> Step | None:
    """Make a sum's machine of its records; return what it tells whom, or None while the sum has not begun.

    Raises one of ``hansa.secagg.records.DAMAGE`` where records are missing or damaged, or are of another version.
    """
    contents, prepared = [_unsealed(held.key, round_.id, each) for each in records], is_prepared(context)
    first = 2 if prepared else 1
    if len(records) <= first:
        return None
    convention = convention_of(
        context,
        round_,
        identities=_split(contents[0]),
        signer=signer,
        prepared=Prepared.decode(contents[1]) if prepared else Prepared(),
    )
    held.server, step = await asyncio.to_thread(restore_server, convention, contents[first:], threads=_THREADS)
    closed = [each.at for each, content in zip(records, contents, strict=True) if closes_phase(content)]
    held.since = closed[-1] if closed else records[first].at
    return step


async def add(  # noqa: PLR0913, PLR0917 - where records go, and what seals them
    rows: Rows, of: RoundKey, key: bytes, part: int, place: int, contents: Sequence[Any], now: float
) -> None:
    """Write records of a part of a round's sums, from a place on. Raises StoreConflictError where one is taken."""
    sealed = [
        SumRecord(at, b"".join(seal(key, sum_binding(of, part, at), [bytes(content)])), now, part)
        for at, content in enumerate(contents, place)
    ]
    await rows.sums.add(of, sealed)


def identities_of(records: Sequence[SumRecord], part: int, *, of: RoundKey, key: bytes) -> list[bytes]:
    """Return the public keys of the clients of a part of a round's sums, in their order."""
    first = next(each for each in records if (each.part, each.place) == (part, 0))
    return _split(_unsealed(key, of, first))


def _split(joined: bytes) -> list[bytes]:
    return [joined[start : start + _KEY_BYTES] for start in range(0, len(joined), _KEY_BYTES)]


def _unsealed(key: bytes, of: RoundKey, record: SumRecord) -> bytes:
    return b"".join(unseal(key, sum_binding(of, record.part, record.place), [record.content]))
