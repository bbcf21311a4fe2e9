"""Secure sums in rounds: the machine of each, its records in the store, and what it tells each client.

A machine is made anew from its records wherever it is needed: any replica takes any message. A record has one place, so
of two replicas that go on from the same state one is refused, forgets its machines and reads what the other wrote. The
masked vectors are reports like any other; their set is frozen in the transaction that holds the machine's record of it.
A cohort that is cut into groups has a sum, and a machine, for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakValueDictionary

from hansa.core.clock import Clock
from hansa.core.errors import RefusedError, StoreConflictError
from hansa.core.killpoints import reached
from hansa.secagg.messages import MAGIC, Masked, header_of
from hansa.secagg.oneshot_messages import Report as OneShot
from hansa.secagg.records import DAMAGE, closes_phase
from hansa.secagg.step import Step
from hansa.server.board import Board
from hansa.server.contexts import RunContext
from hansa.server.decrypting import Decrypting
from hansa.server.freezing import settle
from hansa.server.held_sums import (
    Held,
    HeldRound,
    bounds_of,
    groups_of,
    is_missing,
    machine_of,
    not_asked,
    position_of,
)
from hansa.server.reading import whole_message
from hansa.server.rounds_at_rest import round_name
from hansa.server.secure_tasks import Prepared, is_prepared, not_prepared
from hansa.server.signing import Signer
from hansa.server.sum_records import add, identities_of, restore, start
from hansa.store.blobs import Blobs
from hansa.store.keys import KeyProvider
from hansa.store.records import Assigned, Client, Report, Round, RoundKey, SumRecord
from hansa.store.store import Rows, Store
from hansa.wire.verdicts import ACCEPTED, Verdict

_GONE: Final = ("declined", "refused", "lost", "late")
"""Fates of those who give nothing more: a phase does not wait for them."""
_VECTORS: Final = (Masked.kind, OneShot.kind)
"""Messages that hold a masked vector: they come as reports do, and are no records."""
_CLIENTS_ANSWER: Final = frozenset({"ADVERTISE", "SHARE", "MASK", "CONSIST", "UNMASK", "COLLECT"})
_TRIES: Final = 3
_LOOK_AGAIN: Final = 1.0
"""Seconds after which a client that waits here learns what another replica has for it."""


@dataclass(frozen=True)
class _Signs:
    """The server's key, as the machines want it."""

    signer: Signer

    def sign(self, data: bytes, /) -> bytes:
        return self.signer.sign(data)[0]


@dataclass(frozen=True)
class SecureSums:
    """The secure sums of a server's open rounds.

    ``decryptor_urls``, ``authority_urls``: the decryptors and authorities that are called; ``decryptor_ca``,
    ``authority_ca``: the certificates by which they are trusted.
    """

    store: Store
    blobs: Blobs
    keys: KeyProvider
    signer: Signer
    board: Board
    clock: Clock
    decryptor_urls: Sequence[str] = ()
    decryptor_ca: str = ""
    authority_urls: Sequence[str] = ()
    authority_ca: str = ""
    held: dict[RoundKey, HeldRound] = field(default_factory=dict)
    locks: WeakValueDictionary[RoundKey, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    signs: _Signs = field(init=False)
    decrypting: Decrypting = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "signs", _Signs(self.signer))
        object.__setattr__(self, "decrypting", Decrypting(self, self.signs))

    async def open(self, rows: Rows, context: RunContext, round_: Round, clients: Sequence[Client], key: bytes) -> None:
        """Begin a round's sums, within the transaction that opens the round. Others than clients are asked later."""
        identities = [client.public_key or b"" for client in clients]
        for group, first, size in bounds_of(groups_of(context, len(clients))):
            own = identities[first : first + size]
            records = [b"".join(own)]
            if not is_prepared(context):
                _, step = await start(context, round_, own, self.signs)
                records += map(bytes, step.persist)
            await add(rows, round_.id, key, group, 0, records, round_.opened_at)

    async def announcement(self, context: RunContext, round_: Round, position: int) -> bytes:
        """Return what tells a client of its sum; empty while others are asked, and once it goes on without."""
        async with self.lock(round_.id):
            held, client = (await self.current(context, round_.id)).of(position)
            return held.told.get(client, b"") if held.announces else b""

    async def exchange(  # noqa: PLR0913, PLR0917 - whose message, to which sum, and how long its answer may take
        self, context: RunContext, key: RoundKey, client: Client, message: bytes, seen: int, wait: float, now: float
    ) -> bytes:
        """Take a client's message, if there is one; return the next one to it, or nothing while it is not there.

        A message that answers another than the last one to the client is a repeat: it is not looked at.
        Raises RefusedError for a message that is not acceptable, and where the client has no part in the sum.
        """
        ends = asyncio.get_running_loop().time() + wait
        while True:
            async with self.lock(key):
                round_ = await self.current(context, key)
                position = position_of(round_, client)
                held, number = round_.of(position)
                if message and not held.news_for(number, seen):
                    round_ = await self._take(context, round_, position, message, now)
                    held, number = round_.of(position)
                message = b""
                if told := held.news_for(number, seen):
                    return told
                over, news = held.over or self.board.closing, round_.news
            left = ends - asyncio.get_running_loop().time()
            if over or left <= 0:
                return b""
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LOOK_AGAIN)):
                    await news.wait()

    async def take_masked(  # noqa: PLR0913, PLR0917 - a vector, whose it is, and what records that it has come
        self,
        context: RunContext,
        key: RoundKey,
        client: Client,
        whole: tuple[bytes, bytes],
        record: Callable[[], Awaitable[Verdict]],
        now: float,
    ) -> Verdict:
        """Take a masked vector that is sealed in the blob store: check it, record its report, add it.

        ``whole`` is its message and that one's :func:`~hansa.secagg.known.content_of`.
        Raises RefusedError for one that is not acceptable; nothing is recorded then.
        """
        async with self.lock(key):
            round_ = await self.current(context, key)
            held, number = round_.of(position_of(round_, client))
            _require_own(whole[0], number)
            if header_of(whole[0]).kind not in _VECTORS:
                raise not_asked()
            step = await self.moved(round_, machine_of(held).on_message, *whole)
            try:
                verdict = await record()
            except BaseException:
                self.drop(key)  # it has added what may not be recorded
                raise
            if verdict != ACCEPTED:
                self.drop(key)
                return verdict
            with suppress(StoreConflictError):  # recorded, so whoever reads the reports anew adds it
                await self.apply(round_, held, step, now)
            return verdict

    async def look(self, context: RunContext, key: RoundKey, now: float) -> HeldRound:
        """Return a round's machines, after the deadlines of their phases were kept; others are asked beside it."""
        section = context.plan.secure_aggregation
        preparing = 0.0 if section is None else section.phase_deadline
        async with self.lock(key):
            round_ = await self.current(context, key)
            for held in round_.sums:
                in_time = now < held.deadline(preparing)
                if held.over or (in_time and not await self._only_lost_are_missing(round_, held)):
                    continue
                if held.server is None:
                    await self.give_up(round_, held, now)
                else:
                    await self.apply(round_, held, await self.moved(round_, held.server.on_deadline), now)
            self.decrypting.go_on(round_)
            return round_

    async def give_up(self, round_: HeldRound, held: Held, now: float, why: str = "") -> None:
        """Give up a sum that was not prepared, or ``why`` else: there is no record of it but its clients' fates."""
        held.failed = why or not_prepared(round_.context)
        try:
            async with self.store.transaction() as rows:
                settled = await settle(rows, round_, held, now)
        except BaseException:
            self.drop(round_.round.id)
            raise
        if settled:
            self.board.take_down(round_.round.id)
            self.board.changed.set()

    def drop(self, key: RoundKey) -> None:
        """Forget the machines of a round: it is over, or is to be read anew."""
        round_ = self.held.pop(key, None)
        if round_ is not None:
            round_.ring()

    def lock(self, key: RoundKey) -> asyncio.Lock:
        """Return what keeps all else from a round's machines."""
        return self.locks.setdefault(key, asyncio.Lock())

    async def _take(
        self, context: RunContext, round_: HeldRound, position: int, message: bytes, now: float
    ) -> HeldRound:
        """Let a machine take a message; once more where another replica was first."""
        _require_own(message, round_.of(position)[1])
        if header_of(message).kind in _VECTORS:
            raise not_asked()  # masked vectors come as reports do
        for last_try in (False,) * (_TRIES - 1) + (True,):
            held = round_.of(position)[0]
            step = await self.moved(round_, machine_of(held).on_message, message)
            try:
                await self.apply(round_, held, step, now)
            except StoreConflictError:
                if last_try:
                    raise
                round_ = await self.current(context, round_.round.id)
            else:
                return round_
        raise AssertionError

    async def moved(self, round_: HeldRound, move: Callable[..., Step], *message: bytes) -> Step:
        """Let a machine go on. All are forgotten where nobody learns how far; RefusedError: nothing changed."""
        try:
            return await asyncio.to_thread(move, *message)
        except RefusedError:
            raise
        except BaseException:
            self.drop(round_.round.id)
            raise

    async def begin(self, round_: HeldRound, held: Held, prepared: Prepared, now: float) -> None:
        """Begin a sum that others have prepared. Raises StoreConflictError where another replica was first."""
        identities = await self.identities(round_, held)
        held.server, step = await start(round_.context, round_.round, identities, self.signs, prepared)
        records = (prepared.encode(), *step.persist)
        await self.apply(round_, held, Step(persist=records, send=step.send), now)
        held.since, held.trouble = now, ""

    async def apply(self, round_: HeldRound, held: Held, step: Step, now: float) -> None:
        """Make a step's records durable, then tell what follows.

        The machines are forgotten where that fails. Raises StoreConflictError where another replica was first.
        """
        try:
            await self._write(round_, held, step, now)
        except BaseException:
            self.drop(round_.round.id)
            raise

    async def _write(self, round_: HeldRound, held: Held, step: Step, now: float) -> None:
        key = round_.round.id
        records = [bytes(each) for each in step.persist if not _is_vector(each)]
        closes = any(closes_phase(each) for each in records)
        reached("sums.record-made")
        settled = False
        if records:
            async with self.store.transaction() as rows:
                if closes:
                    settled = await settle(rows, round_, held, now)
                await add(rows, key, round_.key, held.group, held.place, records, now)
            reached("sums.record-written")
            held.place += len(records)
        if closes:
            held.since, held.asks, held.trouble = now, {}, held.trouble if held.aborted else ""
        held.take_in(step)
        if settled:
            self.board.take_down(key)
        if closes:
            round_.ring()
        if held.over or held.needs_others or settled:
            self.board.changed.set()

    async def current(self, context: RunContext, key: RoundKey) -> HeldRound:
        """Return a round's machines as the store has them now."""
        round_ = self.held.get(key)
        if round_ is not None and await self._has_all(round_):
            return round_
        for _ in range(_TRIES - 1):
            with suppress(StoreConflictError):  # another replica closed a phase at the same time
                return await self._anew(context, key)
        return await self._anew(context, key)

    async def _has_all(self, round_: HeldRound) -> bool:
        """Return True where the machines have taken all that the store holds of their round."""
        key, collecting = round_.round.id, any(each.takes_vectors for each in round_.sums)
        async with self.store.reading() as rows:
            counts = await rows.sums.counts(key)
            if any(counts.get(each.group, 0) != each.place for each in round_.sums):
                return False
            reports = await rows.reports.of(key) if collecting else []
        return not any(is_missing(*round_.of(each.position)) for each in reports)

    async def _anew(self, context: RunContext, key: RoundKey) -> HeldRound:
        """Read a round's machines from the store."""
        self.drop(key)
        async with self.store.reading() as rows:
            stored = await rows.rounds.get(key)
            records = await rows.sums.of(key)
            assigned = await rows.rounds.assigned(key)
            reports = await rows.reports.of(key)
        if stored is None or not records:
            raise not_asked()
        round_ = self.held[key] = await self._read(context, stored, records, assigned)
        for held in round_.sums:
            await self._add_reports(round_, held, reports)
        return round_

    async def _read(
        self, context: RunContext, stored: Round, records: Sequence[SumRecord], assigned: Sequence[Assigned]
    ) -> HeldRound:
        """Make machines of their records."""
        key = await asyncio.to_thread(self.keys.unwrap, round_name(stored.id), stored.key)
        round_ = HeldRound(context, stored, key, {each.client: each.position for each in assigned}, [])
        steps, damaged = list[tuple[Held, Step]](), list[Held]()
        for group, first, size in bounds_of(groups_of(context, stored.cohort_size)):
            own = [each for each in records if each.part == group]
            held = Held(group, first, size, key, None, len(own), stored.opened_at)
            round_.sums.append(held)
            try:
                step = await restore(held, own, context, stored, self.signs)
            except DAMAGE:  # or another version wrote it
                damaged.append(held)
            else:
                steps += [] if step is None else [(held, step)]
        for held in damaged:
            await self.give_up(round_, held, stored.opened_at, "records are missing or damaged")
        for held, step in steps:
            if step.persist:  # a phase was complete, and the record of its end is missing
                await self.apply(round_, held, step, held.since)
            held.take_in(step)
        return round_

    async def _add_reports(self, round_: HeldRound, held: Held, reports: Sequence[Report]) -> None:
        """Add the masked vectors that came since the last phase closed."""
        for report in reports:
            of, client = round_.of(report.position)
            if of is held and is_missing(held, client):
                whole = await self.vector(round_, report)
                more = await asyncio.to_thread(machine_of(held).on_message, *whole)
                await self.apply(round_, held, more, report.received_at)

    async def vector(self, round_: HeldRound, report: Report) -> tuple[bytes, bytes]:
        """Return a masked vector as it came, and what it was hashed to."""
        return await whole_message(self.blobs, round_.key, round_.round.id, report)

    async def _only_lost_are_missing(self, round_: HeldRound, held: Held) -> bool:
        """Return True where a phase waits only for clients that declined, or whose update was refused."""
        if held.server is None or held.phase not in _CLIENTS_ANSWER:
            return False
        missing = {held.first + each for each in held.server.waits_for}
        async with self.store.reading() as rows:
            assigned = await rows.rounds.assigned(round_.round.id)
        gone = {each.position for each in assigned if each.fate in _GONE}
        return bool(missing) and missing <= gone

    async def identities(self, round_: HeldRound, held: Held) -> list[bytes]:
        """Return the public keys of a sum's clients, in their order."""
        async with self.store.reading() as rows:
            records = await rows.sums.of(round_.round.id)
        return identities_of(records, held.group, of=round_.round.id, key=round_.key)


def _is_vector(record: Any) -> bool:
    return bytes(record[: len(MAGIC)]) == MAGIC and header_of(record).kind in _VECTORS


def _require_own(message: bytes, client: int) -> None:
    if header_of(message).client != client:
        raise not_asked()
