"""`hansa run --ledger`: charged or refused, told in words, and what comes after."""

from __future__ import annotations

from pathlib import Path

import pytest

PRIVATE = """
name = "wards"
seed = 5
rounds = 3

[data]
source = "synthetic"
arguments = { clients = 40, features = 6, classes = 3 }

[model]
factory = "hansa.training.linear:softmax"

[trainer]
kind = "linear"
epochs = 1
batch_size = 8
optimizer = { kind = "sgd", learning_rate = 0.1 }

[cohort]
kind = "full"

[aggregator]
kind = "fixed-mean"
divisor = 40

[evaluation]
federated = false

[privacy]
clip_norm = 0.5
delta = 1e-3
epsilon = 8.0
"""
CHARGED = ("--ledger", "ledger.sqlite", "--scope", "wards", "--actor", "ada")


@pytest.fixture
def private(hansa, plan):
    """A plan with privacy, in the folder of the plan."""
    path = Path(plan).with_name("private.toml")
    path.write_text(PRIVATE)
    return str(path)


def test_a_charged_run_says_what_remains_and_offers_no_replay(hansa, private):
    found = hansa("run", private, *CHARGED, "--budget", "10", "--out", "out", "--json")
    assert found.status == 0, found.err
    assert "epsilon: charged, not hypothetical" in found.said
    assert "hansa replay" not in found.err
    told = found.json["privacy"]["ledger"]
    assert (told["scope"], told["limit"]) == ("wards", 10.0)
    assert 2.0 <= told["remaining"] < 2.1


def test_a_refusal_has_its_own_status_and_both_numbers(hansa, private):
    assert hansa("run", private, *CHARGED, "--budget", "10", "--out", "one").status == 0
    found = hansa("run", private, *CHARGED, "--out", "two", "--json")
    assert found.status == 3
    assert found.json["error"]["code"] == "HANSA-BUDGET-OVERDRAWN"
    for said in ("charged", "reference", "remains"):
        assert said in found.said
    assert not Path("two").exists()


def test_a_replay_says_why_it_cannot_be(hansa, private):
    hansa("run", private, *CHARGED, "--budget", "10", "--out", "out")
    found = hansa("replay", "out", "--json")
    assert found.status == 4
    assert found.json["error"]["code"] == "HANSA-RUN-SECRET"


@pytest.mark.parametrize("options", [("--scope", "wards"), ("--budget", "3"), ("--actor", "ada")])
def test_what_belongs_to_a_ledger_needs_one(hansa, private, options):
    found = hansa("run", private, *options)
    assert found.status == 2
    assert "--ledger" in found.err


def test_a_run_that_goes_on_is_charged_where_it_was(hansa, private):
    assert hansa("run", "--resume", "out", "--ledger", "ledger.sqlite").status == 2


@pytest.mark.parametrize("budget", ["0", "-1", "inf", "nan"])
def test_a_budget_is_a_positive_number(hansa, private, budget):
    found = hansa("run", private, *CHARGED, "--budget", budget)
    assert found.status == 2
    assert "HANSA-PRIVACY-INVALID" in found.err


def test_a_delta_that_protects_nobody_in_particular_is_said_to_be_so(hansa, private):
    found = hansa("check", private, "--set", "privacy.delta=0.05")
    assert "privacy.delta is 0.05, and there are 40 clients" in found.said
    assert "privacy.delta is" not in hansa("check", private).said
