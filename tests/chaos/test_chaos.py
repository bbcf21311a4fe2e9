"""Whoever is killed, and wherever: the model is the same, and every acknowledged report is counted exactly once.

The long run is ``python -m hansa.testing.chaos --kills 200``, or ``pytest -m slow tests/chaos``.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

import pytest

from hansa.algorithms.samplers import Uniform
from hansa.algorithms.schedule import Sync
from hansa.core.killpoints import KILL_POINTS
from hansa.testing.campaign import Campaign, torture
from hansa.testing.chaos import (
    ABANDONED,
    OF_AUTHORITIES,
    OF_DECRYPTORS,
    OF_SUMS,
    PLANS,
    Series,
    next_campaign,
    points_of,
)
from hansa.testing.chaos_plans import AUTHORITY, AWAY, CORRELATED, ONESHOT, PRIVATE, SECURE
from hansa.testing.postgres import own_postgres
from hansa.testing.victims import ANYWHERE

SERVER = [point for point in points_of("full") if not point.startswith("client.")]
CLIENTS = [point for point in points_of("full") if point.startswith("client.")]


def holds(result, points):
    assert result.problems == ()
    assert Counter(points) <= result.tally.kills


def test_every_kill_point_is_passed_under_some_plan():
    assert {point for plan in PLANS for point in points_of(plan)} == set(KILL_POINTS)


def test_a_campaign_shares_out_every_point_that_was_not_hit_often_enough():
    for plan, services in (("oneshot", OF_DECRYPTORS), ("authority", OF_AUTHORITIES)):
        series = Series(points_of(plan), 2)
        series.kills.update({"server.enrolled": 2, services[0]: 1})
        campaign = next_campaign(series, plan, 0)
        assert set(campaign.services) == set(services)
        assert campaign.services[-1] == services[0], "what was hit less comes first"
        wanted = {*campaign.server, *campaign.clients, *campaign.services}
        assert wanted == {*points_of(plan), ANYWHERE} - {"server.enrolled"}


def test_where_few_points_are_left_a_campaign_kills_there_as_often_as_they_lack():
    series = Series(points_of("authority"), 5)
    series.kills.update(dict.fromkeys(points_of("authority"), 5) | {"authority.drawn": 2, "sums.record-made": 4})
    campaign = next_campaign(series, "authority", 0)
    assert list(campaign.services) == ["authority.drawn"] * 3
    assert [point for point in campaign.server if point != ANYWHERE] == ["sums.record-made"]


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_once_at_every_point_a_federation_gives_the_same_model(half, tmp_path):
    server, clients = SERVER[half::2], CLIENTS[half::2]
    campaign = Campaign(server, clients, passes=1, bad_network=False, seed=half)
    holds(torture(campaign, tmp_path / "federation"), [*server, *clients])


@pytest.mark.slow
def test_on_postgresql_either_replica_may_be_killed(tmp_path_factory):
    server, clients = ["coordinator.round.opened", "server.report.recorded", "coordinator.round.folded"], []
    with own_postgres(tmp_path_factory.mktemp("pg")) as database:
        campaign = Campaign(server, clients, database=database, replicas=2, passes=1, bad_network=False)
        holds(torture(campaign, tmp_path_factory.mktemp("federation") / "f"), [*server, *clients])


@pytest.mark.slow
def test_with_deadlines_that_outages_pass_a_report_is_counted_once_or_its_round_abandoned(tmp_path):
    server, clients = [ABANDONED], ["client.trained", "client.acknowledged"] * 2
    campaign = Campaign(server, clients, (AWAY,), seed=1, passes=1, outage=5.0, bad_network=False)
    result = torture(campaign, tmp_path / "federation")
    holds(result, [*server, *clients])
    assert result.abandoned > 0


def test_killed_in_the_middle_of_secure_sums_a_federation_goes_on(tmp_path):
    server, clients = ([each for each in OF_SUMS if each.startswith(kind)] for kind in ("sums", "client"))
    campaign = Campaign(server, clients, (SECURE,), passes=3, bad_network=False, seed=1)
    holds(torture(campaign, tmp_path / "federation"), [*server, *clients])


def test_killed_around_its_draw_an_authority_has_drawn_once_for_each_sum_and_the_model_is_the_same(tmp_path):
    campaign = Campaign([], [], (AUTHORITY,), OF_AUTHORITIES, passes=1, bad_network=False)
    holds(torture(campaign, tmp_path / "federation"), OF_AUTHORITIES)


@pytest.mark.slow
def test_killed_in_the_middle_of_a_sum_of_masks_a_decryptor_goes_on(tmp_path):
    campaign = Campaign([], [], (ONESHOT,), OF_DECRYPTORS, passes=1, bad_network=False)
    holds(torture(campaign, tmp_path / "federation"), OF_DECRYPTORS)


def test_whoever_is_killed_every_model_is_charged_exactly_once(tmp_path):
    server = [f"coordinator.round.{point}" for point in ("opening", "opened", "model-written", "closed")]
    server += ["coordinator.fold.written", "coordinator.fold.committed"]
    campaign = Campaign(server, [], (PRIVATE, CORRELATED), seed=2, passes=1, bad_network=False)
    holds(torture(campaign, tmp_path / "federation"), server)


@pytest.mark.slow
def test_on_postgresql_a_partial_sum_counts_once_whichever_replica_dies(tmp_path_factory):
    server = ["coordinator.fold.written", "server.report.recorded", "coordinator.fold.committed"]
    everybody = replace(PRIVATE, cohort=Uniform(size=4), schedule=Sync(report_goal=4, round_deadline=10.0))
    with own_postgres(tmp_path_factory.mktemp("pg")) as database:
        campaign = Campaign(server, [], (everybody,), database=database, replicas=2, passes=1, bad_network=False)
        holds(torture(campaign, tmp_path_factory.mktemp("federation") / "f"), server)


@pytest.mark.slow
def test_what_an_attempt_reserved_that_is_given_up_is_given_back_once(tmp_path):
    server, clients = [ABANDONED], ["client.trained", "client.acknowledged"] * 2
    campaign = Campaign(server, clients, (PRIVATE,), seed=1, passes=1, outage=5.0, bad_network=False)
    result = torture(campaign, tmp_path / "federation")
    holds(result, [*server, *clients])
    assert result.abandoned > 0


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("plan", [*PLANS])
def test_killed_again_and_again_on_a_bad_network(plan, database, seed, tmp_path_factory):
    settings = {"seconds": 60.0}
    with ExitStack() as stack:
        if database == "postgresql":
            url = stack.enter_context(own_postgres(tmp_path_factory.mktemp("pg")))
            settings |= {"database": url, "replicas": 2}
        campaign = next_campaign(Series(points_of(plan), 1), plan, seed, **settings)
        result = torture(campaign, tmp_path_factory.mktemp("federation") / "f")
    assert result.problems == ()
    assert result.tally.total >= 10  # which points: those of the tests above, or of a long run
