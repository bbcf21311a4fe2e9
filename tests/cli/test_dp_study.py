"""`hansa dp study`: a sweep over budgets and cohorts, its recommendation, its folder."""

from __future__ import annotations

import json

import pytest

SMALL = """
name = "small"
rounds = 4

[data]
source = "synthetic"
arguments = { clients = 60, features = 4, classes = 3, mean_size = 20, heterogeneity = 0.0, signal = 6.0 }

[model]
factory = "hansa.training.linear:softmax"

[trainer]
kind = "linear"
epochs = 1
batch_size = 10
optimizer = { kind = "sgd", learning_rate = 0.5 }

[cohort]
kind = "min-separation"
size = 20
rounds = 2

[aggregator]
kind = "fixed-mean"
divisor = 20

[privacy]
clip_norm = 1.0
epsilon = 8.0
delta = 1e-3

[evaluation]
every = 4
metrics = ["accuracy", "loss"]
federated = false
"""
QUICK = ("--executor", "serial", "--seeds", 2)


@pytest.fixture
def private(tmp_path):
    path = tmp_path / "private.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def study(hansa, private):
    """Run a study of the small plan in the folder "found"."""

    def run(*words):
        return hansa("dp", "study", private, *QUICK, "--out", "found", *words, "--json")

    return run


def test_a_study_recommends_the_smallest_budget_that_is_near_enough_and_lists_what_did_not_run(study, tmp_path):
    found = study("--epsilon", "0.01,200", "--cohort", "20,40")
    assert found.status == 0, found.err
    answer = found.json
    assert [row["name"] for row in answer["settings"]] == [
        f"{budget}-cohort-{size}" for size in (20, 40) for budget in ("epsilon-0.01", "epsilon-200", "no-privacy")
    ]
    drowned, near, none = answer["settings"][:3]
    assert near["privacy"]["epsilon_reference"] < near["privacy"]["epsilon_charged"] <= 200
    assert none["privacy"] is None
    assert drowned["mean"] < none["mean"] - 0.1
    assert near["mean"] > none["mean"] - 0.02
    assert answer["recommended"] == "epsilon-200-cohort-20"
    assert all(row["mean"] is None and "need 80 clients" in row["failures"][0] for row in answer["settings"][3:])
    for said in ("The smallest epsilon within 0.02", "hypothetical", "costs privacy", "200-cohort-40: seeds 0, 1"):
        assert said in found.said
    assert json.loads((tmp_path / "found" / "results.json").read_text())["verdict"] == answer["verdict"]
    page = (tmp_path / "found" / "report.html").read_text()
    assert all(text in page for text in ("Is privacy affordable?", "zero-out", "need 80 clients", "whiskers"))
    assert "http" not in page.replace("http-equiv", "")
    assert len(list((tmp_path / "found" / "plans").iterdir())) == 6


def test_the_divisor_follows_the_cohort_and_the_noise_the_budget(study, hansa, tmp_path):
    rows = study("--epsilon", "4", "--cohort", "10,20").json["settings"]
    assert [row["divisor"] for row in rows] == [10, 10, 20, 20]
    path = tmp_path / "found" / "plans" / "epsilon-4-cohort-10.toml"
    explained = hansa("dp", "explain", path, "--json").json["privacy"]
    assert explained["noise_multiplier"] == rows[0]["privacy"]["noise_multiplier"]
    assert 3.99 < explained["epsilon_charged"] <= 4


def test_it_says_that_no_budget_is_near_enough(study):
    found = study("--epsilon", "0.01")
    assert found.json["recommended"] is None
    assert found.json["promises"] == []
    assert "No setting is within 0.02" in found.said


def test_what_is_finished_is_not_run_again(study, tmp_path):
    first = study("--epsilon", "8")
    run = tmp_path / "found" / "runs" / "epsilon-8-cohort-20" / "seed-0" / "metrics.jsonl"
    before = run.stat().st_mtime_ns
    again = study("--epsilon", "8,16")
    assert again.json["settings"][0] == first.json["settings"][0]
    assert run.stat().st_mtime_ns == before
    assert again.json["settings"][1]["epsilon"] == 16


def test_a_study_goes_on_with_its_own_plan_only(study):
    study("--epsilon", "8")
    other = study("--epsilon", "8", "--set", "rounds=3")
    assert other.status == 4
    assert "is of another plan" in other.said


def test_a_study_needs_a_private_plan_and_somebody_who_measures(study, hansa, plan):
    refused = hansa("dp", "study", plan, "--json")
    assert refused.json["error"]["problems"][0]["path"] == "privacy"
    without = study("--epsilon", "8", "--set", "data.arguments.central_examples=0")
    assert without.status == 2
    assert 'data.test_at = "server"' in without.said


def test_clients_examples_can_stand_in_for_a_test_set_of_the_servers(study):
    found = study("--epsilon", "100", "--set", "data.arguments.central_examples=0",
                  "--set", "data.test_fraction=0.2", "--set", "data.test_at=server")  # fmt: skip
    assert found.status == 0, found.err
    assert min(row["mean"] for row in found.json["settings"]) > 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--epsilon", "1,two"), "not a list of numbers"),
        (("--cohort", "2.5"), "not a list of numbers"),
        (("--metric", "auc"), "not measured by this plan"),
        (("--cohort", "8", "--set", 'cohort={ kind = "full" }'), "it has no size"),
    ],
)
def test_what_makes_no_sense_is_refused(study, words, said):
    refused = study(*words)
    assert refused.status == 2
    assert said in refused.said
