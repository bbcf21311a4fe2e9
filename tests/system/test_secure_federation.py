"""Secure sums over a real network: the server learns one sum, and nothing of one hospital lies with it in the clear."""

from __future__ import annotations

import pytest

import hansa
from hansa.testing.hospitals import finished, hospitals, small_plan, submit

SECURE = {"secure_aggregation": {"maximum_cohort": 4, "max_weight": 300.0}}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    plan = small_plan(name="secure", **SECURE)
    with hospitals(folder) as federation:
        federation.start()
        with federation.calls() as calls:
            run = finished(calls, submit(calls, plan), seconds=40)
            rounds = calls.get(f"/runs/{run['id']}/rounds", limit=1000)["rounds"]
    return plan, run, rounds


def test_a_plan_with_a_secure_sum_learns_as_its_simulation_does(deployed, tmp_path):
    plan, run, rounds = deployed
    simulated = hansa.run(plan, out=tmp_path / "run", executor="serial")
    assert run["round"] == simulated.summary["rounds"]
    assert {each["state"] for each in rounds} == {"closed"}
    overall = next(each["report"]["federated"]["auc"]["overall"] for each in rounds if each["kind"] == "evaluation")
    assert overall == pytest.approx(simulated.summary["metrics"]["federated"]["auc"]["overall"], abs=0.01)
