from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import safetensors.numpy

import hansa
from hansa.core.errors import HansaError, ModelError
from hansa.simulation import engine as engine_module

pytest.importorskip("torch")


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


@pytest.fixture
def examples(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 6)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] ** 2 > 0.8).astype(np.int64)
    np.savez(tmp_path / "mine.npz", X=x, y=y, client=np.repeat(["north", "south", "west"], 80))
    return tmp_path / "mine.npz"


@pytest.fixture
def plan(examples, tmp_path, monkeypatch):
    """A plan for a user's own file, with a module from the working directory."""
    (tmp_path / "own_networks_for_runs.py").write_text(
        """
import torch
from torch import nn

def small(hidden=8):
    return nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Dropout(0.1), nn.Linear(hidden, 2))

def normed(hidden=8):
    return nn.Sequential(nn.Linear(6, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 2))

def no_module():
    return 3
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield {
        "name": "own",
        "rounds": 4,
        "data": {"source": "npz", "path": str(examples), "test_fraction": 0.25},
        "model": {"factory": "own_networks_for_runs:small", "arguments": {"hidden": 16}},
        "trainer": {
            "kind": "torch",
            "epochs": 2,
            "batch_size": 10,
            "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        },
    }
    sys.modules.pop("own_networks_for_runs", None)


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedprox", "fednova", "fedadam"])
def test_a_torch_model_from_the_working_directory_trains_on_ones_own_file(method, plan, tmp_path):
    first = hansa.run(hansa.recipe(method, **plan), out=tmp_path / "first")
    second = hansa.run(hansa.recipe(method, **plan), out=tmp_path / "second")
    assert first.summary["model_sha256"] == second.summary["model_sha256"]
    assert hansa.replay(first.path).differences == ()
    assert {row["client"] for row in first.summary["metrics"]["per_client"]} == {"north", "south", "west"}


def test_buffers_stay_with_their_clients_and_survive_a_kill(plan, tmp_path, monkeypatch):
    plan |= {"model": {"factory": "own_networks_for_runs:normed"}, "cohort": {"kind": "uniform", "size": 2}}
    built = hansa.recipe("fedavg", **plan)
    whole = hansa.run(built, out=tmp_path / "whole")
    assert not any(name.startswith("buffers") for name in safetensors.numpy.load_file(whole.model))
    assert any("BatchNorm" in note for note in whole.summary["notes"])

    apply = engine_module.ClientStore.apply

    def kill(self, number, cohort):
        if number == 3:
            raise Killed
        apply(self, number, cohort)

    with monkeypatch.context() as patched:
        patched.setattr(engine_module.ClientStore, "apply", kill)
        with pytest.raises(Killed):
            hansa.run(built, out=tmp_path / "killed")
    assert hansa.resume(tmp_path / "killed").summary["metrics"] == whole.summary["metrics"]


def test_buffers_travel_where_the_plan_says_so(plan, tmp_path):
    plan["model"] = {"factory": "own_networks_for_runs:normed", "buffers": "average"}
    averaged = hansa.run(hansa.recipe("fedavg", **plan), out=tmp_path / "run")
    tensors = safetensors.numpy.load_file(averaged.model)
    assert np.abs(tensors["buffers/1.running_mean"]).max() > 0


def test_a_factory_that_returns_no_module_is_refused_before_anything_is_written(plan, tmp_path):
    plan["model"] = {"factory": "own_networks_for_runs:no_module"}
    with pytest.raises(ModelError, match="returned"):
        hansa.run(hansa.recipe("fedavg", **plan), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("factory", ["no_such_module_anywhere:net", "own_networks_for_runs:nothing", "nocolon"])
def test_a_factory_that_cannot_be_imported_is_refused(factory, plan, tmp_path):
    plan["model"] = {"factory": factory}
    with pytest.raises(HansaError) as caught:
        hansa.run(hansa.recipe("fedavg", **plan), out=tmp_path / "run")
    assert caught.value.code == "HANSA-CODE-IMPORT"
    assert not (tmp_path / "run").exists()


def test_nan_in_training_names_the_round_and_the_clients_share(plan, tmp_path):
    plan["trainer"] = {**plan["trainer"], "optimizer": {"kind": "sgd", "learning_rate": 1e38}}
    with pytest.raises(HansaError) as caught:
        hansa.run(hansa.recipe("fedavg", **plan), out=tmp_path / "run")
    assert caught.value.code == "HANSA-RUN-DIVERGED"
    assert "3 of 3 clients (100%)" in caught.value.found
    rounds = [json.loads(line)["event"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "round" not in rounds
