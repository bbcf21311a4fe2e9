"""The comparison: every system at every task, interleaved, several times."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.data import prepare
from benchmarks.environments import UnavailableError, interpreter
from benchmarks.learning import initial_loss
from benchmarks.places import CACHE
from benchmarks.running import Measured, measure
from benchmarks.start import write_start
from benchmarks.systems import System
from benchmarks.tasks import Task

Say = Callable[[str], None]

FIGURES: Final = (
    "updates_per_second",
    "first_round",
    "start_up",
    "whole",
    "peak_rss",
    "peak_pss",
    "processes",
    "others",
)


@dataclass(frozen=True)
class Suite:
    """What is compared: tasks, systems, and how often."""

    tasks: Sequence[Task]
    systems: Sequence[System]
    repetitions: int
    mapped: bool
    say: Say

    def run(self) -> dict[str, Any]:
        """Return all measurements and their medians: {"tasks": {name: {...}}}."""
        self._install()
        shutil.rmtree(CACHE, ignore_errors=True)
        return {"tasks": {task.name: self._task(task) for task in self.tasks}}

    def _install(self) -> None:
        """Make the environments before anything is measured; what fails here is said again in the result."""
        for peer in sorted({system.peer for system in self.systems if system.peer}):
            self.say(f"environment of {peer}")
            try:
                interpreter(peer)
            except UnavailableError as error:
                self.say(str(error))

    def _task(self, task: Task) -> dict[str, Any]:
        folder = prepare(task)
        write_start(task, folder)
        systems = [system for system in self.systems if task.name in system.tasks]
        runs: list[Measured] = []
        for repetition in range(self.repetitions):
            for system in rotated(systems, repetition):
                for file in folder.glob("*.np*"):
                    file.read_bytes()  # from here on the disk has no part in it
                done = measure(system, task, mapped=self.mapped)
                self.say(f"{task.name} {repetition + 1}/{self.repetitions} {system.name}: {in_short(done)}")
                runs.append(done)
        return {
            "about": task.about,
            "initial_loss": initial_loss(task),
            "systems": {system.name: summary(system, runs) for system in systems},
            "runs": [run.as_json() for run in runs],
        }


def rotated(systems: Sequence[System], repetition: int) -> list[System]:
    """Return the order of a repetition: each begins with another system."""
    turn = repetition % len(systems)
    return [*systems[turn:], *systems[:turn]]


def summary(system: System, runs: Sequence[Measured]) -> dict[str, Any]:
    """Return the medians of a system's runs, and the least and largest of its speed; or why there are none."""
    own = [run for run in runs if run.system == system.name]
    good = [run for run in own if not run.failure]
    if not good:
        return {"failure": own[0].failure, "reference": system.reference, "hansa": system.is_hansa}
    speeds = [run.updates_per_second for run in good]
    return {
        **{figure: statistics.median(getattr(run, figure) for run in good) for figure in FIGURES},
        "slowest": min(speeds),
        "fastest": max(speeds),
        "rounds": good[0].rounds,
        "loss": {rounds: statistics.median(run.loss[rounds] for run in good) for rounds in good[0].loss},
        "versions": good[0].versions,
        "failed": [run.failure for run in own if run.failure],
        "reference": system.reference,
        "hansa": system.is_hansa,
    }


def in_short(run: Measured) -> str:
    """Return one run in a line."""
    if run.failure:
        return f"failed: {run.failure}"
    speed, memory = f"{run.updates_per_second:,.1f} updates/s", f"{run.peak_rss / 1e6:,.0f} MB"
    disturbed = f", others used {run.others:.1f} cores" if run.others > 0.2 else ""
    return f"{speed}, first round after {run.first_round:.1f} s, {memory}{disturbed}"
