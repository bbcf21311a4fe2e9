"""Runs with privacy: one noised model whatever computes it, with or without a secure sum, and honest words about it."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import load_file

import hansa
from hansa.algorithms.plan import plan_from_mapping

COMMON = {
    "name": "private",
    "seed": 5,
    "rounds": 4,
    "data": {"source": "synthetic", "arguments": {"clients": 40, "features": 6, "classes": 3}},
    "model": {"factory": "hansa.training.linear:softmax"},
    "trainer": {"kind": "linear", "epochs": 2, "batch_size": 8, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
    "cohort": {"kind": "min-separation", "size": 13, "rounds": 2, "max_participations": 2},
    "aggregator": {"kind": "fixed-mean", "divisor": 13},
    "evaluation": {"every": 2, "federated": False},
    "privacy": {"clip_norm": 0.5, "delta": 1e-3, "epsilon": 8.0},
}
SECURE = {"minimum_survivors": 10, "minimum_cohort": 10, "assumed_colluding": 1}
PRIVATE = COMMON["privacy"]
MECHANISMS = {
    "gaussian": {},
    "poisson": {"cohort": {"kind": "poisson", "rate": 0.3}, "privacy": PRIVATE | {"trusted_sampling": True}},
    "banded-matrix": {"privacy": PRIVATE | {"mechanism": "banded-matrix"}},
    "tree": {"privacy": PRIVATE | {"mechanism": "tree"}},
    "adaptive": {"privacy": PRIVATE | {"epsilon": 20.0, "adaptive_clip": {"lowest": 0.01, "highest": 10.0}}},
    "secure": {"secure_aggregation": SECURE},
    "distributed": {"secure_aggregation": SECURE, "privacy": PRIVATE | {"noise_by": "clients"}},
}


@pytest.fixture(autouse=True)
def _working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*changes, executor="serial", **how):
    tables = dict(COMMON)
    for change in changes:
        tables |= change
    return hansa.run(plan_from_mapping(tables), executor=executor, **how)


def model_of(result):
    tensors = load_file(result.model)
    return np.concatenate([tensors[name].astype(np.float64).reshape(-1) for name in sorted(tensors)])


def events_of(result):
    return [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]


WAYS = [("serial", {}), ("batched", {"chunk": 4, "workers": 1}), ("batched", {"chunk": 8, "workers": 2}),
        ("process", {"chunk": 4, "workers": 2})]  # fmt: skip


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_executor_and_chunk_gives_the_same_model_bit_for_bit(mechanism):
    found = {run(MECHANISMS[mechanism], executor=executor, **how).summary["model_sha256"] for executor, how in WAYS}
    assert len(found) == 1


@pytest.mark.parametrize("mechanism", ["secure", "distributed"])
def test_the_protocols_machines_give_the_noised_sum_of_arithmetic(mechanism):
    change = MECHANISMS[mechanism]
    exact = {"secure_aggregation": change["secure_aggregation"] | {"mode": "exact"}}
    assert run(change).summary["model_sha256"] == run(change, exact).summary["model_sha256"]


def test_noise_is_in_the_model_and_shrinks_as_the_budget_grows():
    def distance(epsilon):
        noised = run({"privacy": PRIVATE | {"epsilon": epsilon}})
        return np.linalg.norm(model_of(noised) - plain)

    plain = model_of(run({"privacy": PRIVATE | {"epsilon": 1e9}}))
    far, near = distance(1.0), distance(1000.0)
    assert far > 10 * near > 0


def test_amplification_by_a_share_of_more_clients_than_there_are_is_refused():
    sampled = PRIVATE | {"trusted_sampling": True, "adjacency": "replace-one"}
    change = {"cohort": {"kind": "uniform", "size": 13}}
    with pytest.raises(
        hansa.HansaError, match=r"privacy\.population: amplification is claimed for at least 41 clients"
    ):
        run(change | {"privacy": sampled | {"population": 41}})
    run(change | {"privacy": sampled | {"population": 40}})


def test_a_round_that_nobody_is_drawn_for_releases_noise():
    change = {"cohort": {"kind": "poisson", "rate": 1e-9}, "privacy": PRIVATE | {"trusted_sampling": True}}
    assert np.linalg.norm(model_of(run(change))) > 0


def test_the_clip_norm_follows_the_updates():
    start = {"clip_norm": 9.0, "epsilon": 20.0, "adaptive_clip": {"lowest": 0.01, "highest": 10.0}}
    changed = run({"privacy": PRIVATE | start, "rounds": 12, "cohort": {"kind": "full"},
                   "aggregator": {"kind": "fixed-mean", "divisor": 40}})  # fmt: skip
    norms = [event["clip_norm"] for event in events_of(changed) if event["event"] == "round"]
    assert norms[0] == 9.0
    assert all(0.8 < after / before < 1.25 for before, after in pairwise(norms))
    assert norms[-1] < 6.0


def test_a_run_that_was_stopped_goes_on_with_the_same_noise():
    whole = run({"rounds": 6})
    part = hansa.run(
        plan_from_mapping(COMMON | {"rounds": 6}), executor="serial", callbacks=[lambda event: event.get("round") == 3]
    )
    assert part.summary["model_sha256"] != whole.summary["model_sha256"]


def test_the_summary_says_what_the_run_would_cost_and_that_it_is_hypothetical():
    told = run().summary["privacy"]
    assert told["epsilon_charged"] <= 8.0 < told["epsilon_charged"] * 1.01
    assert told["epsilon_reference"] < told["epsilon_charged"]
    assert (told["unit"], told["adjacency"], told["delta"]) == ("client", "zero-out", 1e-3)
    assert "hypothetical" in told["meaning"]
    assert "seed" in told["meaning"]


def test_no_loss_of_the_clients_is_told():
    result = run()
    rounds = [event for event in events_of(result) if event["event"] == "round"]
    assert [event["train_loss"] for event in rounds] == [None] * 4
    assert all("scaled_down" not in event for event in rounds)
