"""Opening a round: who may take part, who is picked, and the one transaction that makes it so."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from hansa.algorithms.round_storage import folded_early
from hansa.algorithms.schedule import has_fixed_size
from hansa.core.errors import HansaError, StoreConflictError
from hansa.core.killpoints import reached
from hansa.core.layout import Int64s
from hansa.server import private_rounds
from hansa.server.board import Posted
from hansa.server.cohorts import Eligible, draw, eligible_clients, everyone, secret_coins
from hansa.server.contexts import RunContext, store_state
from hansa.server.eligibility import Eligibility
from hansa.server.lifecycle import Upcoming, at_goal, goal_of
from hansa.server.rounds_at_rest import round_name
from hansa.server.services import Services
from hansa.server.shared_callers import recent_callers
from hansa.store.backup import ATTEMPTS
from hansa.store.records import Assigned, Client, Round, RoundKey, Run

RESUMED: Final = "resumed"
"""The note of a run that says when the operator let it go on: attempts that were given up before count no more."""
_UNAFFORDABLE: Final = frozenset(
    {"HANSA-BUDGET-OVERDRAWN", "HANSA-BUDGET-MISSING", "HANSA-BUDGET-SCOPE", "HANSA-BUDGET-CLAIM",
     "HANSA-BUDGET-SETTLED", "HANSA-BUDGET-RESTORED", "HANSA-NOISE-ROW"}
)  # fmt: skip
"""What a run may not spend: it waits for the operator."""
_LONGEST_PAUSE: Final = 30.0
"""Seconds, at most, between two attempts of a round."""


@dataclass(frozen=True)
class NotYet:
    """A round that cannot be opened now; with ``pause``, not without the operator; ``passing``: soon by itself."""

    why: str
    pause: str | None = None
    passing: bool = False


@dataclass(frozen=True)
class Opening:
    """A round that was opened, with its cohort."""

    round: Round
    assigned: tuple[Assigned, ...]


def posted(services: Services, context: RunContext, round_: Round) -> Posted:
    """Return an open round as the board shows it."""
    schedule: Any = context.plan.schedule
    goal = goal_of(context.plan, round_)[0] if at_goal(context.plan, round_) else 0
    if round_.id.kind == "training" and not schedule.synchronous:
        goal = 1
    return Posted(round_, context, goal, services.settings.fold_every if folded_early(context.plan) else 0)


async def open_next(services: Services, context: RunContext, upcoming: Upcoming) -> Opening | NotYet:  # noqa: PLR0911 - each a reason to wait
    """Open a run's next round: draw, make its key, and commit. Raises StoreConflictError where another was first."""
    run = context.run
    async with services.store.reading() as rows:
        last = await rows.rounds.last_attempt(run.id, upcoming.kind, upcoming.round)
    failed = 0
    if last is not None and last.state == "abandoned" and private_rounds.DRAWN in last.notes:
        why = f"round {upcoming.round} was given up after its row of correlated noise was drawn, which serves no other"
        return NotYet(why, pause=f"[HANSA-NOISE-ROW] {why} sum; cancel the run, and submit the job again")
    if last is not None and last.state == "abandoned" and (last.closed_at or 0.0) >= run.notes.get(RESUMED, 0.0):
        failed = int(last.notes.get("failed", 0)) + 1
        if failed >= services.settings.max_attempts:
            why = f"{upcoming.kind} round {upcoming.round} was given up {failed} times, at last because {_reason(last)}"
            after = (
                "look at its events, then resume the run, or begin another from its model (hansa submit --begin-from)"
            )
            return NotYet(why, pause=f"[HANSA-RUN-ATTEMPTS] {why}; {after}")
        if services.clock.now() < (last.closed_at or 0.0) + _pause_before(failed):
            return NotYet("the last attempt was given up just now", passing=True)
    eligible = await eligible_of(services, context)
    needed = _needed(context, upcoming)
    fewest, what = max((needed, "a round"), *_awaited(context, upcoming), key=lambda each: each[0])
    if eligible.count < fewest:
        return NotYet(too_few(what, fewest))
    numbers = await _numbers(services, context, upcoming, eligible)
    if len(numbers) < needed:
        return NotYet("too few clients could be picked")
    key = RoundKey(run.id, upcoming.kind, upcoming.round, next_attempt(run, last))
    try:
        return await _commit(services, context, upcoming, key=key, eligible=eligible, numbers=numbers, failed=failed)
    except HansaError as error:
        if error.code not in _UNAFFORDABLE:
            raise
        return NotYet(str(error), pause=f"[{error.code}] {error}")


def _pause_before(failed: int) -> float:
    """Return for how many seconds a round rests that was given up so often: what is wrong may pass, or be mended."""
    return min(_LONGEST_PAUSE, 2.0 ** min(failed - 1, 16))


def _reason(last: Round) -> str:
    return str((last.report or {}).get("why", "of an unknown reason"))


def next_attempt(run: Run, last: Round | None) -> int:
    """Return the number of a round's next attempt: no client has seen it, not even before the server was restored."""
    return 1 + max(0 if last is None else last.id.attempt, int(run.notes.get(ATTEMPTS, 0)))


async def eligible_of(services: Services, context: RunContext) -> Eligible:
    """Return who may be picked for a run now: all active clients, or those of them that called lately."""
    async with services.store.reading() as rows:
        population = await rows.populations.get(context.run.population)
        if population is None:
            raise LookupError("a run has a population")
        callers = None
        if population.admission == "checked-in":
            callers = await recent_callers(services, rows, population.id)
        eligibility = Eligibility(context.job.eligibility, population.minimum_version)
        return await eligible_clients(rows, population.id, eligibility, callers=callers)


def _awaited(context: RunContext, upcoming: Upcoming) -> Iterator[tuple[int, str]]:
    """Yield how many clients must be there beside those of a round, and for what."""
    run, privacy = context.run, context.plan.privacy
    began = run.round > 0 or "statistics" in run.notes or "evaluated" in run.notes
    yield (1, "a round") if began else (int(run.notes.get("wait_for", 1)), "the run's first round (--wait-for)")
    if privacy is not None and upcoming.kind == "training":
        yield privacy.population or 0, "the plan's privacy.population"


def too_few(what: str, fewest: int) -> str:
    """Return why a run waits that has fewer eligible clients than something of it needs."""
    return f"{what} needs {fewest} eligible clients, and fewer are"


async def wait(services: Services, run: Run, why: str) -> None:
    """Let a run say why it opens no round. Raises StoreConflictError where it was changed in between."""
    async with services.store.transaction() as rows:
        await rows.runs.change(replace(run, why=why))
        await rows.events.add(
            "run.waiting", tenant=run.tenant, at=services.clock.now(), run=run.id, detail={"why": why}
        )


def _needed(context: RunContext, upcoming: Upcoming) -> int:
    """Return how many clients a round needs, at least. One in which coins picked nobody (Poisson) is a round too."""
    schedule: Any = context.plan.schedule
    secure = context.plan.secure_aggregation
    fewest = 1 if secure is None else secure.minimum_cohort
    if upcoming.kind != "training" or not schedule.synchronous:
        return fewest
    return max(schedule.needed_reports or int(has_fixed_size(context.plan.cohort)), 0 if secure is None else fewest)


async def _numbers(services: Services, context: RunContext, upcoming: Upcoming, eligible: Eligible) -> Int64s:
    """Return the numbers of the cohort, in its order."""
    if upcoming.kind == "training":
        return await draw(
            services.store,
            context.plan,
            context.state,
            run=context.run.id,
            eligible=eligible,
            coins=secret_coins(),
        )
    async with services.store.reading() as rows:
        base = np.arange(eligible.size, dtype=np.int64)
        chosen = await rows.clients.eligible(eligible.population, eligible.numbers(base), eligible.profiles)
    numbers = everyone(eligible, chosen)
    wanted = context.plan.evaluation.federated_clients
    if upcoming.everyone or wanted is None or wanted >= len(numbers):
        return numbers
    coins = context.streams.of("evaluation").coins()
    return numbers[np.sort(coins.distinct(len(numbers), wanted))]


async def _commit(  # noqa: PLR0913 - what a round is made of
    services: Services,
    context: RunContext,
    upcoming: Upcoming,
    *,
    key: RoundKey,
    eligible: Eligible,
    numbers: Int64s,
    failed: int,
) -> Opening:
    now, run = services.clock.now(), context.run
    sealing, wrapped = await asyncio.to_thread(services.keys.create, round_name(key))
    model = run.model
    if run.slots is None:
        model, _, _ = await store_state(services.blobs, context.state)
    remembered = await private_rounds.run_notes(services.keys, context)
    reached("coordinator.round.opening")
    async with services.store.transaction() as rows:
        current = await rows.runs.get(run.id, for_change=True)
        if current is None or current.state != "running" or current.version != run.version:
            raise StoreConflictError(f"Run {run.id}")
        if remembered or current.why:
            await rows.runs.change(replace(current, why=None, notes={**current.notes, **remembered}))
        clients = await rows.clients.numbered(run.population, numbers)
        charged = await private_rounds.begin(rows, context, key, population=eligible.count, now=now)
        round_ = Round(
            id=key,
            state="opening",
            version=0,
            model=model,
            cohort_size=len(clients),
            population=eligible.count,
            opened_at=now,
            deadline=deadline_of(services, context, now),
            key=wrapped,
            notes={
                "tenant": run.tenant,
                "size": min(_size(context), len(clients)),
                "everyone": upcoming.everyone,
                "failed": failed,
                **charged,
            },
        )
        assigned = tuple(_assigned(key, position, client) for position, client in enumerate(clients))
        await rows.rounds.add(round_, assigned)
        if context.plan.secure_aggregation is not None:
            await services.sums.open(rows, context, round_, clients, sealing)
        for kind in ("round.created", "round.opening"):
            detail = {"kind": key.kind, "round": key.round, "attempt": key.attempt, "selected": len(clients)}
            await rows.events.add(kind, tenant=run.tenant, at=now, run=run.id, detail=detail)
    return Opening(round_, assigned)


def _assigned(key: RoundKey, position: int, client: Client) -> Assigned:
    return Assigned(key, client.id, client.number, position)


def _size(context: RunContext) -> int:
    """Return how many reports close a round where the plan has no goal: the cohort without those on top."""
    sampler: Any = context.plan.cohort
    size = getattr(sampler, "size", None)
    return size if isinstance(size, int) else 2**53


def deadline_of(services: Services, context: RunContext, now: float) -> float | None:
    """Return when a round, or a client's part in a buffer, is waited for no more."""
    schedule: Any = context.plan.schedule
    seconds = getattr(schedule, "round_deadline", None) or services.settings.round_deadline or math.inf
    return None if math.isinf(seconds) else now + seconds
