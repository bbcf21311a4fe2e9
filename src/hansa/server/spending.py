"""What a run spends of its population's privacy budget, within the transactions that move its rounds.

The order of a round: :func:`reserve_round` in the transaction that opens it; :func:`freeze_round` before its sum is
seen in the clear; :func:`commit_round` in the transaction that closes it, with the next state and the release;
:func:`void_round` in the one that gives an attempt up before that. A scope's row is the last that a transaction locks,
but for the feeds of events.
"""

from __future__ import annotations

from collections.abc import Sequence

from hansa.algorithms.plan import Plan
from hansa.algorithms.samplers import Poisson, Uniform
from hansa.core.errors import HansaError
from hansa.core.ledger import Balance, Ledger, Origin, Outcome, Refusal, Reservation, SpendKey
from hansa.governance import refusals
from hansa.governance.account import Account
from hansa.privacy.event import Sampled
from hansa.privacy.mechanisms import separation, times
from hansa.privacy.release import Release
from hansa.store.records import Population, RoundKey, Run
from hansa.store.store import Rows


async def reserve_round(  # noqa: PLR0913 - who spends what, and when
    rows: Rows, run: Run, key: RoundKey, release: Release, *, plan: Plan, now: float
) -> Reservation | Refusal:
    """Set a round's cost aside before it opens, or the whole run's where its noise is correlated.

    A refusal changes nothing: the round must not open. Raises HansaError where the release claims what the plan does
    not enforce, where the population has no budget, and for another guarantee than its scope's.
    """
    check_claims(plan, release)
    job = await rows.jobs.get(run.job)
    if job is None:
        raise LookupError("a run has a job")
    origin = Origin(population=run.population, job=job.id, plan_sha256=job.plan_sha256, actor=job.submitted_by)
    return await _ledger(rows, run, now).reserve(_key(key), release, origin)


async def freeze_round(rows: Rows, run: Run, key: RoundKey, *, now: float) -> Reservation:
    """Say that a round's sum is about to be seen: it is neither tried again with others nor void from here on."""
    return await _ledger(rows, run, now).freeze(_key(key))


async def commit_round(rows: Rows, run: Run, key: RoundKey, outcome: Outcome, *, now: float) -> Reservation:
    """Say what a round released. Raises HansaError where it has no reservation that stands, or its noise was used."""
    return await _ledger(rows, run, now).commit(_key(key), outcome)


async def void_round(rows: Rows, run: Run, key: RoundKey, why: str, *, now: float) -> Reservation:
    """Give back what an attempt reserved of which nothing was seen. A whole run's reservation stays."""
    return await _ledger(rows, run, now).void(_key(key), why)


async def void_run(rows: Rows, run: Run, why: str, *, now: float) -> Reservation:
    """Give back what a run of correlated noise reserved that ended before anything of it was seen."""
    return await _ledger(rows, run, now).void(SpendKey.whole(run.id), why)


async def check_submission(  # noqa: PLR0913 - who spends what from where
    rows: Rows, tenant: str, population: str, planned: Sequence[tuple[Release, int]], *, plan: Plan, now: float
) -> Balance:
    """Return the balance of a population's scope if a plan's releases, each so many times, still fit into it.

    Nothing is set aside: another job may spend it first. Raises HansaError HANSA-BUDGET-OVERDRAWN where they do not
    fit, and as :func:`reserve_round`.
    """
    for release, _ in planned:
        check_claims(plan, release)
    found = await Account(rows, tenant, now).refuse_overdraft(population, planned)
    if isinstance(found, Refusal):
        raise found.error
    return found


async def require_unlimited(rows: Rows, tenant: str, population: Population) -> None:
    """Raise HansaError for a plan without privacy where a population has a budget: what it releases has no bound."""
    scope = await rows.ledger.of_population(tenant, population.id)
    if scope is not None:
        raise refusals.unprotected(scope, population.name)


def check_claims(plan: Plan, release: Release) -> None:
    """Raise HansaError unless a plan's sampler enforces the participations and the sampling that a release claims.

    Participations are those of one client of the population, by its number, in rounds of one run that closed with it
    included: a run that is charged again counts anew, and pays anew.
    """
    matrix = release.matrix
    if matrix is not None:
        most, apart = times(plan), separation(plan)
        if most > matrix.participations or apart < matrix.separation:
            raise _unclaimed(
                f"The noise assumes at most {matrix.participations} participations, {matrix.separation} rounds apart.",
                f"The cohort allows {most}, {apart} apart.",
                'Use cohort = { kind = "min-separation", rounds = ..., max_participations = ... } with those numbers.',
            )
        if plan.rounds > matrix.rounds:
            raise _unclaimed(
                f"The matrix has {matrix.rounds} rounds.", f"The plan has {plan.rounds}.", "Make the matrix for them."
            )
    if isinstance(release.event, Sampled):
        _check_sampling(plan, release)


def _check_sampling(plan: Plan, release: Release) -> None:
    event, cohort = release.event, plan.cohort
    drawn = isinstance(cohort, Poisson if release.sampling == "poisson" else Uniform)
    rate = cohort.rate if isinstance(cohort, Poisson) else 0.0
    claimed = event.probability if isinstance(event, Sampled) else 1.0
    if not drawn or rate > claimed or plan.secure_aggregation is not None:
        raise _unclaimed(
            f"Amplification by {release.sampling} sampling with probability {claimed:g} needs a cohort that is drawn "
            "so, in secret from everybody who sees the release.",
            "The plan's cohort is drawn otherwise, or its secure sum shows the server who is in it.",
            "Claim no amplification: the event of the release is then without sampling.",
        )


def _unclaimed(rule: str, found: str, action: str) -> HansaError:
    return HansaError("HANSA-BUDGET-CLAIM", rule=rule, found=found, action=action)


def _ledger(rows: Rows, run: Run, now: float) -> Ledger[Release]:
    return Account(rows, run.tenant, now)


def _key(key: RoundKey) -> SpendKey:
    return SpendKey(key.run, key.round, key.attempt, key.kind)
