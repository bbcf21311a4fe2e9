"""A run that is killed, interrupted or out of disk goes on to the same model, bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Start = Callable[..., subprocess.Popen[str]]

PLAN = """
name = "interrupted"
seed = 3
rounds = 60
recipe = "scaffold"

[data]
source = "heart"
test_fraction = 0.25

[model]
factory = "hansa.training.linear:logistic"

[trainer]
kind = "linear"
epochs = 3
batch_size = 8
optimizer = { kind = "sgd", learning_rate = 0.05 }

[cohort]
kind = "uniform"
size = 3

[stopping]
metric = "federated.loss"
patience = 1000

[evaluation]
every = 1
metrics = ["loss", "auc"]
"""


@pytest.fixture(autouse=True)
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "plan.toml").write_text(PLAN)
    code = "from hansa.cli.main import main; main(['run', 'plan.toml', '--json'])"
    return model_of(
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True).stdout
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def model_of(out: str) -> str:
    return str(json.loads(out.splitlines()[-1])["model_sha256"])


def closed_rounds(folder: Path) -> int:
    """The last round in the metrics that is written to its end."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((event["round"] for event in map(json.loads, lines) if event["event"] == "round"), default=0)


def wait_for_round(process: subprocess.Popen[str], folder: Path, number: int) -> None:
    deadline = time.monotonic() + 30
    while closed_rounds(folder) < number:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"round {number} did not come"
        time.sleep(0.002)


def test_a_run_killed_at_any_round_goes_on_to_the_same_model(start: Start, tmp_path: Path, undisturbed: str):
    folder = tmp_path / "killed"
    process = start("run", "plan.toml", "--out", folder)
    for number in (1, 17, 40):
        wait_for_round(process, folder, number)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert closed_rounds(folder) < 60, "it was killed too late to show anything"
        process = start("run", "--resume", folder, "--json")
    assert model_of(finish(process)) == undisturbed
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [event["round"] for event in events if event["event"] == "round"] == list(range(1, 61))
    assert [event["round"] for event in events if event["event"] == "evaluation"] == list(range(61))


def test_ctrl_c_ends_after_a_whole_round_and_says_how_to_go_on(start: Start, tmp_path: Path, undisturbed: str):
    folder = tmp_path / "interrupted"
    process = start("run", "plan.toml", "--out", folder, "--json")
    wait_for_round(process, folder, 5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"hansa run --resume {folder}" in err
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["error"]["code"] == "HANSA-RUN-INTERRUPTED"
    assert 5 <= closed_rounds(folder) < 60
    assert model_of(finish(start("run", "--resume", folder, "--json"))) == undisturbed


def test_a_second_ctrl_c_ends_at_once_and_still_says_how_to_go_on(start: Start, tmp_path: Path):
    plan = tmp_path / "slow.toml"
    plan.write_text(PLAN.replace("epochs = 3", "epochs = 3000"))
    folder = tmp_path / "twice"
    process = start("run", plan, "--out", folder)
    deadline = time.monotonic() + 30
    while not (folder / "checkpoint" / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"hansa run --resume {folder}" in err
    assert "Traceback" not in err


def test_a_run_that_cannot_write_keeps_its_last_round_and_goes_on(start: Start, tmp_path: Path, undisturbed: str):
    folder = tmp_path / "full"
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))"
    process = start("run", "plan.toml", "--out", folder, before=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "HANSA-RUN-STORAGE" in err
    assert f"hansa run --resume {folder}" in err
    assert "Traceback" not in err
    assert 1 <= closed_rounds(folder) < 60
    assert model_of(finish(start("run", "--resume", folder, "--json"))) == undisturbed
