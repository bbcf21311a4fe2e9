"""`hansa check`: promises in exact words, costs in numbers, or every reason why not."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_a_plan_without_privacy_says_that_it_claims_none(hansa, plan):
    found = hansa("check", plan, "--json")
    assert found.status == 0, found.err
    assert found.json["promises"] == {
        "privacy_unit": "none",
        "epsilon": "none: this plan makes no differential privacy claim",
        "server_sees": "every update in the clear",
    }
    for said in found.json["promises"].values():
        assert said in found.said
    assert "all clients' data are on this machine" in found.said
    assert "nothing is pooled to train the model, but the baselines" in found.said


def test_costs_follow_from_the_model_and_the_cohort(hansa, plan):
    costs = hansa("check", plan, "--set", "cohort.kind=uniform", "--set", "cohort.size=3", "--json").json["costs"]
    assert costs["parameters"] == 33
    assert costs["bytes_down_per_client"] == 33 * 4
    assert costs["client_updates"] == 18
    assert costs["bytes_down_total"] == 18 * 33 * 4
    assert costs["seconds_without_baselines"] > 0


def test_the_hash_is_that_of_the_run_and_nothing_is_left_behind(hansa, plan):
    checked = hansa("check", plan, "--json").json
    before = set(Path().iterdir())
    assert hansa("check", plan).status == 0
    assert set(Path().iterdir()) == before
    assert hansa("run", plan, "--json").json["plan_sha256"] == checked["plan_sha256"]


def test_a_second_vector_is_counted(hansa, plan):
    found = hansa("check", plan, "--set", "recipe=scaffold", "--json")
    assert found.json["costs"]["branches"] == {"params": 33, "control": 33}
    assert "and what a client keeps between rounds" in found.said


def test_a_clip_alone_is_no_privacy(hansa, plan):
    found = hansa("check", plan, "--set", 'transforms=[{kind="clip", clip_norm=1.0}]')
    assert "without noise it protects no one" in found.said


def test_clients_that_are_made_up_are_said_to_be_so(hansa, plan):
    found = hansa("check", plan, "--set", "data.partition={kind='iid',clients=10}")
    assert "the clients are made up: their examples are dealt from one pool" in found.said


@pytest.mark.parametrize("table", ["privacy", "secure_aggregation"])
def test_a_claim_that_nothing_keeps_is_refused(hansa, plan, table):
    found = hansa("check", plan, "--set", f"{table}.x=1", "--json")
    assert found.status == 2
    assert [problem["path"] for problem in found.json["error"]["problems"]] == [table]


def test_the_clients_of_a_source_without_its_own_are_made_up_too(hansa, plan):
    found = hansa("check", plan, "--set", "data={source='fashion-mnist-small'}", "--set", "evaluation={}",
                  "--set", "model.factory=hansa.training.linear:softmax", "--set", "rounds=1")  # fmt: skip
    assert found.status == 0, found.err
    assert "the clients are made up: their examples are dealt from one pool" in found.said


@pytest.mark.parametrize(
    ("settings", "sums", "histograms"),
    [
        ([], "counts and sums (accuracy, loss)", True),
        (["evaluation.metrics=['accuracy']"], "counts and sums (accuracy)", False),
        (["data.test_fraction=0", "evaluation.baselines=[]"], "", False),
        (["evaluation.federated=false"], "", False),
    ],
)
def test_what_is_sent_for_evaluation_is_what_is_measured(hansa, plan, settings, sums, histograms):
    found = hansa("check", plan, *(word for setting in settings for word in ("--set", setting)))
    assert found.status == 0, found.err
    assert ("each client's counts and sums" in found.said) == bool(sums)
    assert sums in found.said
    assert ("score histograms" in found.said) == histograms
    assert "who took part, when, from where and with which attributes" in found.said


REMEDY = "nothing is held out: add --set data.test_fraction=0.25"


@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_plan_that_holds_nothing_out_is_told_how_to(hansa, plan, verb):
    found = hansa(verb, plan, "--set", "data.test_fraction=0", "--set", "evaluation.baselines=[]", "--set", "rounds=1")
    assert found.status == 0, found.err
    assert f"note: this plan evaluates nothing: {REMEDY}" in found.said
    assert found.said.count(REMEDY) == (2 if verb == "run" else 1), "the last words of a run repeat it"


def test_clients_with_too_few_examples_to_hold_out_are_said_to_be_so(hansa, plan, tmp_path):
    (tmp_path / "few.csv").write_text("who,x,y\n" + "".join(f"{i},{i},{'ab'[i % 2]}\n" for i in range(12)))
    settings = ["data={source='csv',path='few.csv',client='who',test_fraction=0.25}", "features={label='y'}"]
    settings += ["evaluation.baselines=[]", "rounds=1"]
    for verb in ("check", "run"):
        found = hansa(verb, plan, *(word for setting in settings for word in ("--set", setting)))
        assert found.status == 0, found.err
        assert "no client has enough examples to hold any out at data.test_fraction = 0.25" in found.said


def test_a_plan_that_turns_evaluation_off_is_told_how_to_turn_it_on(hansa, plan):
    found = hansa("check", plan, "--set", "evaluation.federated=false", "--set", "evaluation.baselines=[]")
    assert "add --set evaluation.federated=true" in found.said
