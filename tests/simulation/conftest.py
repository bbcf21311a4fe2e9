from __future__ import annotations

import pytest

HEART = {
    "name": "heart",
    "seed": 3,
    "rounds": 6,
    "data": {"source": "heart", "test_fraction": 0.25},
    "model": {"factory": "hansa.training.linear:logistic"},
    "trainer": {
        "kind": "linear",
        "epochs": 1,
        "batch_size": 16,
        "optimizer": {"kind": "sgd", "learning_rate": 0.1},
    },
    "evaluation": {"every": 2},
}


@pytest.fixture
def heart():
    return dict(HEART)
