"""What privacy leaves of accuracy, from the plan files of docs/explanation/privacy-and-accuracy.md."""

from __future__ import annotations

from pathlib import Path

import pytest

import hansa

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_correlated_noise_keeps_more_accuracy_than_independent_noise_of_the_same_cost(seed, tmp_path):
    found = {}
    for mechanism in ("banded-matrix", "gaussian"):
        overrides = [f"seed={seed}", f"privacy.mechanism={mechanism}", "evaluation.every=200"]
        plan = hansa.read_plan(EXAMPLES / "ftrl_banded.toml", overrides)
        summary = hansa.run(plan, out=tmp_path / mechanism, executor="batched", workers=1).summary
        assert 0.499 < summary["privacy"]["epsilon_charged"] <= 0.5
        found[mechanism] = summary["metrics"]["central"]["accuracy"]
    assert found["banded-matrix"] > found["gaussian"] + 0.05
    assert found["gaussian"] > 0.107 + 0.03  # the share of the most frequent class is at most 0.1063
