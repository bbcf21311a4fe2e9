"""`hansa replay` is exact or names what is not; `hansa compare` puts runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hansa.core import streams


@pytest.fixture
def run_folder(hansa, plan) -> Path:
    assert hansa("run", plan, "--out", "out").status == 0
    return Path("out")


def test_a_replay_is_exact(hansa, run_folder):
    found = hansa("replay", run_folder, "--json")
    assert found.status == 0, found.err
    assert found.json["exact"] is True
    assert "exact: the same model" in found.said


@pytest.mark.parametrize("name", ["plan.toml", "environment.json", "metrics.jsonl", "model.safetensors", "report.html"])
def test_a_changed_file_is_named(hansa, run_folder, name):
    with (run_folder / name).open("a") as file:
        file.write("\n")
    found = hansa("replay", run_folder, "--json")
    assert found.status == 4
    assert found.json["changed"] == [name]
    assert found.json["error"]["code"] == "HANSA-RUN-CHANGED"
    assert name in found.said


def test_a_different_order_of_examples_differs(hansa, run_folder, monkeypatch):
    original = streams.Streams.of

    def other(self, purpose, number=0):
        return original(self, purpose, number + 1 if purpose == "order" else number)

    monkeypatch.setattr(streams.Streams, "of", other)
    found = hansa("replay", run_folder, "--json")
    assert found.status == 5
    assert found.json["error"]["code"] == "HANSA-RUN-DIFFERS"
    assert "model.safetensors" in found.json["differences"]


def test_what_is_no_run_folder_is_refused(hansa, tmp_path):
    assert hansa("replay", "nowhere").status == 4
    assert hansa("compare", tmp_path).status == 4


def test_runs_are_compared_with_targets_and_the_keys_that_differ(hansa, plan, run_folder):
    assert hansa("run", plan, "--out", "other", "--set", "trainer.epochs=3").status == 0
    found = hansa("compare", run_folder, "other", "--target", "federated.auc=0.5", "--out", "page.html", "--json")
    assert found.status == 0, found.err
    assert found.json["runs"] == ["out", "other"]
    assert found.json["rows"]["trainer.epochs"] == ["1", "3"]
    assert any(name.startswith("rounds to federated.auc") for name in found.json["rows"])
    assert "trainer.epochs" in found.err
    assert Path("page.html").read_text().startswith("<!DOCTYPE html>")
    again = hansa("compare", run_folder, "--out", "page.html")
    assert again.status == 4
    assert "never overwritten" in again.said


def test_many_runs_are_lines_that_fit_the_screen(hansa, plan, run_folder, monkeypatch):
    for epochs in (2, 3, 4):
        name = f"run with {epochs} epochs in each round"
        settings = ["--set", f"trainer.epochs={epochs}", "--set", f"name={name}"]
        assert hansa("run", plan, "--out", f"e{epochs}", *settings, "--set", "evaluation.baselines=[]").status == 0
    monkeypatch.setenv("COLUMNS", "80")
    found = hansa("compare", run_folder, "e2", "e3", "e4")
    assert found.status == 0, found.err
    assert max(map(len, found.err.splitlines())) <= 80
    assert "Where the plans differ" in found.err
    assert "  3: run with 3 epochs in each round" in found.err
    assert "note:" not in found.err


def test_runs_on_different_examples_begin_with_a_note(hansa, plan, run_folder):
    assert hansa("run", plan, "--out", "other", "--set", "seed=8", "--set", "data.test_fraction=0.3").status == 0
    found = hansa("compare", run_folder, "other", "--json")
    said = "The runs were tested on different examples (seed and test_fraction differ): their figures do not compare."
    assert found.said.startswith(f"note: {said}")
    assert found.json["note"] == said


@pytest.mark.parametrize("target", ["auc=0.5", "federated.auc", "federated.auc=high"])
def test_a_target_that_cannot_be_read_is_refused(hansa, run_folder, target):
    assert hansa("compare", run_folder, "--target", target).status == 2


def test_an_unfinished_run_cannot_be_compared_and_says_how_to_finish(hansa, run_folder):
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "summary"
    (run_folder / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    found = hansa("compare", run_folder)
    assert found.status == 4
    assert "--resume" in found.said
