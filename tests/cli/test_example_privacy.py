"""`hansa check` and `hansa dp explain` say what is promised about single examples, apart from clients."""

from __future__ import annotations

from pathlib import Path

import pytest

PLAN = """
name = "examples"
rounds = 4

[data]
source = "synthetic"
arguments = { clients = 6, features = 4, classes = 2 }

[model]
factory = "hansa.training.linear:logistic"

[trainer]
kind = "linear"
steps = 3
batch_size = 10
optimizer = { kind = "sgd", learning_rate = 0.1 }
example_privacy = { clip_norm = 1.0, delta = 1e-4, epsilon = 3.0, expected_examples = 50 }

[evaluation]
federated = false
"""
CLIENTS = """
[aggregator]
kind = "fixed-mean"
divisor = 6

[privacy]
clip_norm = 1.0
delta = 1e-3
epsilon = 40.0
"""


@pytest.fixture
def private(tmp_path):
    path = tmp_path / "private.toml"
    path.write_text(PLAN)
    return path


@pytest.mark.parametrize("command", [("check",), ("dp", "explain")])
def test_single_examples_are_promised_and_clients_are_not(hansa, private, command):
    found = hansa(*command, private, "--json")
    assert found.status == 0, found.err
    for said in (
        "unit: example of one client, over the whole run; epsilon 3 at delta 0.0001, charged (add-or-remove-one)",
        "in 12 steps at most; each example is in a step by a coin of probability 0.2",
        "it says nothing about a client as a whole",
        "with the noise of its client's steps",
    ):
        assert said in found.said, found.said
    assert "no differential privacy claim" not in found.said
    told = found.json["promises"] if command == ("check",) else found.json
    assert told["example_privacy"]["unit"] == "example of one client"
    assert told["example_privacy"]["epsilon_charged"] <= 3.0
    if command == ("check",):
        assert told["privacy_unit"] == "example of one client"
        assert "which protects nobody" in found.said


def test_two_units_have_two_numbers(hansa, private):
    private.write_text(PLAN + CLIENTS)
    found = hansa("check", private, "--json")
    assert found.status == 0, found.err
    told = found.json["promises"]
    assert told["privacy_unit"] == told["privacy"]["unit"] == "client"
    assert told["epsilon"] == told["privacy"]["epsilon_charged"] > 30
    assert told["example_privacy"]["epsilon_charged"] <= 3.0
    assert "client: all that one client contributes" in found.said
    assert "unit: example of one client" in found.said


def test_a_model_without_gradients_of_its_examples_is_refused_with_advice(hansa, private):
    pytest.importorskip("opacus")
    Path("nets.py").write_text(
        "from torch import nn\n\ndef normed():\n"
        "    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))\n"
    )
    found = hansa("check", private, "--set", "trainer.kind=torch", "--set", "model.factory=nets:normed", "--json")
    assert found.status != 0
    assert "BatchNorm mixes the examples" in str(found.json["error"])
    assert "GroupNorm" in str(found.json["error"])
