"""Whoever is killed, and wherever: the model is the same, and every acknowledged report is counted exactly once.

The long run is ``python -m hansa.testing.chaos --kills 200``, or ``pytest -m slow tests/chaos``.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

import pytest

from hansa.core.killpoints import KILL_POINTS
from hansa.testing.chaos import FULL, SHORT, Campaign, torture
from hansa.testing.hospitals import small_plan
from hansa.testing.postgres import own_postgres

ABANDONED = "coordinator.round.abandoned"
SERVER = [point for point in KILL_POINTS if not point.startswith("client.") and point != ABANDONED]
CLIENTS = [point for point in KILL_POINTS if point.startswith("client.")]


def holds(result, points):
    assert result.problems == ()
    assert Counter(points) <= result.tally.kills


@pytest.mark.parametrize("half", [0, 1])
def test_killed_once_at_every_point_a_federation_gives_the_same_model(half, tmp_path):
    server, clients = SERVER[half::2], CLIENTS[half::2]
    campaign = Campaign(server, clients, passes=1, bad_network=False, seed=half)
    holds(torture(campaign, tmp_path / "federation"), [*server, *clients])


def test_on_postgresql_either_replica_may_be_killed(tmp_path_factory):
    server, clients = ["coordinator.round.opened", "server.report.recorded", "coordinator.round.folded"], []
    with own_postgres(tmp_path_factory.mktemp("pg")) as database:
        campaign = Campaign(server, clients, database=database, replicas=2, passes=1, bad_network=False)
        holds(torture(campaign, tmp_path_factory.mktemp("federation") / "f"), [*server, *clients])


def test_with_deadlines_that_outages_pass_a_report_is_counted_once_or_its_round_abandoned(tmp_path):
    server, clients = [ABANDONED], ["client.trained", "client.acknowledged"] * 2
    missed = small_plan(  # training only, and a goal that nobody on top makes up for: whoever is away is missed
        name="whoever is away is missed",
        rounds=3,
        cohort={"kind": "uniform", "size": 2},
        devices={"preset": "hospitals"},
        schedule={"kind": "sync", "report_goal": 2, "round_deadline": 2.5},
        features={"label": "disease", "scaling": "none"},
        evaluation={"federated": False},
    )
    campaign = Campaign(server, clients, (missed,), seed=1, passes=1, outage=5.0, bad_network=False)
    result = torture(campaign, tmp_path / "federation")
    holds(result, [*server, *clients])
    assert result.abandoned > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("plan", [FULL, SHORT], ids=["full", "short"])
def test_killed_again_and_again_on_a_bad_network(plan, database, seed, tmp_path_factory):
    server = [*SERVER, *([ABANDONED] if plan is SHORT else [])]
    clients = [point for point in CLIENTS if plan is FULL or not point.startswith("client.rows")]
    campaign = Campaign(server, clients, (plan,), seed=seed, outage=0.0 if plan is FULL else 4.0)
    folder = tmp_path_factory.mktemp("federation") / "f"
    with ExitStack() as stack:
        if database == "postgresql":
            url = stack.enter_context(own_postgres(tmp_path_factory.mktemp("pg")))
            campaign = replace(campaign, database=url, replicas=2)
        holds(torture(campaign, folder), [*server, *clients])
