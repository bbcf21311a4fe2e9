"""The figures that the README and the examples promise, from the plan files that anyone can run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import hansa

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("HANSA_SHARED_DATA", ROOT.parent / "shared" / "data"))


def test_on_heart_federation_matches_pooled_training_and_beats_each_hospital_alone(tmp_path):
    runs = [
        hansa.run(hansa.read_plan(ROOT / "examples" / "heart.toml", [f"seed={seed}"]), out=tmp_path / str(seed)).summary
        for seed in range(5)
    ]
    federated = np.mean([run["metrics"]["federated"]["auc"]["overall"] for run in runs])
    pooled = np.mean([run["baselines"]["centralised"]["overall"]["auc"] for run in runs])
    alone = np.mean([run["baselines"]["local_only"]["overall"]["auc"]["mean"] for run in runs])
    assert abs(federated - pooled) <= 0.01
    assert federated - alone >= 0.03
    assert federated > 0.85


@pytest.mark.slow
@pytest.mark.parametrize(("example", "rounds"), [("mnist_2nn_iid", 87), ("mnist_2nn_shards", 664)])
def test_mnist_2nn_reaches_97_percent_within_the_rounds_of_mcmahan_2017(example, rounds, tmp_path):
    if not (SHARED / "mnist.npz").exists():
        pytest.skip("MNIST does not ship with Hansa; set HANSA_SHARED_DATA to the folder that holds mnist.npz")
    plan = hansa.read_plan(ROOT / "examples" / f"{example}.toml", [f"data.path={SHARED / 'mnist.npz'}"])
    summary = hansa.run(plan, out=tmp_path / "run").summary
    assert summary["metrics"]["central"]["accuracy"] >= 0.97
    assert summary["rounds"] <= rounds
