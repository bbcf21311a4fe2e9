"""Privacy of single examples over a real network: every hospital draws its own coins and noise, and counts."""

from __future__ import annotations

import json

import hansa
from hansa.client.example_count import TRAININGS
from hansa.core.schema import to_mapping
from hansa.simulation.preparation import prepare
from hansa.testing.hospitals import finished, hospitals, model_of, small_plan, submit

GIVEN = {"clip_norm": 0.5, "delta": 1e-4, "epsilon": 8.0, "expected_examples": 200}
CHANGES = {
    "name": "examples",
    "rounds": 3,
    "trainer": {
        "kind": "linear",
        "steps": 2,
        "batch_size": 20,
        "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        "example_privacy": GIVEN,
    },
    "transforms": [],
    "evaluation": {"federated": False, "baselines": []},
}


def test_hospitals_draw_their_own_noise_and_count_their_trainings(tmp_path):
    features = to_mapping(prepare(small_plan()).plan)["features"] | {"imputation": "center", "scaling": "none"}
    plan = small_plan(**CHANGES, features=features)
    with hospitals(tmp_path / "federation") as federation:
        federation.start()
        with federation.calls() as calls:
            run = finished(calls, submit(calls, plan))
            model = model_of(calls, prepare(plan), run)
        counts = [json.loads(path.read_text()) for path in (tmp_path / "federation").rglob(TRAININGS)]
    simulated = hansa.run(plan, out=tmp_path / "run", executor="serial").summary["model_sha256"]
    assert model != simulated  # whose noise is that of the seed, which anybody can draw
    assert counts == [{run["id"]: 3}] * 4
