"""Whoever is killed, and wherever: the model is the same, and every acknowledged report is counted exactly once.

The long run is ``python -m hansa.testing.chaos --kills 200``, or ``pytest -m slow tests/chaos``.
"""

from __future__ import annotations

import pytest

from hansa.core.killpoints import KILL_POINTS
from hansa.testing.chaos import FULL, SHORT, Campaign, torture
from hansa.testing.postgres import own_postgres
from hansa.testing.victims import ANYWHERE

ABANDONED = "coordinator.round.abandoned"
SERVER = [point for point in KILL_POINTS if not point.startswith("client.") and point != ABANDONED]
CLIENTS = [point for point in KILL_POINTS if point.startswith("client.")]


def holds(result, *, kills):
    assert result.problems == ()
    assert not result.tally.missed
    assert result.tally.total >= kills


@pytest.mark.parametrize("half", [0, 1])
def test_killed_once_at_every_point_a_federation_gives_the_same_model(half, tmp_path):
    campaign = Campaign(SERVER[half::2], CLIENTS[half::2], passes=1, bad_network=False, seed=half)
    holds(torture(campaign, tmp_path / "federation"), kills=len(SERVER[half::2]) + len(CLIENTS[half::2]))


def test_on_postgresql_either_replica_may_be_killed(tmp_path_factory):
    points = ["coordinator.round.opened", "server.report.recorded", "coordinator.round.folded", "server.report.sealed"]
    with own_postgres(tmp_path_factory.mktemp("pg")) as database:
        campaign = Campaign(points, ["client.part-sent"], database=database, replicas=2, passes=1, bad_network=False)
        holds(torture(campaign, tmp_path_factory.mktemp("federation") / "f"), kills=5)


def test_with_deadlines_that_outages_pass_a_report_is_counted_once_or_its_round_abandoned(tmp_path):
    campaign = Campaign(
        [ABANDONED, ANYWHERE], ["client.trained", "client.acknowledged"] * 2, (SHORT,), seed=1, passes=1
    )
    result = torture(campaign, tmp_path / "federation")
    holds(result, kills=6)
    assert result.abandoned > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("plan", [FULL, SHORT], ids=["full", "short"])
def test_killed_again_and_again_on_a_bad_network(plan, database, seed, tmp_path_factory):
    server = [*SERVER, *([ABANDONED] if plan is SHORT else [])]
    clients = [point for point in CLIENTS if plan is FULL or not point.startswith("client.rows")]
    folder = tmp_path_factory.mktemp("federation") / "f"
    if database == "sqlite":
        holds(torture(Campaign(server, clients, (plan,), seed=seed), folder), kills=len(server) + len(clients))
        return
    with own_postgres(tmp_path_factory.mktemp("pg")) as url:
        campaign = Campaign(server, clients, (plan,), database=url, replicas=2, seed=seed)
        holds(torture(campaign, folder), kills=len(server) + len(clients))
