"""Clients: who they are, what they declared, and who of them is eligible.

Eligibility is an expression over what clients declare. There are few distinct declarations (profiles), so it is decided
for each profile, and clients are found by the number of theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Boolean, bindparam, case, delete, exists, func, select, update

from hansa.core.layout import Int64s
from hansa.store import tables
from hansa.store.dialects import among_numbers, joined
from hansa.store.enrolments import BY_ID, CLIENTS, Enrolments
from hansa.store.numbers import numbers_of, parsed, wanted_of
from hansa.store.populations import profile_of, profiles_of, size_of
from hansa.store.records import Client, ClientState

_C: Final = tables.clients.c
_L: Final = tables.client_changes.c
_MANY: Final = 20_000
"""From so many numbers on, a part of the population is read as a whole."""
_LONG: Final = 500
_NUMBERED: Final = CLIENTS.where(_C.population == bindparam("population"), among_numbers(_C.number, "numbers"))
_PAGE: Final = (
    CLIENTS.where(_C.population == bindparam("population"), _C.number > bindparam("after"))
    .order_by(_C.number)
    .limit(bindparam("count"))
)
_PAGE_OF_STATE: Final = _PAGE.where(_C.state == bindparam("state"))
_BY_NAME: Final = CLIENTS.where(_C.population == bindparam("population"), _C.name == bindparam("name"))
_COUNTS: Final = (
    select(_C.profile, _C.state, func.count())
    .where(_C.population == bindparam("population"))
    .group_by(_C.profile, _C.state)
)
_SET_STATE: Final = (
    update(tables.clients)
    .where(_C.id == bindparam("which"), _C.state.not_in([bindparam("state"), "retired"]))
    .values(state=bindparam("state"))
    .returning(_C.tenant, _C.number)
)
_ACTIVATE: Final = _SET_STATE.where(_C.state == "enrolled")
_SET_KEY: Final = update(tables.clients).where(_C.id == bindparam("which")).values(public_key=bindparam("key"))
_DECLARE: Final = (
    update(tables.clients)
    .where(_C.id == bindparam("which"))
    .where(_C.declared_at.is_(None) | (_C.declared_at <= bindparam("at")) | bindparam("withdraws", type_=Boolean))
    .values(
        profile=bindparam("profile"),
        declared_at=case((_C.declared_at > bindparam("at"), _C.declared_at), else_=bindparam("at")),
    )
)
_FORGET_PROFILE: Final = delete(tables.profiles).where(
    tables.profiles.c.id == bindparam("which"),
    ~exists().where(_C.population == bindparam("population"), _C.profile == bindparam("which")),
)
_ELIGIBLE: Final = (
    (_C.population == bindparam("population")) & (_C.state == "active") & among_numbers(_C.profile, "profiles")
)
_ELIGIBLE_AMONG: Final = select(joined(_C.number)).where(_ELIGIBLE, among_numbers(_C.number, "numbers"))
_ALL_ELIGIBLE: Final = select(joined(_C.number)).where(_ELIGIBLE)
_ELIGIBLE_BETWEEN: Final = _ALL_ELIGIBLE.where(_C.number.between(bindparam("low"), bindparam("high")))
_COUNT_ELIGIBLE: Final = select(func.count()).select_from(tables.clients).where(_ELIGIBLE)
_CHANGES: Final = select(_L.number, _L.client).where(_L.number > bindparam("after")).order_by(_L.number)
_FORGET_CHANGES: Final = delete(tables.client_changes).where(_L.number <= bindparam("up_to"))
_LAST_CHANGE: Final = select(func.coalesce(func.max(_L.number), 0))


class Clients(Enrolments):
    """The clients of all populations."""

    async def get(self, client: str) -> Client | None:
        """Return a client by its id."""
        return await self._one(BY_ID, id=client)

    async def named(self, population: str, name: str) -> Client | None:
        """Return a client of a population by its name."""
        return await self._one(_BY_NAME, population=population, name=name)

    async def numbered(self, population: str, numbers: Int64s) -> list[Client]:
        """Return the clients with some numbers, in that order; numbers that nobody has are left out."""
        if len(numbers) == 0:
            return []
        values = {"population": population, "numbers": wanted_of(numbers)}
        rows = await self._on.rows(_NUMBERED, values, long=len(numbers) > _LONG)
        found = {client.number: client for client in (Client(*row) for row in rows)}
        wanted: list[int] = numbers.tolist()
        return [found[number] for number in wanted if number in found]

    async def page(
        self, population: str, *, after: int = -1, limit: int, state: ClientState | None = None
    ) -> list[Client]:
        """Return clients with numbers after one, in order."""
        values: dict[str, Any] = {"population": population, "after": after, "count": limit}
        if state is not None:
            values["state"] = state
        return [Client(*row) for row in await self._on.rows(_PAGE if state is None else _PAGE_OF_STATE, values)]

    async def counts(self, population: str) -> dict[tuple[ClientState, str], int]:
        """Return how many clients are in which state with which version."""
        profiles = await self.profiles(population)
        counts: dict[tuple[ClientState, str], int] = {}
        for profile, state, count in await self._on.rows(_COUNTS, {"population": population}, long=True):
            key = (state, profiles[profile]["version"])
            counts[key] = counts.get(key, 0) + count
        return counts

    async def set_state(self, client: str, state: ClientState, at: float, why: str) -> None:
        """Put a client into a state, and tell it as an event; nothing happens where it is in that state, or retired."""
        await self._put(_SET_STATE, client, state, at, why)

    async def activate(self, client: str, at: float, why: str) -> None:
        """Put a client that is enrolled into the state "active"; nothing happens where it has another state by now."""
        await self._put(_ACTIVATE, client, "active", at, why)

    async def _put(self, statement: Any, client: str, state: ClientState, at: float, why: str) -> None:
        rows = await self._on.rows(statement, {"which": client, "state": state})
        for tenant, number in rows:
            self._pending.clients[client] = None
            detail = {"why": why, "number": number}
            self._pending.tell(f"client.{state}", tenant=tenant, at=at, client=client, detail=detail)

    async def set_key(self, client: str, key: bytes) -> None:
        """Give a client another public key. Raises StoreConflictError for a key that another client has."""
        await self._on.run(_SET_KEY, {"which": client, "key": key})
        self._pending.clients[client] = None

    async def declare(
        self, client: str, *, attributes: Mapping[str, Any], version: str, consent: bool, at: float
    ) -> Client:
        """Take note of what a client declared by its own clock; return it as it is now.

        Nothing is written where that is what it declared before, or older than what it declared last: a call that is
        sent again by somebody else must not bring back a consent that was withdrawn. A withdrawal counts always. What
        nobody declares any more is forgotten.
        """
        known = await self._one(BY_ID, id=client)
        if known is None:
            raise LookupError(f"there is no client {client}")
        if (known.attributes, known.version, known.consent) == (dict(attributes), version, consent):
            return known
        profile = await profile_of(self._on, known.population, attributes, version, consent=consent)
        values = {"which": client, "profile": profile, "at": at, "withdraws": not consent}
        written = await self._on.run(_DECLARE, values)
        unused = known.profile if written else profile
        await self._on.run(_FORGET_PROFILE, {"which": unused, "population": known.population})
        self._pending.clients[client] = None
        return await self._one(BY_ID, id=client) or known

    async def size(self, population: str) -> int:
        """Return how many numbers were given: the length of the population's list."""
        return await size_of(self._on, population)

    async def profiles(self, population: str) -> dict[int, dict[str, Any]]:
        """Return the distinct declarations: profile -> attributes, version and consent. Few, however many clients."""
        return await profiles_of(self._on, population)

    async def eligible(self, population: str, numbers: Int64s, profiles: Collection[int]) -> NDArray[np.bool_]:
        """Return which of some numbers are of active clients that declared one of some profiles: bool [n]."""
        if len(numbers) == 0 or not profiles:
            return np.zeros(len(numbers), dtype=np.bool_)
        values: dict[str, Any] = {"population": population, "profiles": sorted(profiles)}
        if len(numbers) > _MANY:
            values |= {"low": int(numbers.min()), "high": int(numbers.max())}
            rows = await self._on.rows(_ELIGIBLE_BETWEEN, values, long=True)
        else:
            values["numbers"] = wanted_of(numbers)
            rows = await self._on.rows(_ELIGIBLE_AMONG, values, long=len(numbers) > _LONG)
        found = np.sort(parsed(rows[0][0]))
        if len(found) == 0:
            return np.zeros(len(numbers), dtype=np.bool_)
        return numbers_of(found, numbers)[1]

    async def count_eligible(self, population: str, profiles: Collection[int]) -> int:
        """Return how many active clients declared one of some profiles."""
        values = {"population": population, "profiles": sorted(profiles)}
        rows = await self._on.rows(_COUNT_ELIGIBLE, values, long=True)
        return int(rows[0][0])

    async def all_eligible(self, population: str, profiles: Collection[int]) -> Int64s:
        """Return the numbers of the active clients that declared one of some profiles, in order: int64 [n]."""
        values = {"population": population, "profiles": sorted(profiles)}
        rows = await self._on.rows(_ALL_ELIGIBLE, values, long=True)
        return np.sort(parsed(rows[0][0]))

    async def changes(self, after: int | None) -> tuple[int, list[str]]:
        """Return the clients that changed after a place in the feed, and the next place; None: only where it ends."""
        if after is None:
            return int((await self._on.rows(_LAST_CHANGE))[0][0]), []
        rows = await self._on.rows(_CHANGES, {"after": after})
        return (int(rows[-1][0]) if rows else after), list(dict.fromkeys(row[1] for row in rows))

    async def forget_changes(self, keep: int) -> int:
        """Remove all but the last changes from the feed; return how many."""
        last, _ = await self.changes(None)
        return await self._on.run(_FORGET_CHANGES, {"up_to": last - keep})
