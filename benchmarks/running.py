"""One run of one system on one task, measured from outside."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from benchmarks.environments import UnavailableError
from benchmarks.learning import losses
from benchmarks.machine import Bystanders
from benchmarks.places import HERE, RUNS
from benchmarks.process_tree import Peak, end_all
from benchmarks.systems import System, environment, hansa_command
from benchmarks.tasks import Task

_WATCH: Final = 0.002
"""Seconds between looks at the run's file."""
_SAMPLE: Final = 0.025
"""Seconds between samples of memory."""
_LIMIT: Final = 1200
"""Seconds after which a run is given up."""


@dataclass
class Measured:
    """What one run gave. Times are in seconds, memory in bytes."""

    system: str
    task: str
    rounds: int = 0
    cohort: int = 0
    updates_per_second: float = 0.0
    first_round: float = 0.0
    """From the start of the command to the end of the first round."""
    start_up: float = 0.0
    """From the start of the command to the start of the first round."""
    round_seconds: list[float] = field(default_factory=list)
    whole: float = 0.0
    peak_rss: int = 0
    peak_pss: int = 0
    processes: int = 0
    others: float = 0.0
    """Cores that the rest of the machine used meanwhile."""
    loss: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    failure: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def measure(system: System, task: Task, *, mapped: bool = True) -> Measured:
    """Run the system on the task once. A failure is part of the result, with its reason."""
    measured = Measured(system.name, task.name)
    with _failing_into(measured):
        command = system.command(task, RUNS, mapped=mapped)
        if system.is_hansa:
            _run_hansa(command, measured, task.cohort)
        else:
            times = _Times(None)
            began, ended = _execute(command, measured, times)
            times.read(RUNS / "result.json", measured)
            _figure(measured, task.cohort, times, began, ended)
        measured.loss = losses(task, RUNS, system)
    return measured


def measure_plan(label: str, words: Sequence[str], cohort: int) -> Measured:
    """Run ``hansa run`` with these words once, and measure it under a label."""
    measured = Measured(label, "")
    with _failing_into(measured):
        _run_hansa([hansa_command(), "run", *words, "--out", str(RUNS / "run")], measured, cohort)
    return measured


@contextmanager
def _failing_into(measured: Measured) -> Iterator[None]:
    """Empty the runs' folder, and turn what fails into a part of the result."""
    shutil.rmtree(RUNS, ignore_errors=True)
    RUNS.mkdir()
    try:
        yield
    except (UnavailableError, OSError, ValueError, KeyError) as error:
        measured.failure = (str(error) or type(error).__name__).replace(str(HERE), "benchmarks")


def _run_hansa(command: list[str], measured: Measured, cohort: int) -> None:
    times = _Times(RUNS / "run" / "metrics.jsonl")
    began, ended = _execute(command, measured, times)
    _figure(measured, cohort, times, began, ended)
    _hansa_notes(measured)


class _Times:
    """When rounds ended: seen in a file of Hansa's run folder as it grows, or told by a peer afterwards."""

    def __init__(self, watched: Path | None) -> None:
        self.watched = watched
        self.began = 0.0
        self.ended: list[float] = []
        self.first_seconds = 0.0
        self._size = 0

    def look(self) -> None:
        """Note rounds that were written since the last look."""
        if self.watched is None:
            return
        try:
            size = self.watched.stat().st_size
        except OSError:
            return
        if size != self._size:
            now = time.time()
            with self.watched.open("rb") as file:
                file.seek(self._size)
                added = file.read(size - self._size)
            whole = added[: added.rfind(b"\n") + 1]
            self._size += len(whole)
            self.ended += [now] * whole.count(b'"event": "round"')

    def read(self, path: Path, measured: Measured) -> None:
        """Take in what a peer told."""
        told = json.loads(path.read_text(encoding="utf-8"))
        self.began, self.ended = told.pop("began"), told.pop("ended")
        measured.versions = told.pop("versions")
        measured.notes = told


def _execute(command: list[str], measured: Measured, times: _Times) -> tuple[float, float]:
    """Run the command to its end, watching; return when it began and ended. Raises UnavailableError if it fails."""
    peak, log, bystanders = Peak(), RUNS / "output.txt", Bystanders()
    try:
        with log.open("wb") as output:
            began = time.time()
            process = subprocess.Popen(  # noqa: S603 - ours
                command, cwd=HERE, env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            code = _watch(process, peak, times, began + _LIMIT)
        ended = time.time()
        times.look()
    finally:
        end_all()
    measured.peak_rss, measured.peak_pss, measured.processes = peak.resident, peak.proportional, peak.processes
    measured.others = bystanders.cores()
    if code != 0:
        raise UnavailableError(f"{'given up' if code is None else f'exit status {code}'}: {_last_words(log)}")
    return began, ended


def _watch(process: subprocess.Popen[bytes], peak: Peak, times: _Times, until: float) -> int | None:
    """Look at rounds and memory until the process ends; return its exit status, or None where it takes too long."""
    sample = 0.0
    while (code := process.poll()) is None and (now := time.time()) < until:
        times.look()
        if now >= sample:
            peak.look()
            sample = now + _SAMPLE
        time.sleep(_WATCH)
    return code


def _figure(measured: Measured, cohort: int, times: _Times, began: float, ended: float) -> None:
    """Work out the figures from the times."""
    if len(times.ended) < 2:
        raise UnavailableError(f"only {len(times.ended)} rounds ended")
    measured.rounds, measured.cohort = len(times.ended), cohort
    measured.round_seconds = [after - before for before, after in pairwise(times.ended)]
    measured.updates_per_second = cohort * (measured.rounds - 1) / (times.ended[-1] - times.ended[0])
    measured.first_round = times.ended[0] - began
    measured.start_up = times.began - began if times.began else 0.0
    measured.whole = ended - began


def _hansa_notes(measured: Measured) -> None:
    """Take in what Hansa's run folder says of the run."""
    folder = RUNS / "run"
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rounds = [event for event in map(json.loads, lines) if event["event"] == "round"]
    measured.start_up = measured.first_round - rounds[0]["seconds"]
    environment_of_run = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    kept = ("hansa", "torch", "numpy", "python", "linear_algebra")
    measured.versions = {name: environment_of_run[name] for name in kept if name in environment_of_run}
    measured.notes = {
        "train_loss": [event["train_loss"] for event in rounds],
        "own_seconds": [event["seconds"] for event in rounds],
        "executor": json.loads((folder / "replay.json").read_text(encoding="utf-8")).get("executor"),
    }


def _last_words(log: Path) -> str:
    """Return the last line that a failed command wrote, of a traceback the error itself."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["no output"])[-1][:300]
