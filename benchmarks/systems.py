"""The systems that are measured, and the command that runs a task in each."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.environments import interpreter
from benchmarks.places import CACHE, DATA, PEERS, PLANS
from benchmarks.tasks import HIDDEN, LEARNING_RATE, SEED, Task

TORCH_LOOP: Final = "torch-loop"


@dataclass(frozen=True, kw_only=True)
class System:
    """One system in one configuration. ``program`` of a peer is its file; Hansa is its own command on ``plan``."""

    name: str
    peer: str | None = None
    program: str = ""
    processes: int = 1
    plan: str = ""
    executor: str = ""
    tasks: str = "ABC"
    slow: bool = False
    reference: bool = False
    """A yardstick that is no peer: left out of "the fastest peer"."""

    @property
    def is_hansa(self) -> bool:
        """Return whether this is Hansa."""
        return bool(self.plan)

    def rounds(self, task: Task) -> int:
        """Return how many rounds it runs: a slow system runs fewer where a task has many."""
        return task.few_rounds if self.slow else task.rounds

    def command(self, task: Task, out: Path, *, mapped: bool = True) -> list[str]:
        """Return the command; a peer's job is written into ``out``.

        Raises UnavailableError where the peer can't be installed.
        ``mapped`` says whether a peer maps the examples from disk or reads them, in every process.
        """
        if self.is_hansa:
            chosen = ["--executor", self.executor] if self.executor else []
            plan = str(PLANS / f"{self.plan.format(task=task.name)}.toml")
            return [hansa_command(), "run", plan, "--set", f"rounds={task.rounds}", *chosen, "--out", str(out / "run")]
        python = Path(sys.executable) if self.peer is None else interpreter(self.peer)
        job = out / "job.json"
        job.write_text(json.dumps(self._job(task, out) | {"mapped": mapped}), encoding="utf-8")
        return [str(python), str(PEERS / self.program), str(job)]

    def _job(self, task: Task, out: Path) -> dict[str, object]:
        folder = DATA / task.name
        return {
            "network": task.network,
            "shape": task.shape,
            "hidden": HIDDEN.get(task.network, ()),
            "classes": task.classes,
            "clients": task.clients,
            "batch": task.batch,
            "rounds": self.rounds(task),
            "few_rounds": task.few_rounds,
            "learning_rate": LEARNING_RATE,
            "seed": SEED,
            "processes": self.processes,
            "data": str(folder),
            "cohorts": str(folder / "cohorts.npy"),
            "out": str(out),
        }


def hansa_command() -> str:
    """Return the path of the command ``hansa`` beside this interpreter."""
    return str(Path(sys.executable).parent / "hansa")


@functools.cache
def offers_executor(name: str) -> bool:
    """Return whether the help of ``hansa run`` lists this executor."""
    command = [hansa_command(), "run", "--help"]
    said = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own command
    option = said.stdout.partition("--executor")[2].partition("--")[0]
    return re.search(rf"\b{re.escape(name)}\b", option) is not None


def all_systems(executor: str) -> list[System]:
    """Return every system; ``executor`` is Hansa's."""
    return [
        System(name="hansa", plan="{task}", executor=executor),
        System(name="hansa-linear", plan="{task}-linear", executor=executor, tasks="C"),
        System(name="pfl-1", peer="pfl", program="run_pfl.py", processes=1),
        System(name="pfl-2", peer="pfl", program="run_pfl.py", processes=2),
        System(name="fedjax", peer="fedjax", program="run_fedjax.py"),
        System(name="flower", peer="flower", program="run_flower.py", processes=2, slow=True),
        System(name=TORCH_LOOP, program="run_torch_loop.py", processes=2, reference=True),
    ]


def environment() -> dict[str, str]:
    """Return the variables a system runs with: the caller's, the peers' shared modules, a cache of its own."""
    given = [str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(PEERS), *given]), "HANSA_CACHE": str(CACHE)}
