"""The privacy ledger within one transaction: reserve, freeze, commit, void, and limits.

Whatever changes a scope locks its row first (SQLite: the one writer; PostgreSQL: FOR UPDATE), so decisions about one
budget come one after another, from however many processes. The running account in that row makes a reservation cost the
same after a million others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hansa.core.ledger import Balance, Origin, Outcome, Refusal, Reservation, ReservationState, SpendKey
from hansa.governance import refusals
from hansa.governance.chain import content_of, extended, key_from_mapping
from hansa.governance.pricing import adjacency_of, events_of, reference_of, spent_of
from hansa.privacy.event import Event, Sampled, rho
from hansa.privacy.event_json import event_from_mapping
from hansa.privacy.release import Release, release_to_mapping
from hansa.privacy.running import Running, nothing
from hansa.store.records import LedgerKind, LedgerRow, LedgerScope
from hansa.store.store import Rows

WARNINGS: Final = (0.9, 0.7)
"""Shares of a budget that are told when a reservation is the first to reach them."""


@dataclass(frozen=True)
class Account:
    """The ledger of a tenant, as one transaction sees and changes it: the port ``hansa.core.ledger.Ledger``."""

    rows: Rows
    tenant: str
    now: float

    async def reserve(self, key: SpendKey, release: Release, origin: Origin) -> Reservation | Refusal:
        """Set a release's cost aside, unless it would overdraw the scope of its population.

        With a matrix the whole run is one release: its key is that of the run, and the first round that asks pays.
        """
        key = SpendKey.whole(key.run) if release.matrix is not None else key
        if isinstance(release.event, Sampled):  # seconds, the first time: not in the event loop
            await asyncio.to_thread(nothing().plus, release.event, release.adjacency)
        scope = await self.rows.ledger.of_population(self.tenant, origin.population, for_change=True)
        if scope is None:
            raise refusals.missing()
        refusals.require_same(scope, release)
        told = release_to_mapping(release)
        known = await self.rows.ledger.of_key(str(key))
        if known:
            return _again(scope, key, known, told)
        if scope.restored_at is not None:
            raise refusals.restored(scope)
        return await self._set_aside(scope, key, release, told, origin)

    async def _set_aside(
        self, scope: LedgerScope, key: SpendKey, release: Release, told: Mapping[str, Any], origin: Origin
    ) -> Reservation | Refusal:
        """Reserve what was never reserved, in a scope that is locked."""
        spent = await spent_of(self.rows, scope)
        after = spent.plus(release.event, release.adjacency)
        charged, limit = after.epsilon(scope.delta), scope.epsilon_limit
        if charged > limit:
            return await self._refusal(scope, charged, [(release.event, 1)])
        parts: dict[str, Any] = {
            "population": origin.population,
            "job": origin.job,
            "plan_sha256": origin.plan_sha256,
            "release": told,
            "rho": None if isinstance(release.event, Sampled) else rho(release.event, release.adjacency),
        }
        row = (await self._append(scope, "reserve", spent=after, actor=origin.actor, key=key, parts=parts)).number
        warning = _passed(spent.epsilon(scope.delta), charged, limit)
        if warning is not None:
            detail = {"scope": scope.name, "share": warning, "charged": charged, "limit": limit}
            await self.rows.events.add("ledger.warning", tenant=self.tenant, at=self.now, run=key.run, detail=detail)
        return Reservation(
            key=key, scope=scope.name, row=row, state="reserved", charged=charged, limit=limit, warning=warning
        )

    async def freeze(self, key: SpendKey) -> Reservation:
        """Say that the sum is about to be seen in the clear; again, it changes nothing."""
        held = await self._held(key)
        if held.state == "void":
            raise refusals.settled(held.key, "It is void.")
        if held.state != "reserved":
            return held.reservation
        await self._append(held.scope, "freeze", spent=await spent_of(self.rows, held.scope), held=held, parts={})
        return replace(held.reservation, state="frozen")

    async def commit(self, key: SpendKey, outcome: Outcome) -> Reservation:
        """Say that it was released. A row of correlated noise that was released before is refused."""
        held = await self._held(key)
        if held.state == "void":
            raise refusals.settled(held.key, "It is void: its release must not happen.")
        if held.is_whole:
            return await self._commit_row(held, key, outcome)
        parts = {"cohort_actual": outcome.cohort, "released": outcome.released}
        if held.state == "committed":
            if any(held.last[name] != value for name, value in parts.items()):
                raise refusals.settled(held.key, "Something else was released under it.")
            return held.reservation
        await self._append(held.scope, "commit", spent=await spent_of(self.rows, held.scope), held=held, parts=parts)
        return replace(held.reservation, state="committed")

    async def _commit_row(self, held: _Held, key: SpendKey, outcome: Outcome) -> Reservation:
        """Release one row of a run's correlated noise, which the run was charged for when it began."""
        number, matrix = outcome.noise_row, held.reserved["release"]["matrix"]
        if number is None or not 0 <= number < matrix["rounds"]:
            raise refusals.noise_row(f"Row {number} is none of the matrix, which has {matrix['rounds']}.")
        if held.row <= held.scope.restored_row or held.scope.restored_at is not None:
            raise refusals.noise_row_unknown(held.key.run)
        parts = {"cohort_actual": outcome.cohort, "released": outcome.released, "noise_row": number}
        before = await self.rows.ledger.of_noise(key.run, number)
        if before is not None:
            said = content_of(before)
            if key_from_mapping(said["key"]) == key and all(said[name] == value for name, value in parts.items()):
                return held.reservation
            raise refusals.noise_row(f"Row {number} of the run {key.run} was released before.")
        spent, scope = await spent_of(self.rows, held.scope), held.scope
        if held.state != "committed":
            scope = (await self._append(scope, "commit", spent=spent, held=held, parts={})).scope_after
        await self._append(scope, "row", spent=spent, held=held, key=key, parts=parts)
        return replace(held.reservation, state="committed")

    async def void(self, key: SpendKey, why: str) -> Reservation:
        """Give a reservation back of which nothing was seen. That of a whole run is kept while its rounds are tried."""
        held = await self._held(key)
        if held.state == "void" or (held.is_whole and key != held.key):
            return held.reservation
        if held.state != "reserved":
            raise refusals.settled(held.key, f"It is {held.state}: its sum may have been seen.")
        if held.row <= held.scope.restored_row or held.scope.restored_at is not None:
            raise refusals.settled(held.key, "The server was restored since: nobody knows what was seen of it.")
        event = event_from_mapping(held.reserved["release"]["event"])
        spent = (await spent_of(self.rows, held.scope)).plus(event, adjacency_of(held.scope), -1)
        await self._append(held.scope, "void", spent=spent, held=held, parts={"why": why})
        return replace(held.reservation, state="void", charged=spent.epsilon(held.scope.delta))

    async def balance(self, scope: str) -> Balance:
        """Return the balance of a scope by its name. Raises HansaError HANSA-NOT-FOUND."""
        found = await self.rows.ledger.named(self.tenant, scope)
        if found is None:
            raise refusals.no_scope(scope)
        return await self.balance_of(found)

    async def balance_of(self, scope: LedgerScope) -> Balance:
        """Return the balance of a scope."""
        events = await events_of(self.rows, scope)
        return Balance(
            scope=scope.name,
            unit=scope.unit,
            adjacency=scope.adjacency,
            delta=scope.delta,
            limit=scope.epsilon_limit,
            charged=(await spent_of(self.rows, scope)).epsilon(scope.delta),
            reference=await asyncio.to_thread(reference_of, events, scope),
        )

    async def refuse_overdraft(self, population: str, planned: Sequence[tuple[Release, int]]) -> Refusal | Balance:
        """Return a refusal where releases, each so many times, would overdraw what is left now; else the balance.

        Nothing is set aside: what is refused here never fits, what is not may be refused later.
        """
        scope = await self.rows.ledger.of_population(self.tenant, population)
        if scope is None:
            raise refusals.missing()
        for release, _ in planned:
            refusals.require_same(scope, release)
        if scope.restored_at is not None:
            raise refusals.restored(scope)
        after = await spent_of(self.rows, scope)
        for release, count in planned:
            after = await asyncio.to_thread(after.plus, release.event, release.adjacency, count)
        charged = after.epsilon(scope.delta)
        if charged > scope.epsilon_limit:
            return await self._refusal(scope, charged, [(release.event, count) for release, count in planned])
        return await self.balance_of(scope)

    async def _refusal(self, scope: LedgerScope, charged: float, more: Sequence[tuple[Event, int]]) -> Refusal:
        events = [*await events_of(self.rows, scope), *more]
        reference = await asyncio.to_thread(reference_of, events, scope)
        return Refusal(balance=await self.balance_of(scope), charged=charged, reference=reference)

    async def _held(self, key: SpendKey) -> _Held:
        """Return a reservation, its scope locked; that of the whole run where the round has none of its own."""
        for each in (key, SpendKey.whole(key.run)):
            known = await self.rows.ledger.of_key(str(each))
            if known:
                scope = await self.rows.ledger.locked(known[0].scope)
                if scope.tenant != self.tenant:
                    break
                return _Held(scope, each, tuple(await self.rows.ledger.of_key(str(each))))
        raise refusals.settled(key, "There is none.")

    async def _append(  # noqa: PLR0913 - what a row is made of
        self,
        scope: LedgerScope,
        kind: LedgerKind,
        *,
        spent: Running,
        parts: Mapping[str, Any],
        actor: str | None = None,
        key: SpendKey | None = None,
        held: _Held | None = None,
    ) -> _Appended:
        if held is not None:
            shared = {name: held.reserved[name] for name in ("population", "job", "plan_sha256")}
            parts = {**shared, "reserved": held.row, **parts}
            actor, key = actor or held.reserved["actor"], key or held.key
        after, row = extended(scope, kind, spent=spent, at=self.now, actor=actor or "", key=key, parts=parts)
        await self.rows.ledger.append(after, row, read=scope.rows)
        return _Appended(after, row.number)


@dataclass(frozen=True)
class _Appended:
    scope_after: LedgerScope
    number: int


@dataclass(frozen=True)
class _Held:
    """A reservation with its locked scope and the rows about it."""

    scope: LedgerScope
    key: SpendKey
    known: tuple[LedgerRow, ...]

    @property
    def reserved(self) -> dict[str, Any]:
        """Return what the first row says."""
        return content_of(self.known[0])

    @property
    def last(self) -> dict[str, Any]:
        """Return what the last row says."""
        return content_of(self.known[-1])

    @property
    def row(self) -> int:
        return self.known[0].number

    @property
    def state(self) -> ReservationState:
        return state_of([row.kind for row in self.known])

    @property
    def is_whole(self) -> bool:
        """Return True for a run that is one release."""
        return self.reserved["release"]["matrix"] is not None

    @property
    def reservation(self) -> Reservation:
        return _reservation(self.scope, self.key, self.known)


def state_of(kinds: Sequence[LedgerKind]) -> ReservationState:
    """Return the state of a reservation that has rows of these kinds."""
    states: tuple[tuple[LedgerKind, ReservationState], ...] = (
        ("void", "void"),
        ("commit", "committed"),
        ("freeze", "frozen"),
    )
    return next((state for kind, state in states if kind in kinds), "reserved")


def _reservation(scope: LedgerScope, key: SpendKey, known: Sequence[LedgerRow]) -> Reservation:
    return Reservation(
        key=key,
        scope=scope.name,
        row=known[0].number,
        state=state_of([row.kind for row in known]),
        charged=content_of(known[0])["epsilon_charged"],
        limit=scope.epsilon_limit,
    )


def _again(scope: LedgerScope, key: SpendKey, known: Sequence[LedgerRow], told: Mapping[str, Any]) -> Reservation:
    """Return the reservation that another call has made under the same key. Raises HansaError where it is another."""
    found = _reservation(scope, key, known)
    if known[0].scope != scope.id or content_of(known[0])["release"] != told:
        raise refusals.settled(key, "It is for another release.")
    if found.state == "void":
        raise refusals.settled(key, "It is void.")
    if key == SpendKey.whole(key.run) and (found.row <= scope.restored_row or scope.restored_at is not None):
        raise refusals.noise_row_unknown(key.run)
    return found


def _passed(before: float, after: float, limit: float) -> float | None:
    return next((share for share in WARNINGS if before < share * limit <= after), None)
