"""One plan, every runtime: where all take part, a federation gives the model of a simulation, bit for bit."""

from __future__ import annotations

import pytest

import hansa
from hansa.simulation.preparation import prepare
from hansa.testing.bucket import own_bucket
from hansa.testing.hospitals import finished, hospitals, model_of, small_plan, submit

CLIP = [{"kind": "clip", "clip_norm": 0.05}]
SCAFFOLD = {
    "trainer": {
        "kind": "linear",
        "epochs": 2,
        "batch_size": 32,
        "optimizer": {"kind": "sgd", "learning_rate": 0.05},
        "hooks": [{"kind": "control-variate"}],
    },
    "transforms": [],
    "server_optimizer": {
        "kind": "sgd",
        "learning_rate": 1.0,
        "branches": {"control": {"kind": "sgd", "learning_rate": "included/population"}},
    },
}
PLANS = {
    "fedavg": {},
    "scaffold": SCAFFOLD,
    "clip": {"transforms": CLIP},
    "momentum": {"server_optimizer": {"kind": "momentum", "momentum": 0.9, "learning_rate": 1.0}},
    "adam": {
        "server_optimizer": {"kind": "adam", "learning_rate": 0.05},
        "aggregator": {"kind": "median"},
        "transforms": [],
    },
    "stopping": {
        "rounds": 40,
        "evaluation": {"every": 1, "metrics": ["auc", "loss"], "baselines": []},
        "stopping": {"metric": "federated.auc", "patience": 2},
    },
}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """Run all plans at once in one federation: name -> (run, digest of its model, its rounds)."""
    prepared = {name: prepare(small_plan(**{"name": name, **changes})) for name, changes in PLANS.items()}
    with hospitals(tmp_path_factory.mktemp("federation")) as federation:
        federation.start()
        with federation.calls() as calls:
            runs = {name: submit(calls, each.plan) for name, each in prepared.items()}
            found = {name: finished(calls, run) for name, run in runs.items()}
            rounds = {name: calls.get(f"/runs/{run}/rounds", limit=1000)["rounds"] for name, run in runs.items()}
            return {name: (run, model_of(calls, prepared[name], run), rounds[name]) for name, run in found.items()}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_gives_the_same_model_simulated_and_deployed(name, deployed, tmp_path):
    run, model, rounds = deployed[name]
    simulated = hansa.run(small_plan(**{"name": name, **PLANS[name]}), out=tmp_path / "run", executor="serial")
    assert run["round"] == simulated.summary["rounds"]
    assert model == simulated.summary["model_sha256"]
    assert run["why"] == simulated.summary["stopped_because"]
    overall = next(each["report"]["federated"] for each in rounds if each["kind"] == "evaluation")
    for metric, values in simulated.summary["metrics"]["federated"].items():
        assert overall[metric]["overall"] == values["overall"]


def test_a_federation_whose_blobs_are_in_a_bucket_gives_the_same_model(tmp_path):
    plan = small_plan(name="in a bucket", rounds=3)
    with own_bucket() as bucket, hospitals(tmp_path / "federation", blobs=bucket) as federation:
        federation.start()
        with federation.calls() as calls:
            found = finished(calls, submit(calls, plan))
            model = model_of(calls, prepare(plan), found)
        assert not (tmp_path / "federation" / "server" / "blobs").exists()
    assert model == hansa.run(plan, out=tmp_path / "run", executor="serial").summary["model_sha256"]
