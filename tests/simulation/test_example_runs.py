"""Runs that protect single examples: one model whatever computes it, that replays, learns, and is told apart."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import hansa
from hansa.algorithms.plan import plan_from_mapping
from hansa.core.errors import ModelError
from hansa.simulation.preparation import prepare

pytest.importorskip("torch")
pytest.importorskip("opacus")

GIVEN = {"clip_norm": 0.5, "delta": 1e-3, "epsilon": 8.0, "expected_examples": 40}
SGD = {"kind": "sgd", "learning_rate": 0.2, "momentum": 0.5}
TRAINER = {"kind": "linear", "steps": 3, "batch_size": 8, "optimizer": SGD, "example_privacy": GIVEN}
COMMON = {
    "name": "examples",
    "seed": 5,
    "rounds": 3,
    "data": {"source": "synthetic", "arguments": {"clients": 12, "features": 6, "classes": 3}},
    "model": {"factory": "hansa.training.linear:softmax"},
    "trainer": TRAINER,
    "cohort": {"kind": "uniform", "size": 7},
    "evaluation": {"every": 3, "federated": False},
}
SCAFFOLD = {
    "trainer": TRAINER | {"optimizer": {"kind": "sgd", "learning_rate": 0.2}, "hooks": [{"kind": "control-variate"}]},
    "server_optimizer": {
        "kind": "sgd",
        "learning_rate": 1.0,
        "branches": {"control": {"kind": "sgd", "learning_rate": "included/population"}},
    },
}
PLANS = {
    "linear": {},
    "scaffold": SCAFFOLD,
    "torch": {"model": {"factory": "tests.simulation.networks:dense"}, "trainer": TRAINER | {"kind": "torch"}},
    "convolution": {
        "data": {"source": "synthetic", "arguments": {"clients": 12, "shape": [1, 6, 6], "classes": 3}},
        "model": {"factory": "tests.simulation.networks:image"},
        "trainer": TRAINER | {"kind": "torch", "optimizer": {"kind": "adam", "learning_rate": 0.01}},
    },
    "tokens": {
        "data": {"source": "synthetic", "arguments": {"clients": 12, "shape": [5], "classes": 3, "vocabulary": 7}},
        "model": {"factory": "tests.simulation.networks:tokens"},
        "trainer": TRAINER | {"kind": "torch"},
    },
    "both units": {
        "aggregator": {"kind": "fixed-mean", "divisor": 7},
        "privacy": {"clip_norm": 0.5, "delta": 1e-3, "epsilon": 50.0},
    },
    "secure sum": {"secure_aggregation": {"minimum_survivors": 5, "minimum_cohort": 5, "max_value": 4.0}},
}
SLOW = ("convolution", "tokens")
WAYS = [("serial", {}), ("batched", {"chunk": 4, "workers": 2}), ("process", {"chunk": 4, "workers": 2})]


@pytest.fixture(autouse=True)
def _working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*changes, executor="serial", **how):
    tables = dict(COMMON)
    for change in changes:
        tables |= change
    return hansa.run(plan_from_mapping(tables), executor=executor, **how)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PLANS])
def test_every_executor_gives_the_same_model_bit_for_bit(name):
    found = {run(PLANS[name], executor=executor, **how).summary["model_sha256"] for executor, how in WAYS}
    assert len(found) == 1


@pytest.mark.parametrize("name", ["torch", "scaffold"])
def test_a_run_replays(name):
    result = run(PLANS[name])
    assert hansa.replay(result.path).differences == ()
    assert run(PLANS[name], {"seed": 6}).summary["model_sha256"] != result.summary["model_sha256"]


def test_the_summary_names_the_unit_and_what_the_number_is_worth():
    summary = run(PLANS["both units"]).summary
    examples, clients = summary["example_privacy"], summary["privacy"]
    assert (examples["unit"], clients["unit"]) == ("example of one client", "client")
    assert 7.9 < examples["epsilon_charged"] <= 8.0
    assert (examples["steps"], examples["participations"], examples["probability"]) == (9, 3, 0.2)
    assert "hypothetical" in examples["meaning"]
    plain = {name: value for name, value in TRAINER.items() if name != "example_privacy"}
    assert run({"trainer": plain}).summary["example_privacy"] is None


def test_what_opacus_gets_wrong_is_refused():
    """Opacus gives the padding of an embedding a gradient, which it has not; a trial against single passes finds it."""
    model = {"model": {"factory": "tests.simulation.networks:embedded"}}
    with pytest.raises(ModelError, match="Opacus finds other gradients than each example has alone"):
        run(PLANS["tokens"], model)


def test_the_report_says_that_it_is_about_examples_only():
    result = run()
    page = (result.path / "report.html").read_text()
    assert "Differential privacy of single examples, which says nothing about a client as a whole" in page
    assert "with the noise of its client&#39;s steps" in page
    assert "without differential privacy nothing bounds" in page


def test_no_loss_of_the_clients_is_told():
    events = [json.loads(line) for line in (run().path / "metrics.jsonl").read_text().splitlines()]
    assert [event["train_loss"] for event in events if event["event"] == "round"] == [None] * 3


def test_baselines_have_no_noise():
    """They are for comparison: with next to no noise in the run, its baselines stay what they were."""
    change = {"evaluation": COMMON["evaluation"] | {"baselines": ["centralised"], "federated": False}}
    data = {"data": COMMON["data"] | {"test_fraction": 0.25}}
    found = [run(change, data, {"trainer": TRAINER | {"example_privacy": GIVEN | {"epsilon": epsilon}}})
             for epsilon in (1.0, 1000.0)]  # fmt: skip
    first, second = (result.summary["baselines"]["centralised"]["overall"] for result in found)
    assert first == second
    assert first["accuracy"] is not None


def test_digits_are_learnt_at_epsilon_8():
    """An MLP, 4 clients with about 360 examples, of which each joins a tenth of the steps; chance is 0.1."""
    pytest.importorskip("sklearn")
    given = {"clip_norm": 1.0, "delta": 1e-4, "epsilon": 8.0, "expected_examples": 360}
    plan = plan_from_mapping(
        COMMON
        | {
            "rounds": 12,
            "data": {"source": "digits", "partition": {"kind": "iid", "clients": 4}, "test_fraction": 0.2},
            "model": {"factory": "tests.simulation.networks:digits"},
            "trainer": {"kind": "torch", "steps": 8, "batch_size": 36, "example_privacy": given,
                        "optimizer": {"kind": "sgd", "learning_rate": 0.5}},
            "cohort": {"kind": "full"},
            "evaluation": {"federated": False, "every": 12},
        }
    )  # fmt: skip
    result, prepared = hansa.run(plan, executor="serial"), prepare(plan)
    assert result.summary["example_privacy"]["epsilon_charged"] <= 8.0
    tensors = load_file(result.model)
    parameters = prepared.first.layout.branch("params").parameters
    values = np.concatenate([tensors[f"params/{parameter.name}"].reshape(-1) for parameter in parameters])
    right = total = 0
    for ordinal in range(4):
        size = int(prepared.data.test.sizes(np.array([ordinal]))[0])
        x, y = prepared.data.test.gather(np.array([ordinal]), np.arange(size)[None])
        outputs = plan.trainer.predict(plan.model, prepared.data.signature, values, x[0], {})
        right, total = right + int((outputs.argmax(axis=1) == y[0].reshape(-1)).sum()), total + size
    assert right / total > 0.6
