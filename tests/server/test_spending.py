"""What the coordinator calls of the ledger, on a real store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.governance.spending import Clock, ledger_of, origin_of, outcome_of, release_of, sampled, whole_run
from tests.governance.test_ledger import cost_of
from tests.store.rows import seeded

from hansa.algorithms.plan import plan_from_mapping
from hansa.core.errors import HansaError
from hansa.core.ledger import Refusal, SpendKey
from hansa.server import spending
from hansa.store.records import RoundKey
from hansa.store.store import Store

PLAN = {
    "name": "a plan", "rounds": 40, "recipe": "fedavg",
    "model": {"factory": "hansa.training.linear:logistic"},
    "trainer": {"kind": "linear", "epochs": 1, "batch_size": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
}  # fmt: skip


def plan_of(cohort, **changes):
    return plan_from_mapping({**PLAN, "cohort": cohort, **changes})


UNIFORM = plan_of({"kind": "uniform", "size": 10})
SEPARATED = plan_of({"kind": "min-separation", "size": 10, "rounds": 10, "max_participations": 3})


@pytest.fixture
def spend(tmp_path):
    """A function that runs ``test(store, seed, ledger)`` with a budget for so much."""

    def run(test, epsilon=10.0):
        async def whole():
            store = await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'hansa.sqlite'}")
            try:
                seed = await seeded(store)
                return await test(store, seed, await ledger_of(store, seed, epsilon))
            finally:
                await store.close()

        return asyncio.run(whole())

    return run


def key_of(seed, number, attempt=1, kind="training"):
    return RoundKey(seed.run.id, kind, number, attempt)


async def in_one(store, work):
    async with store.transaction() as rows:
        return await work(rows)


def refuses(code, function, *arguments):
    with pytest.raises(HansaError) as caught:
        function(*arguments)
    assert caught.value.code == code
    return str(caught.value)


def test_a_round_is_reserved_frozen_and_committed_in_the_transactions_that_move_it(spend):
    async def test(store, seed, ledger):
        key, run = key_of(seed, 1), seed.run

        async def reserve(rows):
            return await spending.reserve_round(rows, run, key, release_of(), plan=UNIFORM, now=1.0)

        held = await in_one(store, reserve)
        assert held.charged == pytest.approx(cost_of(release_of()))
        await in_one(store, lambda rows: spending.freeze_round(rows, run, key, now=2.0))
        found = await in_one(store, lambda rows: spending.commit_round(rows, run, key, outcome_of(), now=3.0))
        assert found.state == "committed"
        verified = await ledger.verify("wards")
        assert (verified.rows, verified.charged) == (4, held.charged)
        async with store.reading() as rows:
            scope = await rows.ledger.named(seed.tenant.id, "wards")
            said = [each.content for each in await rows.ledger.after(scope.id, 1, 10)]
        assert all(f'"job":"{seed.job.id}"' in each and '"plan_sha256":"plan"' in each for each in said)
        assert '"actor":"somebody"' in said[0]

    spend(test)


def test_what_a_transaction_reserved_that_failed_is_not_spent(spend):
    async def test(store, seed, ledger):
        async def fails(rows):
            await spending.reserve_round(rows, seed.run, key_of(seed, 1), release_of(), plan=UNIFORM, now=1.0)
            raise RuntimeError

        with pytest.raises(RuntimeError):
            await in_one(store, fails)
        assert (await ledger.balance("wards")).charged == 0.0

    spend(test)


def test_an_attempt_that_is_given_up_is_paid_once_for_the_next_one(spend):
    async def test(store, seed, ledger):
        for attempt in (1, 2, 3):
            key = key_of(seed, 1, attempt)

            async def again(rows, key=key):
                found = await spending.reserve_round(rows, seed.run, key, release_of(), plan=UNIFORM, now=1.0)
                if key.attempt < 3:
                    await spending.void_round(rows, seed.run, key, "too few reported", now=1.0)
                return found

            assert (await in_one(store, again)).charged == pytest.approx(cost_of(release_of()))
        assert (await ledger.balance("wards")).charged == pytest.approx(cost_of(release_of()))

    spend(test)


def test_evaluations_and_rounds_of_training_are_charged_apart(spend):
    async def test(store, seed, ledger):
        for kind in ("training", "evaluation"):
            key = key_of(seed, 1, kind=kind)
            await in_one(
                store,
                lambda rows, key=key: spending.reserve_round(rows, seed.run, key, release_of(), plan=UNIFORM, now=1.0),
            )
        assert (await ledger.balance("wards")).charged == pytest.approx(cost_of(release_of(), release_of()))

    spend(test)


def test_a_round_that_would_overdraw_is_a_refusal(spend):
    async def test(store, seed, ledger):
        async def reserve(rows):
            return await spending.reserve_round(rows, seed.run, key_of(seed, 1), release_of(), plan=UNIFORM, now=1.0)

        found = await in_one(store, reserve)
        assert isinstance(found, Refusal)
        assert found.balance.charged == 0.0
        assert (await ledger.verify("wards")).rows == 1

    spend(test, epsilon=0.5)


def test_a_plan_that_shows_an_overdraft_is_refused_when_it_is_submitted(spend):
    async def test(store, seed, ledger):
        async def check(rounds):
            async with store.reading() as rows:
                return await spending.check_submission(
                    rows, seed.tenant.id, seed.population.id, [(release_of(), rounds)], plan=UNIFORM, now=1.0
                )

        assert (await check(3)).charged == 0.0
        with pytest.raises(HansaError) as caught:
            await check(40)
        assert caught.value.code == "HANSA-BUDGET-OVERDRAWN"
        assert f"{cost_of(*[release_of()] * 40):.4f} charged" in str(caught.value)
        key = SpendKey("another-run", 1, 1)
        await ledger.reserve(key, release_of(), origin_of(seed))
        with pytest.raises(HansaError):
            await check(3)
        assert (await ledger.verify("wards")).rows == 2

    spend(test, epsilon=cost_of(*[release_of()] * 3) + 1e-6)


def test_a_run_of_correlated_noise_pays_when_it_begins_and_not_again(spend):
    async def test(store, seed, ledger):
        cost = cost_of(whole_run())
        for number in (1, 2):

            async def round_(rows, number=number):
                key, run = key_of(seed, number), seed.run
                await spending.reserve_round(rows, run, key, whole_run(), plan=SEPARATED, now=1.0)
                await spending.freeze_round(rows, run, key, now=1.0)
                await spending.commit_round(rows, run, key, outcome_of(noise_row=number - 1), now=1.0)

            await in_one(store, round_)
            assert (await ledger.balance("wards")).charged == pytest.approx(cost)
        other = replace(seed, run=replace(seed.run, id="run-2"))
        await in_one(
            store,
            lambda rows: spending.reserve_round(
                rows, other.run, key_of(other, 1), whole_run(), plan=SEPARATED, now=Clock().now()
            ),
        )
        assert (await ledger.balance("wards")).charged == pytest.approx(cost_of(whole_run(), whole_run()))
        await in_one(store, lambda rows: spending.void_run(rows, other.run, "cancelled", now=1.0))
        assert (await ledger.balance("wards")).charged == pytest.approx(cost)

    spend(test)


@pytest.mark.parametrize(
    "cohort",
    [{"kind": "uniform", "size": 10}, {"kind": "min-separation", "size": 10, "rounds": 10},
     {"kind": "min-separation", "size": 10, "rounds": 10, "max_participations": 4},
     {"kind": "min-separation", "size": 10, "rounds": 9, "max_participations": 3}],
)  # fmt: skip
def test_participations_that_no_sampler_enforces_are_not_claimed(cohort):
    assert "at most 3 participations, 10 rounds apart" in refuses(
        "HANSA-BUDGET-CLAIM", spending.check_claims, plan_of(cohort), whole_run()
    )


def test_participations_that_are_enforced_may_be_claimed():
    spending.check_claims(SEPARATED, whole_run())
    spending.check_claims(SEPARATED, whole_run(k=4, b=9))
    refuses("HANSA-BUDGET-CLAIM", spending.check_claims, SEPARATED, whole_run(rounds=39))


def test_sampling_is_claimed_only_where_the_cohort_is_drawn_so():
    spending.check_claims(plan_of({"kind": "poisson", "rate": 0.01}), sampled())
    for cohort in ({"kind": "poisson", "rate": 0.02}, {"kind": "uniform", "size": 10}):
        refuses("HANSA-BUDGET-CLAIM", spending.check_claims, plan_of(cohort), sampled())
    spending.check_claims(UNIFORM, release_of())
