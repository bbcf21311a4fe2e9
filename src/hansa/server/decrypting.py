"""Asking others beside everything else: an authority to vouch for a roster and to draw, decryptors to help with a sum.

Decryptors are asked to stand ready, whose reports they can open, and for their sums.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import structlog

from hansa.core.errors import HansaError, RefusedError
from hansa.core.secure_aggregation import Authority, Decryptor
from hansa.secagg.convention import Convention
from hansa.server.authority_calls import AuthorityCalls
from hansa.server.decryptor_calls import DecryptorCalls
from hansa.server.held_sums import Held, HeldRound
from hansa.server.secure_tasks import Prepared, convention_of
from hansa.wire.signatures import Signs

if TYPE_CHECKING:
    from hansa.server.secure_sums import SecureSums

_LOG: Final = structlog.get_logger("hansa.decryptors")
_AGAIN: Final = 1.0
"""Seconds until one that could not be reached is asked again."""
_BESIDE: Final = 64 * 1024
"""Bytes of an answer beside its vector, at most."""


@dataclass(frozen=True)
class Decrypting:
    """Asks decryptors and authorities for a server's sums. What they answer is in the store before more is asked."""

    sums: SecureSums
    signer: Signs
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def go_on(self, round_: HeldRound) -> None:
        """Ask for each sum what is to be asked now, unless that is being done."""
        for held in round_.sums:
            if held.needs_others and (held.calling is None or held.calling.done()):
                held.calling = asyncio.create_task(self._ask(round_, held))
                self.tasks.add(held.calling)
                held.calling.add_done_callback(self.tasks.discard)

    def stop(self) -> None:
        """Ask nothing more."""
        for task in tuple(self.tasks):
            task.cancel()

    async def _ask(self, round_: HeldRound, held: Held) -> None:
        """Go on with one sum until it needs nobody else, or one cannot be reached."""
        try:
            while held.needs_others and self._is_current(round_):
                await self._once(round_, held)
        except RefusedError as error:
            await self._refused(round_, held, error)
        except HansaError as error:
            lost = _lost(round_.round.id.run) if held.phase == "DECRYPT" else ""
            await self._tell(round_, held, f"{error.found} {error.action} [{error.code}]{lost}")
            _LOG.warning("service not reached", run=round_.round.id.run, code=error.code, what=error.found)
            await asyncio.sleep(_AGAIN)
        except Exception as error:  # noqa: BLE001 - read anew from the store, and asked again
            _LOG.error("services not asked", run=round_.round.id.run, error=type(error).__name__)
            await asyncio.sleep(_AGAIN)
            self.sums.drop(round_.round.id)
        finally:
            self.sums.board.changed.set()

    async def _tell(self, round_: HeldRound, held: Held, trouble: str) -> None:
        """Tell the operator what a round waits for, once for all its sums: an attempt ends much later."""
        held.trouble = trouble
        if any(trouble in each.troubles for each in round_.sums):
            return
        held.troubles.add(trouble)
        of, now = round_.round.id, self.sums.clock.now()
        detail = {"kind": of.kind, "round": of.round, "attempt": of.attempt, "why": trouble}
        with suppress(HansaError):  # where it cannot be written, the log has it
            async with self.sums.store.transaction() as rows:
                tenant = str(round_.round.notes["tenant"])
                await rows.events.add("round.waiting", tenant=tenant, at=now, run=of.run, detail=detail)

    async def _once(self, round_: HeldRound, held: Held) -> None:
        if held.phase == "PREPARE":
            await self._prepare(round_, held)
        elif held.phase == "EXCLUDE":
            await self._exclude(round_, held)
        elif held.phase == "DRAW":
            await self._draw(round_, held)
        else:
            phase, asks = held.phase, dict(held.asks)
            done = await asyncio.gather(
                *(self._exchange(round_, held, place, message) for place, message in asks.items()),
                return_exceptions=True,
            )
            for each in sorted((each for each in done if each), key=lambda each: not isinstance(each, RefusedError)):
                if isinstance(each, BaseException):
                    raise each
            if held.phase == phase and self._is_current(round_) and not asks:
                raise LookupError("nothing is to be asked, and answers are missing")

    async def _prepare(self, round_: HeldRound, held: Held) -> None:
        """Begin a sum once decryptors have made keys for it, an authority vouches for it, and they stand ready."""
        sums, calls, decryptors = self.sums, self._calls(), _decryptors(round_)
        prepared = Prepared(await calls.keys(decryptors))
        identities = await sums.identities(round_, held)
        if (authority := _authority(round_)) is not None:
            task = self._convention(round_, identities, prepared).task
            registration = await self._authorities().vouched(authority, task, identities)
            prepared = replace(prepared, registration=registration)
        convention = self._convention(round_, identities, prepared)
        signatures = await calls.ready(decryptors, convention.task, convention.registration)
        async with sums.lock(round_.round.id):
            if self._is_current(round_) and held.phase == "PREPARE":
                await sums.begin(round_, held, replace(prepared, signatures=signatures), sums.clock.now())

    def _convention(self, round_: HeldRound, identities: Sequence[bytes], prepared: Prepared) -> Convention:
        return convention_of(round_.context, round_.round, identities=identities, signer=self.signer, prepared=prepared)

    async def _draw(self, round_: HeldRound, held: Held) -> None:
        """Let the authority draw the beacon of those who advertised."""
        sums, authority, server = self.sums, _authority(round_), held.server
        if authority is None or server is None or not held.asks:
            raise LookupError("a beacon is to be drawn, and nobody is to be asked")
        (question,) = held.asks.values()
        identities = await sums.identities(round_, held)
        answer = await self._authorities().drawn(authority, server.task, identities, question)
        async with sums.lock(round_.round.id):
            if self._is_current(round_) and question in held.asks.values():
                step = await sums.moved(round_, server.on_message, answer)
                await sums.apply(round_, held, step, sums.clock.now())

    async def _exchange(self, round_: HeldRound, held: Held, place: int, message: bytes) -> None:
        sums = self.sums
        if held.server is None or place not in held.server.waits_for:
            return
        most = held.server.task.ring.nbytes + held.server.task.roster_size + _BESIDE
        answer = await self._calls().exchange(_decryptors(round_)[place], message, most)
        async with sums.lock(round_.round.id):
            if self._is_current(round_) and held.asks.get(place) == message:
                step = await sums.moved(round_, held.server.on_message, answer)
                await sums.apply(round_, held, step, sums.clock.now())

    async def _exclude(self, round_: HeldRound, held: Held) -> None:
        """Take out of a sum what a decryptor cannot open."""
        sums, key = self.sums, round_.round.id
        async with sums.store.reading() as rows:
            reports = await rows.reports.of(key)
        async with sums.lock(key):
            for report in reports:
                of, client = round_.of(report.position)
                if of is not held or held.server is None or client not in held.server.waits_for:
                    continue
                if held.phase == "EXCLUDE" and self._is_current(round_):
                    step = await sums.moved(round_, held.server.on_message, *await sums.vector(round_, report))
                    await sums.apply(round_, held, step, sums.clock.now())

    async def _refused(self, round_: HeldRound, held: Held, error: RefusedError) -> None:
        """Give up a sum that somebody does not help with: asking again would change nothing."""
        sums, now = self.sums, self.sums.clock.now()
        _LOG.warning("service refused", run=round_.round.id.run, code=error.code, what=error.found)
        async with sums.lock(round_.round.id):
            if not self._is_current(round_) or held.over:
                return
            if held.server is None:
                await sums.give_up(round_, held, now)
            else:
                await sums.apply(round_, held, await sums.moved(round_, held.server.on_deadline), now)
            held.trouble = f"{error.found} {error.action} [{error.code}]"

    def _is_current(self, round_: HeldRound) -> bool:
        return self.sums.held.get(round_.round.id) is round_

    def _authorities(self) -> AuthorityCalls:
        return AuthorityCalls(self.signer, self.sums.clock, self.sums.authority_urls, self.sums.authority_ca)

    def _calls(self) -> DecryptorCalls:
        return DecryptorCalls(self.signer, self.sums.clock, self.sums.decryptor_urls, self.sums.decryptor_ca)


def _lost(run: str) -> str:
    """Return what to do where a sum was asked for of all decryptors, and one of them never comes back."""
    return (
        " It is waited for without end: another may have answered, and answers no other attempt of this round. Where it"
        f" is lost for good: hansa runs cancel {run}; hansa models download {run} --out {run}.safetensors; then"
        f" submit a plan with another decryptor: hansa submit --begin-from {run}.safetensors."
    )


def _decryptors(round_: HeldRound) -> tuple[Decryptor, ...]:
    section = round_.context.plan.secure_aggregation
    return () if section is None else section.decryptors


def _authority(round_: HeldRound) -> Authority | None:
    section = round_.context.plan.secure_aggregation
    return None if section is None else section.authority
