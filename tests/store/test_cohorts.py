"""How a server draws cohorts, on each database: from those who are eligible, each as likely as any other."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tests.store.rows import enrolled

from hansa.algorithms.samplers import Full, MinSeparation, Poisson, Uniform
from hansa.algorithms.schedule import Sync
from hansa.core.streams import Streams
from hansa.server import cohorts
from hansa.server.cohorts import Eligible, draw, eligible_clients, secret_coins
from hansa.server.eligibility import Eligibility

EU = 'attributes.region == "eu"'


class _Plan:
    """What a draw asks of a plan."""

    def __init__(self, cohort):
        self.cohort, self.schedule = cohort, Sync()


class _State:
    layout = model = features = None

    def __init__(self, number):
        self.round, self.slots = number, {}


async def _population(store, seed, eu, us):
    """Enrol clients of two regions, by turns while there are both; return the numbers of the first."""
    regions = ["eu"] * eu + ["us"] * us
    np.random.default_rng(3).shuffle(regions)
    for region in regions if len(regions) < 50 else ():
        await enrolled(store, seed.population, 1, attributes={"region": region})
    if len(regions) >= 50:
        half = us // 2
        await enrolled(store, seed.population, half, attributes={"region": "us"})
        await enrolled(store, seed.population, eu, attributes={"region": "eu"})
        await enrolled(store, seed.population, us - half, attributes={"region": "us"})
        return set(range(half, half + eu))
    return {number for number, region in enumerate(regions) if region == "eu"}


async def _eligible(store, seed):
    async with store.reading() as rows:
        return await eligible_clients(rows, seed.population.id, Eligibility(EU), callers=None)


async def _drawn(store, seed, sampler, eligible, *, number=0, coins=None):
    plan, state = _Plan(sampler), _State(number)
    found = await draw(store, plan, state, run=seed.run.id, eligible=eligible, coins=coins or secret_coins())
    assert len(np.unique(found)) == len(found)
    return found.tolist()


@pytest.mark.parametrize("at_once", [20_000, 3])
def test_cohorts_are_of_the_eligible_each_once(run_on, monkeypatch, at_once):
    monkeypatch.setattr(cohorts, "_AT_ONCE", at_once)
    monkeypatch.setattr(cohorts, "_SPARE", 1)

    async def test(store, seed):
        eu = await _population(store, seed, 60, 340)
        eligible = await _eligible(store, seed)
        assert (eligible.count, eligible.numbers_given) == (60, 400)
        for size in (1, 5, 59, 60):
            drawn = await _drawn(store, seed, Uniform(size=size), eligible)
            assert len(drawn) == size
            assert set(drawn) <= eu
        assert await _drawn(store, seed, Full(), eligible) == sorted(eu)
        assert set(await _drawn(store, seed, Poisson(rate=0.2), eligible)) <= eu

    run_on(test)


def test_every_eligible_client_is_as_likely_as_any_other(run_on, monkeypatch):
    """Four hundred cohorts of 3 of 12, of which each client is in 100 on average, give or take 8.7."""
    monkeypatch.setattr(cohorts, "_SPARE", 1)
    monkeypatch.setattr(cohorts, "_MOST", 1)  # else so few are listed

    async def test(store, seed):
        eu = await _population(store, seed, 12, 36)
        eligible = await _eligible(store, seed)
        coins, seen, firsts = Streams(5).of("partition").coins(), Counter(), Counter()
        for _ in range(400):
            drawn = await _drawn(store, seed, Uniform(size=3), eligible, coins=coins)
            seen.update(drawn)
            firsts.update(drawn[:1])
        assert seen.keys() == eu
        assert max(abs(count - 100) for count in seen.values()) < 5 * 8.7
        assert max(abs(firsts[number] - 400 / 12) for number in eu) < 5 * 5.6

    run_on(test)


def test_who_took_part_lately_rests_and_all_others_are_found(run_on):
    async def test(store, seed):
        eu = await _population(store, seed, 30, 170)
        sampler, took = MinSeparation(size=10, rounds=3), []
        for number in range(6):
            drawn = await _drawn(store, seed, sampler, await _eligible(store, seed), number=number)
            assert len(drawn) == 10
            assert set(drawn) <= eu - set().union(*took[-2:])
            took.append(set(drawn))
            async with store.transaction() as rows:
                await rows.participation.record(seed.run.id, np.array(drawn), number + 1)
        assert set().union(*took[:3]) == eu == set().union(*took[3:])  # the last of three is those who are left

    run_on(test)


def test_clients_that_went_since_they_were_counted_make_a_cohort_smaller(run_on):
    async def test(store, seed):
        eu = await _population(store, seed, 4, 6)
        counted = replace(await _eligible(store, seed), count=6)
        assert set(await _drawn(store, seed, Uniform(size=6), counted)) == eu
        nobody = Eligible(seed.population.id, None, 10, frozenset(), 0)
        assert await _drawn(store, seed, Uniform(size=3), nobody) == []

    run_on(test)
