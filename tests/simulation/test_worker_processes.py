"""The process executor: workers that die, are interrupted or outlive their run, and what they share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import hansa
from hansa.algorithms.plan import plan_from_mapping
from hansa.core.errors import HansaError, ModelError, RunError
from hansa.core.own_folder import LOCK
from hansa.simulation import processes, ray_cluster, sharing
from hansa.wire.plans import write_plan

PLAN = {
    "recipe": "fedavg",
    "name": "deadly",
    "seed": 2,
    "rounds": 3,
    "data": {"source": "synthetic", "arguments": {"clients": 30, "features": 4, "classes": 3, "mean_size": 8}},
    "model": {"factory": "hansa.training.linear:softmax"},
    "trainer": {"kind": "linear", "epochs": 1, "batch_size": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
    "cohort": {"kind": "uniform", "size": 24},
    "evaluation": {"every": 100, "federated": False, "central": False},
}


def plan_of(**changes):
    return plan_from_mapping({**PLAN, **changes})


def deadly(folder, **changes):
    transform = {"kind": "tests.simulation.deadly:Deadly", "folder": str(folder)}
    return plan_of(transforms=[transform], **changes)


def shared_folders(pid):
    """Return the folders whose lock a process holds."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            path = link.readlink()
            if path.parent.name.startswith(sharing._PREFIX) and path.name == LOCK:
                found.add(path.parent)
    return found


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def children(pid):
    with suppress(OSError):
        here = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return here + [below for child in here for below in children(child)]
    return []


def until(found, seconds=30.0):
    end = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return answer


@pytest.mark.parametrize("aggregator", ["mean", "median"])
def test_a_worker_killed_in_the_middle_of_a_round_changes_nothing(aggregator, tmp_path):
    plan = deadly(tmp_path, aggregator={"kind": aggregator})
    undisturbed = hansa.run(plan, out=tmp_path / "whole", executor="batched", workers=1, chunk=4)
    (tmp_path / "once").touch()
    result = hansa.run(plan, out=tmp_path / "killed", executor="process", workers=2, chunk=4)
    assert not (tmp_path / "once").exists()
    assert result.summary["model_sha256"] == undisturbed.summary["model_sha256"]
    assert not children(os.getpid()) or all("resource_tracker" in _command(pid) for pid in children(os.getpid()))


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return "resource_tracker"


def test_what_dead_workers_left_is_removed_before_others_take_over(tmp_path, monkeypatch):
    """It would fill the machine's memory, death by death."""
    folders = []

    def folder_with_something_left(room):
        folders.append(sharing.Folder(room))
        (folders[0].path / "half-written").touch()
        return folders[0]

    monkeypatch.setattr(processes, "Folder", folder_with_something_left)
    seen = {}

    def look(event):
        if event["event"] == "round":
            seen[event["round"]] = (folders[0].path / "half-written").exists()

    (tmp_path / "once").touch()
    hansa.run(deadly(tmp_path), out=tmp_path / "run", executor="process", workers=2, chunk=4, callbacks=[look])
    assert seen == {1: True, 2: False, 3: False}


def test_workers_that_always_die_end_the_run_which_keeps_its_last_round(tmp_path):
    plan, before = deadly(tmp_path), shared_folders(os.getpid())
    undisturbed = hansa.run(plan, out=tmp_path / "whole", executor="batched", workers=1, chunk=4)
    (tmp_path / "always").touch()
    with pytest.raises(RunError) as caught:
        hansa.run(plan, out=tmp_path / "run", executor="process", workers=2, chunk=4)
    assert caught.value.code == "HANSA-RUN-WORKERS"
    assert "--workers" in caught.value.action
    assert shared_folders(os.getpid()) == before
    (tmp_path / "always").unlink()
    rounds = []
    result = hansa.resume(tmp_path / "run", callbacks=[lambda event: rounds.append(event.get("round")) and None])
    assert 1 not in rounds
    assert result.summary["model_sha256"] == undisturbed.summary["model_sha256"]


def test_an_error_of_the_users_model_reaches_the_user_as_it_is(tmp_path):
    (tmp_path / "refuse").touch()
    before = shared_folders(os.getpid())
    with pytest.raises(ModelError) as caught:
        hansa.run(deadly(tmp_path), out=tmp_path / "run", executor="process", workers=2, chunk=4)
    with pytest.raises(ModelError) as alone:
        hansa.run(deadly(tmp_path), out=tmp_path / "serial", executor="serial")
    assert str(caught.value) == str(alone.value)
    assert (caught.value.code, caught.value.found) == ("HANSA-MODEL-UNSUITABLE", "A worker found it.")
    assert shared_folders(os.getpid()) == before


def test_an_unexpected_error_in_a_worker_keeps_its_kind_and_where_it_came_from(tmp_path):
    (tmp_path / "break").touch()
    with pytest.raises(ZeroDivisionError, match="of the user's own") as caught:
        hansa.run(deadly(tmp_path), out=tmp_path / "run", executor="process", workers=2, chunk=4)
    assert "deadly.py" in str(caught.value.__cause__)


def test_data_that_memory_for_sharing_has_no_room_for_are_shared_on_disk(tmp_path, monkeypatch):
    """Containers have 64 MB of it, unless they are given more."""
    rows = np.zeros((3000, 100), dtype=np.float32)
    labels = np.arange(3000) % 3
    np.savez(tmp_path / "data.npz", X=rows, y=labels, client=np.repeat(np.arange(30), 100).astype(str))
    plan = plan_of(data={"source": "npz", "path": str(tmp_path / "data.npz")})
    room = SimpleNamespace(free=rows.nbytes)
    monkeypatch.setattr(sharing.shutil, "disk_usage", lambda _: room)
    used = []
    monkeypatch.setattr(processes, "Folder", lambda size: used.append(sharing.Folder(size)) or used[-1])
    hansa.run(plan, out=tmp_path / "run", executor="process", workers=2, chunk=4)
    (folder,) = used
    assert folder.path.parent != sharing._MEMORY
    assert not folder.path.exists()


def test_an_error_that_cannot_be_sent_is_told_by_its_name_and_sentence(tmp_path):
    (tmp_path / "awkward").touch()
    with pytest.raises(RuntimeError, match="AwkwardError: rule 7 is broken"):
        hansa.run(deadly(tmp_path), out=tmp_path / "run", executor="process", workers=2, chunk=4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("what", ["once", "always", "refuse"])
def test_on_a_ray_cluster_deaths_and_errors_end_alike(what, tmp_path):
    pytest.importorskip("ray")
    undisturbed = hansa.run(deadly(tmp_path), out=tmp_path / "whole", executor="batched", workers=1, chunk=4)
    (tmp_path / what).touch()

    def run():
        return hansa.run(deadly(tmp_path), out=tmp_path / "run", executor="ray", workers=2, chunk=4)

    if what == "once":
        assert run().summary["model_sha256"] == undisturbed.summary["model_sha256"]
        return
    with pytest.raises(HansaError) as caught:
        run()
    assert caught.value.code == {"always": "HANSA-RUN-WORKERS", "refuse": "HANSA-MODEL-UNSUITABLE"}[what]
    assert what == "always" or caught.value.found == "A worker found it."
    assert rounds_of(tmp_path / "run") == [1]


class Failing:
    """What :class:`Ray` asks of ray, with tasks that all fail with one error."""

    def __init__(self, exceptions, error):
        self.exceptions, self.error = exceptions, error

    def is_initialized(self):
        return True

    def put(self, content):
        return content

    def remote(self, **_):
        future = Future()
        future.set_exception(self.error)
        task = SimpleNamespace(remote=lambda *_: SimpleNamespace(future=lambda: future))
        return lambda _: task


class RayError(Exception):
    pass


class RayTaskError(RayError):
    cause = None


RAY_ERRORS = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)


@pytest.mark.parametrize("name", ["OutOfMemoryError", "NodeDiedError", "WorkerCrashedError", "ObjectLostError"])
def test_what_ray_loses_ends_a_run_with_what_to_do(name, tmp_path, monkeypatch):
    error = type(name, (RayError,), {})("The task was killed.\nA long story.")
    monkeypatch.setattr(ray_cluster, "_imported", lambda: Failing(RAY_ERRORS, error))
    with pytest.raises(RunError) as caught:
        hansa.run(plan_of(), out=tmp_path / "run", executor="ray", workers=2, chunk=4)
    assert caught.value.code == "HANSA-RUN-WORKERS"
    assert caught.value.found == f"One did not end ({name}: The task was killed)."
    assert "--chunk" in caught.value.action


def test_what_a_ray_task_raised_itself_is_no_loss(tmp_path, monkeypatch):
    error = RayTaskError("a traceback")
    monkeypatch.setattr(ray_cluster, "_imported", lambda: Failing(RAY_ERRORS, error))
    with pytest.raises(RayTaskError):
        hansa.run(plan_of(), out=tmp_path / "run", executor="ray", workers=2, chunk=4)
    error.cause = ModelError("HANSA-MODEL-UNSUITABLE", rule="A rule.", found="It is so.", action="Mend it.")
    with pytest.raises(ModelError, match="It is so"):
        hansa.run(plan_of(), out=tmp_path / "other", executor="ray", workers=2, chunk=4)


def started(tmp_path, plan, *more):
    (tmp_path / "plan.toml").write_text(write_plan(plan))
    command = [
        sys.executable,
        "-c",
        "from hansa.cli.main import main; main()",
        "run",
        "plan.toml",
        "--out",
        "run",
        *more,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), *PATHS]))}
    return subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


HERE = Path(__file__).parents[2]
PATHS = [str(HERE / "src"), str(HERE)]
PROCESSES = ("--executor", "process", "--workers", "2", "--chunk", "4")


def rounds_of(folder):
    with suppress(OSError):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [event["round"] for event in map(json.loads, lines) if event["event"] == "round"]
    return []


def test_an_error_of_the_users_model_is_told_by_the_command_without_a_traceback(tmp_path):
    (tmp_path / "refuse").touch()
    process = started(tmp_path, deadly(tmp_path), *PROCESSES)
    told, _ = process.communicate(timeout=60)
    assert process.returncode not in {0, 1} or "HANSA-MODEL-UNSUITABLE" in told
    assert "A worker found it." in told
    assert "Traceback" not in told


def test_ctrl_c_ends_after_a_whole_round_though_it_reaches_the_workers_too(tmp_path):
    plan = plan_of(rounds=100_000)
    process = started(tmp_path, plan, *PROCESSES)
    until(lambda: rounds_of(tmp_path / "run"))
    os.killpg(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=30)
    assert "--resume" in told
    assert "Traceback" not in told
    last = rounds_of(tmp_path / "run")[-1]
    assert f"Round {last} is closed and saved" in " ".join(told.split())


def test_ctrl_c_while_workers_start_ends_after_a_whole_round_too(tmp_path):
    process = started(tmp_path, plan_of(rounds=100_000), *PROCESSES)
    until(lambda: any("loky" in _command(pid) for pid in children(process.pid)))
    os.killpg(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=30)
    assert "--resume" in told
    assert "Traceback" not in told
    assert "Round 1 is closed and saved" in " ".join(told.split())


def test_without_the_run_its_workers_end_and_leave_nothing(tmp_path):
    process = started(tmp_path, plan_of(rounds=100_000), *PROCESSES)
    until(lambda: rounds_of(tmp_path / "run"))
    below, (folder,) = children(process.pid), shared_folders(process.pid)
    assert folder.exists()
    assert len([pid for pid in below if alive(pid)]) >= 2
    process.kill()
    process.communicate()
    until(lambda: not any(map(alive, below)), seconds=10)
    until(lambda: not folder.exists(), seconds=10)


SCRIPT = """
from dataclasses import dataclass
import hansa
from hansa.algorithms.transforms import Identity

@dataclass(frozen=True, kw_only=True)
class Own(Identity):
    def encode(self, batch, context, states):
        return batch

def net(hidden=4):
    from torch import nn
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))

plan = hansa.recipe("fedavg", name="script", seed=2, rounds=2,
    data={"source": "synthetic", "arguments": {"clients": 30, "features": 4, "classes": 3, "mean_size": 8}},
    model={"factory": FACTORY}, transforms=[{"kind": "weigh-by-size"}, {"kind": "__main__:Own"}],
    trainer={"kind": "torch", "epochs": 1, "batch_size": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
    cohort={"kind": "uniform", "size": 24})
process = hansa.run(plan, out="process", executor="process", workers=2, chunk=1)
serial = hansa.run(plan, out="serial", executor="serial")
print("same" if process.summary["model_sha256"] == serial.summary["model_sha256"] else "other")
"""


@pytest.mark.parametrize("factory", ["own_network:net", "__main__:net"])
def test_a_plain_script_runs_a_module_of_its_own_folder_or_itself(factory, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n\ndef net():\n    print('made')\n    return nn.Sequential(nn.Linear(4, 3))\n"
    )
    (tmp_path / "script.py").write_text(SCRIPT.replace("FACTORY", repr(factory)))
    environment = {**os.environ, "PYTHONPATH": PATHS[0]}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "same"
