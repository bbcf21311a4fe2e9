"""Cohorts of a federation: drawn by the plan's sampler from those who are eligible, in the time of the cohort.

Eligibility is an expression over attributes. It is decided once for each distinct set of attributes (a profile), and a
sampler's draw is filtered by profile and state; what was lost is drawn again.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from hansa.algorithms.plan import Plan
from hansa.algorithms.rounds import draw_cohort
from hansa.algorithms.schedule import has_fixed_size, picking
from hansa.core.layout import Array, Int64s
from hansa.core.nouns import ServerState
from hansa.core.pieces import CohortSampler
from hansa.core.streams import Coins, UInt64s
from hansa.server.eligibility import Eligibility
from hansa.store.store import Rows, Store

_DRAWS: Final = 16
"""Draws of a fixed number before a smaller cohort is taken."""
_MARGIN: Final = 1.2


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


@dataclass(frozen=True)
class _View:
    """The ``EligibleView`` of a run, for a sampler in a thread of its own: what it asks is read by the event loop."""

    eligible: Eligible
    run: str
    store: Store
    loop: asyncio.AbstractEventLoop
    asked: dict[bytes, tuple[Int64s, Int64s]] = field(default_factory=dict)
    """What was read of the last clients asked for: a sampler asks twice for the same."""

    @property
    def size(self) -> int:
        """Return how many numbers there are to draw from."""
        return self.eligible.size

    def ids(self, ordinals: Int64s) -> list[str]:
        """Return the numbers as text: a sampler never learns who a client is."""
        return [str(number) for number in self.eligible.numbers(ordinals).tolist()]

    def last_round(self, ordinals: Int64s) -> Int64s:
        """Return the last round in which each took part, or -1: int64 [n]."""
        return self._participation(ordinals)[0]

    def times(self, ordinals: Int64s) -> Int64s:
        """Return how often each took part: int64 [n]."""
        return self._participation(ordinals)[1]

    def _participation(self, ordinals: Int64s) -> tuple[Int64s, Int64s]:
        async def read() -> tuple[Int64s, Int64s]:
            async with self.store.reading() as rows:
                return await rows.participation.of(self.run, self.eligible.numbers(ordinals))

        which = ordinals.tobytes()
        if which not in self.asked:
            self.asked.clear()
            self.asked[which] = asyncio.run_coroutine_threadsafe(read(), self.loop).result()
        return self.asked[which]


async def draw(  # noqa: PLR0913 - what a draw depends on
    store: Store, plan: Plan, state: ServerState, *, run: str, eligible: Eligible, coins: Coins
) -> Int64s:
    """Return the numbers of the clients picked for the next round of training, in the order of the cohort."""
    view = _View(eligible, run, store, asyncio.get_running_loop())
    wanted = _size(plan)
    sampler = _enlarged(plan, eligible)
    found = np.zeros(0, dtype=np.int64)
    for _ in range(_DRAWS if wanted is not None else 1):
        ordinals = await asyncio.to_thread(draw_cohort, sampler, view, state.round + 1, coins)
        drawn = eligible.numbers(ordinals)
        if eligible.base is None:
            async with store.reading() as rows:
                drawn = drawn[await rows.clients.eligible(eligible.population, drawn, eligible.profiles)]
        if wanted is not None:
            drawn = drawn[np.argsort(coins.words(len(drawn)), kind="stable")]
            drawn = drawn[~np.isin(drawn, found)]
        found = np.concatenate([found, drawn])
        if wanted is None or len(found) >= min(wanted, eligible.count):
            break
    return found if wanted is None else found[:wanted]


def _size(plan: Plan) -> int | None:
    """Return how many clients a cohort has, those on top included, or None where that is left to coins."""
    sampler: Any = plan.cohort
    if not has_fixed_size(sampler):
        return None
    over: float = getattr(plan.schedule, "over_selection", 0.0)
    size: int = math.ceil(sampler.size * (1 + over) - 1e-9)
    return size


def _enlarged(plan: Plan, eligible: Eligible) -> CohortSampler:
    """Return a plan's sampler, to draw as many more as are not eligible, so that one draw is enough as a rule.

    It is no part of a plan: what the plan promises is of the clients that are asked.
    """
    schedule: Any = plan.schedule
    sampler: Any = picking(schedule, plan.cohort) if schedule.synchronous else plan.cohort
    share = max(eligible.count, 1) / max(eligible.size, 1)
    if share >= 1 or not has_fixed_size(sampler):
        return sampler  # type: ignore[no-any-return]
    size = min(eligible.size, math.ceil(sampler.size / share * _MARGIN) + 8)
    return replace(sampler, size=size)  # type: ignore[no-any-return]


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
