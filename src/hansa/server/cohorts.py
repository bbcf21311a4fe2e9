"""Cohorts of a federation: drawn by the plan's sampler from those who are eligible, in the time of the cohort.

Eligibility is an expression over attributes. It is decided once for each distinct set of attributes (a profile), and a
sampler draws from those who have an eligible one, in a random order that is revealed as far as it looks.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa.algorithms.plan import Plan
from hansa.algorithms.rounds import open_round
from hansa.algorithms.schedule import has_fixed_size
from hansa.core.layout import Array, Int64s
from hansa.core.nouns import ServerState
from hansa.core.streams import Coins, UInt64s
from hansa.server.eligibility import Eligibility
from hansa.store.store import Rows, Store

_DRAWS: Final = 16
"""Draws of a fixed number before a smaller cohort is taken."""
_MARGIN: Final = 1.05
_SPARE: Final = 64
"""Numbers that are looked at beyond those that hold enough eligible clients as a rule."""
_AT_ONCE: Final = 20_000
"""Numbers that are looked at in one query."""
_MOST: Final = 4
"""Where more than this part of all numbers is to be looked at, the list of all who are eligible is read."""


def secret_coins() -> Coins:
    """Return coins from the system's generator: nobody can tell a cohort from the plan's seed."""

    def words(count: int) -> UInt64s:
        return np.frombuffer(secrets.token_bytes(8 * count), dtype=np.uint64).copy()

    return Coins(words)


@dataclass(frozen=True)
class Eligible:
    """The clients that may be picked: of all numbers, or of some (those who called lately), those with a profile."""

    population: str
    base: Int64s | None
    numbers_given: int
    profiles: frozenset[int]
    count: int

    @property
    def size(self) -> int:
        """Return how many numbers there are to draw from."""
        return self.numbers_given if self.base is None else len(self.base)

    def numbers(self, ordinals: Int64s) -> Int64s:
        """Return the clients' numbers of ordinals of the base."""
        return ordinals if self.base is None else self.base[ordinals]


async def eligible_clients(
    rows: Rows, population: str, eligibility: Eligibility, *, callers: Int64s | None
) -> Eligible:
    """Return who may be picked now; ``callers`` holds the numbers of those who called lately, None for everybody."""
    profiles: Mapping[int, Mapping[str, Any]] = await rows.clients.profiles(population)
    allowed = frozenset(number for number, profile in profiles.items() if eligibility.allows(profile))
    if callers is None:
        count = await rows.clients.count_eligible(population, allowed)
        return Eligible(population, None, await rows.clients.size(population), allowed, count)
    kept = callers[await rows.clients.eligible(population, callers, allowed)]
    return Eligible(population, kept, len(kept), allowed, len(kept))


@dataclass
class _Revealed:
    """The eligible of a whole population in random order, found one after another as a sampler asks for them.

    Numbers are drawn without replacement from all that were given; who is eligible of them is next in the order. That
    order is uniform, so a sampler of ordinals picks as it would from a list of all, which nobody needs to make: what is
    read grows with the clients that are looked at, divided by the share of those who are eligible. Where that would be
    most, the list is read after all. An ordinal whose client is gone since the eligible were counted has the number -1.
    """

    eligible: Eligible
    store: Store
    coins: Coins
    order: Int64s = field(init=False)
    """The number of each ordinal, or -1."""
    tried: NDArray[np.bool_] = field(init=False)
    spare: Int64s = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Eligible clients that were found, and have no ordinal yet."""
    complete: bool = False

    def __post_init__(self) -> None:
        self.order = np.full(self.eligible.count, -1, dtype=np.int64)
        self.tried = np.zeros(self.eligible.numbers_given, dtype=np.bool_)

    async def numbers(self, ordinals: Int64s) -> Int64s:
        """Return the numbers of some ordinals: int64 [n]."""
        if self.eligible.base is not None:
            return self.eligible.base[ordinals]
        new = np.unique(ordinals[self.order[ordinals] < 0])
        while len(self.spare) < len(new) and not self.complete:
            await self._find(len(new) - len(self.spare))
        taken, self.spare = self.spare[: len(new)], self.spare[len(new) :]
        self.order[new[: len(taken)]] = taken
        return self.order[ordinals]

    async def _find(self, missing: int) -> None:
        """Find some more who are eligible, at random."""
        of, given = self.eligible, self.eligible.numbers_given
        wanted = math.ceil(_MARGIN * missing * given / max(of.count, 1)) + _SPARE
        async with self.store.reading() as rows:
            if wanted > given // _MOST:
                found = await rows.clients.all_eligible(of.population, of.profiles)
                found = found[found < given]
                found = found[~self.tried[found]]
                self.complete = True
                more = found[np.argsort(self.coins.words(len(found)), kind="stable")]
            else:
                drawn = self.coins.integers(given, min(wanted, _AT_ONCE))
                drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
                drawn = drawn[~self.tried[drawn]]
                self.tried[drawn] = True
                more = drawn[await rows.clients.eligible(of.population, drawn, of.profiles)]
        self.spare = np.concatenate([self.spare, more])


@dataclass(frozen=True)
class _View:
    """The ``EligibleView`` of a run, for a sampler in a thread of its own: what it asks is read by the event loop."""

    revealed: _Revealed
    run: str
    loop: asyncio.AbstractEventLoop
    asked: dict[bytes, tuple[Int64s, Int64s]] = field(default_factory=dict)
    """What was read of the last clients asked for: a sampler asks twice for the same."""

    @property
    def size(self) -> int:
        """Return how many are eligible."""
        return self.revealed.eligible.count

    def ids(self, ordinals: Int64s) -> list[str]:
        """Return the numbers as text: a sampler never learns who a client is."""
        numbers = asyncio.run_coroutine_threadsafe(self.revealed.numbers(ordinals), self.loop).result()
        return [str(number) for number in numbers.tolist()]

    def last_round(self, ordinals: Int64s) -> Int64s:
        """Return the last round in which each took part, or -1: int64 [n]."""
        return self._participation(ordinals)[0]

    def times(self, ordinals: Int64s) -> Int64s:
        """Return how often each took part: int64 [n]."""
        return self._participation(ordinals)[1]

    def _participation(self, ordinals: Int64s) -> tuple[Int64s, Int64s]:
        async def read() -> tuple[Int64s, Int64s]:
            numbers = await self.revealed.numbers(ordinals)
            async with self.revealed.store.reading() as rows:
                return await rows.participation.of(self.run, numbers)

        which = ordinals.tobytes()
        if which not in self.asked:
            self.asked.clear()
            self.asked[which] = asyncio.run_coroutine_threadsafe(read(), self.loop).result()
        return self.asked[which]


async def draw(  # noqa: PLR0913 - what a draw depends on
    store: Store, plan: Plan, state: ServerState, *, run: str, eligible: Eligible, coins: Coins
) -> Int64s:
    """Return the numbers of the clients picked for the next round of training, in the order of the cohort.

    It is smaller than the plan's where clients became ineligible since they were counted.
    """
    revealed = _Revealed(eligible, store, coins)
    view = _View(revealed, run, asyncio.get_running_loop())
    assignment = await asyncio.to_thread(open_round, plan, state, view, coins)
    drawn = await revealed.numbers(assignment.cohort)
    drawn = drawn[drawn >= 0]
    return drawn if has_fixed_size(plan.cohort) else np.sort(drawn)


def everyone(eligible: Eligible, chosen: Array) -> Int64s:
    """Return the numbers of all eligible clients, in the order of the population."""
    return eligible.numbers(np.flatnonzero(chosen))


async def pick(store: Store, eligible: Eligible, coins: Coins, *, wanted: int, taken: frozenset[int]) -> Int64s:
    """Return the numbers of so many eligible clients that are not taken, each set equally likely, or of fewer."""
    found = np.zeros(0, dtype=np.int64)
    for _ in range(_DRAWS):
        count = min(eligible.size, 4 * (wanted + len(taken)) + 64)
        drawn = eligible.numbers(coins.distinct(eligible.size, count))
        drawn = drawn[~np.isin(drawn, found) & ~np.isin(drawn, np.fromiter(taken, dtype=np.int64, count=len(taken)))]
        if eligible.base is None and len(drawn):
            async with store.reading() as rows:
                drawn = drawn[await rows.clients.eligible(eligible.population, drawn, eligible.profiles)]
        found = np.concatenate([found, drawn])
        if len(found) >= wanted or count == eligible.size:
            break
    return found[:wanted]
