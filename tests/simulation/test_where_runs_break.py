"""Runs under what goes wrong around them: other processes, folders, processors, code, numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hansa
from hansa.core.errors import HansaError, RunError
from hansa.simulation import engine as engine_module


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


def interrupted(plan, out, monkeypatch, round_number=2):
    """Leave a run as kill -9 would, after a round has closed."""
    apply = engine_module.ClientStore.apply

    def kill(self, number, cohort):
        apply(self, number, cohort)
        if number == round_number:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(engine_module.ClientStore, "apply", kill)
        with pytest.raises(Killed):
            hansa.run(plan, out=out)


def test_a_second_process_in_the_same_run_folder_is_refused(heart, tmp_path, monkeypatch):
    interrupted(hansa.recipe("scaffold", **heart), tmp_path / "run", monkeypatch)
    code = f"""
import hansa
from hansa.core.errors import RunError
try:
    hansa.resume({str(tmp_path / "run")!r})
except RunError as error:
    print(error.code, error.found)
"""

    def try_too(event):
        if event["event"] == "round" and event["round"] == 3:
            found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            assert "HANSA-RUN-FOLDER Another one is running" in found.stdout

    result = hansa.resume(tmp_path / "run", callbacks=[try_too])
    assert result.summary["rounds"] == heart["rounds"]


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """A plan in folder "a" with a relative path and a module of its own."""
    folder = tmp_path / "a"
    folder.mkdir()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 3))
    np.savez(folder / "d.npz", X=x, y=(x[:, 0] > 0).astype(int), client=np.repeat([0, 1, 2], 30))
    (folder / "own_sampler_for_runs.py").write_text(
        """
from dataclasses import dataclass
from hansa.algorithms.samplers import Full

@dataclass(frozen=True)
class Everyone(Full):
    pass
"""
    )
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield {
        "name": "own",
        "rounds": 4,
        "data": {"source": "npz", "path": "d.npz", "test_fraction": 0.2},
        "model": {"factory": "hansa.training.linear:logistic"},
        "trainer": {"kind": "linear", "epochs": 1, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
        "cohort": {"kind": "own_sampler_for_runs:Everyone"},
    }
    sys.modules.pop("own_sampler_for_runs", None)


def test_a_run_is_resumed_and_replayed_from_another_folder(own_file, tmp_path, monkeypatch):
    plan = hansa.recipe("fedavg", **own_file)
    whole = hansa.run(plan, out="whole")
    interrupted(plan, "killed", monkeypatch)
    monkeypatch.chdir(tmp_path)
    resumed = hansa.resume("a/killed")
    assert resumed.summary["model_sha256"] == whole.summary["model_sha256"]
    assert hansa.replay("a/whole").differences == ()
    assert Path.cwd() == tmp_path


def test_code_that_the_plan_names_and_that_changed_is_named(own_file, tmp_path, monkeypatch):
    interrupted(hansa.recipe("fedavg", **own_file), tmp_path / "killed", monkeypatch)
    module = tmp_path / "a" / "own_sampler_for_runs.py"
    module.write_text(module.read_text() + "\n# changed\n")
    with pytest.raises(RunError, match="code_sha256 was .*own_sampler_for_runs") as caught:
        hansa.resume(tmp_path / "killed")
    assert caught.value.code == "HANSA-RUN-CHANGED"


def test_metrics_that_lost_a_closed_round_are_not_gone_on_with(heart, tmp_path, monkeypatch):
    interrupted(hansa.recipe("fedavg", **heart), tmp_path / "run", monkeypatch)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="shorter than when the last round closed"):
        hansa.resume(tmp_path / "run")


def test_a_baseline_that_diverges_is_reported_as_not_defined_and_ends_nothing(own_file, tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(90, 3)) * 100
    np.savez("r.npz", X=x, y=x @ np.arange(3.0), client=np.repeat([0, 1, 2], 30))
    own_file["data"] = {**own_file["data"], "path": "r.npz"}
    own_file |= {
        "rounds": 40,
        "model": {"factory": "hansa.training.linear:regression"},
        "transforms": [{"kind": "clip", "clip_norm": 0.1}],
        "evaluation": {"baselines": ["local-only", "centralised"], "every": 40},
    }
    summary = hansa.run(hansa.Plan(**own_file), out=tmp_path / "run").summary
    assert summary["baselines"]["centralised"]["overall"]["rmse"] is None
    assert summary["baselines"]["local_only"]["overall"]["rmse"]["undefined"] == 3
    assert summary["metrics"]["federated"]["rmse"]["overall"] is not None


def test_baselines_with_buffers_are_measured_with_the_buffers_they_trained(own_file, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    (tmp_path / "a" / "own_normed_for_runs.py").write_text(
        "from torch import nn\ndef net():\n"
        "    return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    with np.load("d.npz") as shifted:
        x, y, client = 50 + 10 * shifted["X"], shifted["y"], shifted["client"]
    np.savez("s.npz", X=x, y=y, client=client, X_test=x, y_test=y)
    own_file |= {
        "rounds": 30,
        "data": {**own_file["data"], "path": "s.npz"},
        "model": {"factory": "own_normed_for_runs:net"},
        "trainer": {**own_file["trainer"], "kind": "torch", "batch_size": 10},
        "evaluation": {"baselines": ["centralised"], "every": 30, "metrics": ["accuracy"]},
    }
    pooled = hansa.run(hansa.recipe("fedavg", **own_file), out="run").summary["baselines"]["centralised"]
    assert pooled["overall"]["accuracy"] > 0.85
    assert pooled["central"]["accuracy"] > 0.85


def test_the_same_model_comes_out_whatever_processors_and_threads_there_are(tmp_path):
    code = """
import sys, hansa
plan = hansa.recipe(
    "fedavg", name="f", rounds=2, data={"source": "fashion-mnist-small", "partition": {"kind": "iid", "clients": 10}},
    model={"factory": "hansa.training.linear:softmax"}, evaluation={"every": 2, "federated": False},
    trainer={"kind": "linear", "epochs": 2, "batch_size": "all", "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
)
print(hansa.run(plan, out=sys.argv[1]).summary["model_sha256"])
"""
    found = []
    for number, (threads, seed) in enumerate([("1", "1"), ("2", "2"), ("", "3")]):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        if not threads:
            del environment["OMP_NUM_THREADS"]
        command = [sys.executable, "-c", code, str(tmp_path / str(number))]
        found.append(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert len(set(found)) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of a size of its own can be mounted by root only")
@pytest.mark.parametrize("aggregator", ["median", "mean"])
def test_a_full_disk_keeps_the_last_round_and_the_run_goes_on_when_there_is_room(aggregator, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    settings = {
        "name": "full disk",
        "rounds": 4,
        "data": {"source": "fashion-mnist-small", "partition": {"kind": "iid", "clients": 100}},
        "model": {"factory": "hansa.training.linear:softmax"},
        "trainer": {"kind": "linear", "epochs": 1, "optimizer": {"kind": "sgd", "learning_rate": 0.05}},
        "cohort": {"kind": "uniform", "size": 40},
        "evaluation": {"every": 4, "federated": False},
        "aggregator": aggregator,
    }
    plan = hansa.recipe("scaffold", **settings)
    try:
        with pytest.raises(HansaError) as caught:
            hansa.run(plan, out=disk / "run")
        assert caught.value.code == "HANSA-RUN-STORAGE"
        assert "the disk is full" in caught.value.found
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        resumed = hansa.resume(disk / "run").summary
        assert resumed["model_sha256"] == hansa.run(plan, out=tmp_path / "whole").summary["model_sha256"]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_an_error_of_a_callback_is_not_taken_for_a_full_disk(heart, tmp_path):
    def broken(event):
        (tmp_path / "nowhere" / "file").read_text()

    with pytest.raises(FileNotFoundError):
        hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run", callbacks=[broken])


def test_what_replay_json_says_must_be_there(heart, tmp_path):
    result = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run")
    for content in ("[]", "{}", "not json"):
        (result.path / "replay.json").write_text(content)
        with pytest.raises(RunError):
            hansa.replay(result.path)
    assert json.loads((result.path / "environment.json").read_text())["processor"]


def test_a_replay_with_other_kernels_is_exact_or_names_them(heart, tmp_path):
    code = f"""
import hansa
plan = hansa.recipe("fedavg", **{heart!r})
hansa.run(plan, out={str(tmp_path / "run")!r})
"""
    environment = {**os.environ, "OPENBLAS_CORETYPE": "Nehalem"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    before = json.loads((tmp_path / "run" / "environment.json").read_text())["linear_algebra"]
    found = hansa.replay(tmp_path / "run").differences
    assert before
    assert not found or found[0].startswith(f"environment: linear_algebra was {before} and is ")


def test_a_run_that_is_resumed_elsewhere_says_what_changed(heart, tmp_path, monkeypatch):
    interrupted(hansa.recipe("fedavg", **heart), tmp_path / "run", monkeypatch)
    path = tmp_path / "run" / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "linear_algebra": "another"}))
    notes = hansa.resume(tmp_path / "run").summary["notes"]
    assert any(note.startswith("resumed in another environment: linear_algebra was another") for note in notes)
