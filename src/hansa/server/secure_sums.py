"""Secure sums in rounds: the machine of each, its records in the store, and what it tells each client.

A machine is made anew from its records wherever it is needed: any replica takes any message. A record has one place, so
of two replicas that go on from the same state one is refused, forgets its machine and reads what the other wrote. The
masked vectors are reports like any other; their set is frozen in the transaction that holds the machine's record of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakValueDictionary

from hansa.core.errors import RefusedError, StoreConflictError
from hansa.core.killpoints import reached
from hansa.secagg.convention import Convention
from hansa.secagg.known import vector_sha256
from hansa.secagg.messages import MAGIC, Masked, header_of
from hansa.secagg.records import closes_phase
from hansa.secagg.server import MaskingServer, Phase
from hansa.secagg.step import Step
from hansa.server import private_rounds
from hansa.server.board import Board
from hansa.server.contexts import RunContext
from hansa.server.lifecycle import TAKES_REPORTS, advance
from hansa.server.reading import SealedUpdate
from hansa.server.rounds_at_rest import round_name, sum_binding
from hansa.server.secure_tasks import convention_of
from hansa.server.signing import Signer
from hansa.store.blobs import Blobs
from hansa.store.keys import KeyProvider
from hansa.store.records import Assigned, Client, Fate, Report, Round, RoundKey, SumRecord
from hansa.store.sealing import seal, unseal
from hansa.store.store import Rows, Store
from hansa.wire.verdicts import ACCEPTED, Verdict

_GONE: Final = ("declined", "refused", "lost", "late")
"""Fates of those who give nothing more: a phase does not wait for them."""
_TRIES: Final = 3
_LOOK_AGAIN: Final = 1.0
"""Seconds after which a client that waits here learns what another replica has for it."""


@dataclass
class Held:
    """The machine of one round on this replica."""

    context: RunContext
    round: Round
    server: MaskingServer
    key: bytes
    positions: dict[str, int]
    """Client -> its position in the cohort, which is its name in the sum."""
    place: int
    """How many records are in the store."""
    since: float
    """When the phase began."""
    told: dict[int, bytes] = field(default_factory=dict)
    """Position -> the last message to that client."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there is more to tell, or this is not the machine any more; then there is another event."""

    def take_in(self, step: Step) -> None:
        """Keep what is told to whom."""
        self.told.update(step.send)

    def news_for(self, position: int, seen: int) -> bytes:
        """Return the last message to a client, unless it is of the kind that the client has answered."""
        told = self.told.get(position, b"")
        return told if told and header_of(told).kind != seen else b""

    def ring(self) -> None:
        """Let those look again who wait."""
        self.news.set()
        self.news = asyncio.Event()

    @property
    def deadline(self) -> float:
        """Return when the phase is over."""
        return self.since + self.server.task.phase_seconds[min(self.server.phase, Phase.UNMASK)]


@dataclass(frozen=True)
class _Signs:
    """The server's key, as the machines want it."""

    signer: Signer

    def sign(self, data: bytes, /) -> bytes:
        return self.signer.sign(data)[0]


@dataclass(frozen=True)
class SecureSums:
    """The secure sums of a server's open rounds."""

    store: Store
    blobs: Blobs
    keys: KeyProvider
    signer: Signer
    board: Board
    held: dict[RoundKey, Held] = field(default_factory=dict)
    locks: WeakValueDictionary[RoundKey, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    async def open(self, rows: Rows, context: RunContext, round_: Round, clients: Sequence[Client], key: bytes) -> None:
        """Begin a round's sum, within the transaction that opens the round."""
        identities = [client.public_key or b"" for client in clients]
        convention = self._convention(context, round_, identities)
        _, step = await asyncio.to_thread(MaskingServer.start, convention)
        await self._add(rows, round_.id, key, 0, [b"".join(identities), *step.persist], round_.opened_at)

    async def announcement(self, context: RunContext, round_: Round, position: int) -> bytes:
        """Return what tells a client of its round's sum; empty once adverts are not taken any more."""
        async with self._lock(round_.id):
            held = await self._current(context, round_.id)
            return held.told.get(position, b"") if held.server.phase is Phase.ADVERTISE else b""

    async def exchange(  # noqa: PLR0913, PLR0917 - whose message, to which sum, and how long its answer may take
        self, context: RunContext, key: RoundKey, client: Client, message: bytes, seen: int, wait: float, now: float
    ) -> bytes:
        """Take a client's message, if there is one; return the next one to it, or nothing while it is not there.

        A message that answers another than the last one to the client is a repeat: it is not looked at.
        Raises RefusedError for a message that is not acceptable, and where the client has no part in the sum.
        """
        position = None
        ends = asyncio.get_running_loop().time() + wait
        while True:
            async with self._lock(key):
                held = await self._current(context, key)
                position = held.positions.get(client.id)
                if position is None:
                    raise _not_asked()
                if message and not held.news_for(position, seen):
                    held = await self._take(context, held, position, message, now)
                message = b""
                if told := held.news_for(position, seen):
                    return told
                over, news = held.server.phase >= Phase.DONE or self.board.closing, held.news
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
        content: bytes,
        record: Callable[[], Awaitable[Verdict]],
        now: float,
    ) -> Verdict:
        """Take a masked vector that is sealed in the blob store: check it, record its report, add it.

        Raises RefusedError for one that is not acceptable; nothing is recorded then.
        """
        sha256 = await asyncio.to_thread(vector_sha256, content)  # before the lock, so that vectors are hashed at once
        async with self._lock(key):
            held = await self._current(context, key)
            position = held.positions.get(client.id)
            if position is None:
                raise _not_asked()
            _require_own(content, position)
            if header_of(content).kind != Masked.kind:
                raise _not_asked()
            step = await self._moved(held, held.server.on_message, content, sha256)
            try:
                verdict = await record()
            except BaseException:
                self.drop(key)  # it has added what may not be recorded
                raise
            if verdict != ACCEPTED:
                self.drop(key)
                return verdict
            with suppress(StoreConflictError):  # recorded, so whoever reads the reports anew adds it
                await self._apply(held, step, now)
            return verdict

    async def look(self, context: RunContext, key: RoundKey, now: float) -> Held:
        """Return a round's machine, after the deadline of its phase was kept."""
        async with self._lock(key):
            held = await self._current(context, key)
            if held.server.phase < Phase.DONE and (now >= held.deadline or await self._only_lost_are_missing(held)):
                await self._apply(held, await self._moved(held, held.server.on_deadline), now)
            return held

    def drop(self, key: RoundKey) -> None:
        """Forget the machine of a round: it is over, or is to be read anew."""
        held = self.held.pop(key, None)
        if held is not None:
            held.ring()

    def _lock(self, key: RoundKey) -> asyncio.Lock:
        return self.locks.setdefault(key, asyncio.Lock())

    async def _take(self, context: RunContext, held: Held, position: int, message: bytes, now: float) -> Held:
        """Let the machine take a message; once more where another replica was first."""
        _require_own(message, position)
        if header_of(message).kind == Masked.kind:
            raise _not_asked()  # masked vectors come as reports do
        for last_try in (False,) * (_TRIES - 1) + (True,):
            step = await self._moved(held, held.server.on_message, message)
            try:
                await self._apply(held, step, now)
            except StoreConflictError:
                if last_try:
                    raise
                held = await self._current(context, held.round.id)
            else:
                return held
        raise AssertionError

    async def _moved(self, held: Held, move: Callable[..., Step], *message: bytes) -> Step:
        """Let a machine go on. It is forgotten where nobody learns how far; RefusedError says that nothing changed."""
        try:
            return await asyncio.to_thread(move, *message)
        except RefusedError:
            raise
        except BaseException:
            self.drop(held.round.id)
            raise

    async def _apply(self, held: Held, step: Step, now: float) -> None:
        """Make a step's records durable, then tell what follows.

        The machine is forgotten where that fails. Raises StoreConflictError where another replica was first.
        """
        try:
            await self._write(held, step, now)
        except BaseException:
            self.drop(held.round.id)
            raise

    async def _write(self, held: Held, step: Step, now: float) -> None:
        records = [bytes(each) for each in step.persist if not _is_masked(each)]
        closes = any(closes_phase(each) for each in records)
        freezes = held.server.phase > Phase.MASK and held.round.state in TAKES_REPORTS
        freezes &= held.server.phase is not Phase.ABORTED
        reached("sums.record-made")
        if records:
            async with self.store.transaction() as rows:
                if freezes:
                    held.round = await _freeze(rows, held, now)
                await self._add(rows, held.round.id, held.key, held.place, records, now)
            reached("sums.record-written")
            held.place += len(records)
        if closes:
            held.since = now
        held.take_in(step)
        if freezes:
            self.board.take_down(held.round.id)
        if closes:
            held.ring()
        if held.server.phase >= Phase.DONE or freezes:
            self.board.changed.set()

    async def _current(self, context: RunContext, key: RoundKey) -> Held:
        """Return a round's machine as the store has it now."""
        held = self.held.get(key)
        if held is not None and await self._has_all(held):
            return held
        for _ in range(_TRIES - 1):
            with suppress(StoreConflictError):  # another replica closed a phase at the same time
                return await self._anew(context, key)
        return await self._anew(context, key)

    async def _has_all(self, held: Held) -> bool:
        """Return True where a machine has taken all that the store holds of its round."""
        key = held.round.id
        async with self.store.reading() as rows:
            if await rows.sums.after(key, held.place):
                return False
            reports = await rows.reports.of(key) if held.server.phase is Phase.MASK else []
        return not any(each.position in held.server.waits_for for each in reports)

    async def _anew(self, context: RunContext, key: RoundKey) -> Held:
        """Read a round's machine from the store."""
        self.drop(key)
        async with self.store.reading() as rows:
            round_ = await rows.rounds.get(key)
            records = await rows.sums.after(key)
            assigned = await rows.rounds.assigned(key)
            reports = await rows.reports.of(key)
        if round_ is None or not records:
            raise _not_asked()
        held = self.held[key] = await self._read(context, round_, records, assigned, reports)
        return held

    async def _read(
        self,
        context: RunContext,
        round_: Round,
        records: Sequence[SumRecord],
        assigned: Sequence[Assigned],
        reports: Sequence[Report],
    ) -> Held:
        """Make a machine of its records, and of the masked vectors that came since the last phase closed."""
        key = await asyncio.to_thread(self.keys.unwrap, round_name(round_.id), round_.key)
        first, *rest = [_unsealed(key, round_.id, each) for each in records]
        identities = [first[start : start + 32] for start in range(0, len(first), 32)]
        convention = self._convention(context, round_, identities)
        server, step = await asyncio.to_thread(MaskingServer.restore, convention, rest)
        closed = [each.at for each, content in zip(records[1:], rest, strict=True) if closes_phase(content)]
        positions = {each.client: each.position for each in assigned}
        since = closed[-1] if closed else round_.opened_at
        held = Held(context, round_, server, key, positions, len(records), since)
        if step.persist:  # a phase was complete, and the record of its end is missing
            await self._apply(held, step, since)
        held.take_in(step)
        for report in reports if server.phase is Phase.MASK else ():
            if report.position in server.waits_for:
                content = await SealedUpdate(self.blobs, key, round_.id, report).whole()
                more = await asyncio.to_thread(server.on_message, content)
                await self._apply(held, more, report.received_at)
        return held

    async def _only_lost_are_missing(self, held: Held) -> bool:
        """Return True where a phase waits only for clients that declined, or whose update was refused."""
        missing = set(held.server.waits_for)
        async with self.store.reading() as rows:
            assigned = await rows.rounds.assigned(held.round.id)
        gone = {each.position for each in assigned if each.fate in _GONE}
        return bool(missing) and missing <= gone

    def _convention(self, context: RunContext, round_: Round, identities: Sequence[bytes]) -> Convention:
        return convention_of(context, round_, identities=identities, signer=_Signs(self.signer))

    async def _add(  # noqa: PLR0913, PLR0917 - where records go, and what seals them
        self, rows: Rows, of: RoundKey, key: bytes, place: int, contents: Sequence[Any], now: float
    ) -> None:
        sealed = [
            SumRecord(place + number, _sealed(key, of, place + number, bytes(content)), now)
            for number, content in enumerate(contents)
        ]
        await rows.sums.add(of, sealed)


async def _freeze(rows: Rows, held: Held, now: float) -> Round:
    """Fix the survivors with the machine's record of them: whoever has an acknowledged report, and nobody else."""
    reached("coordinator.round.freezing")
    key, server = held.round.id, held.server
    round_ = await rows.rounds.get(key)
    if round_ is None or round_.state not in TAKES_REPORTS:
        raise StoreConflictError(f"The round {key.name}")
    states = ("collecting", "aggregating") if round_.state == "opening" else ("aggregating",)
    assigned = await rows.rounds.assigned(key)
    numbers = [str(each.number) for each in assigned if each.position in server.survivors]
    frozen = advance(round_, *states, notes={**round_.notes, "survivors": numbers})
    frozen = await rows.rounds.change(frozen)  # from here no report is recorded beside those that are read now
    reports = await rows.reports.of(key)
    if {each.position for each in reports} != set(server.survivors):
        raise StoreConflictError(f"The reports of {key.name}")
    lost: dict[str, Fate] = {each.client: "lost" for each in assigned if each.fate is None}
    await rows.rounds.set_fates(key, lost)
    await private_rounds.freeze(rows, frozen, now)
    detail = {"kind": key.kind, "round": key.round, "attempt": key.attempt, "reported": len(numbers), "lost": len(lost)}
    await rows.events.add("round.aggregating", tenant=str(round_.notes["tenant"]), at=now, run=key.run, detail=detail)
    return frozen


def _is_masked(record: Any) -> bool:
    return bytes(record[: len(MAGIC)]) == MAGIC and header_of(record).kind == Masked.kind


def _require_own(message: bytes, position: int) -> None:
    if header_of(message).client != position:
        raise _not_asked()


def _sealed(key: bytes, of: RoundKey, place: int, content: bytes) -> bytes:
    return b"".join(seal(key, sum_binding(of, place), [content]))


def _unsealed(key: bytes, of: RoundKey, record: SumRecord) -> bytes:
    return b"".join(unseal(key, sum_binding(of, record.place), [record.content]))


def _not_asked() -> RefusedError:
    return RefusedError(
        "HANSA-REPORT-UNEXPECTED",
        rule="A client takes part in the secure sums of its own assignments, with messages of its own.",
        found="It has no part in that one, or not with this message.",
        action="Leave this sum; check in, and take part in what is assigned.",
    )
