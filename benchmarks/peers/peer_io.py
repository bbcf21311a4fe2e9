"""What every peer's program shares: reading a job and its data, noting the time of each round, keeping models.

It runs in the peers' own environments and needs numpy only.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Job:
    """One run: the task's numbers, where its data are, and where the result goes."""

    network: str
    shape: tuple[int, ...]
    hidden: tuple[int, ...]
    classes: int
    clients: int
    batch: int
    rounds: int
    few_rounds: int
    learning_rate: float
    seed: int
    processes: int
    mapped: bool
    data: Path
    cohorts: Path
    out: Path

    @classmethod
    def read(cls, path: str) -> Job:
        """Read the job that the harness wrote."""
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        values |= {name: Path(values[name]) for name in ("data", "cohorts", "out")}
        values |= {name: tuple(values[name]) for name in ("shape", "hidden")}
        return cls(**values)

    @property
    def features(self) -> int:
        """Return how many numbers an example has."""
        return int(np.prod(self.shape))

    def cohort_rows(self) -> np.ndarray:
        """Return the clients of each round: int64 [rounds, cohort]."""
        return np.load(self.cohorts)[: self.rounds]

    def initial(self) -> dict[str, np.ndarray]:
        """Return the model that every system starts from, in torch's layout."""
        with np.load(self.data / "initial.npz") as archive:
            return {name: archive[name] for name in archive.files}


@dataclass(frozen=True)
class Examples:
    """All clients' examples, mapped from disk (nothing is copied until it is read) or read into memory."""

    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray

    @classmethod
    def load(cls, job: Job) -> Examples:
        """Map the files, copy-on-write, so that torch may wrap them; or read them."""
        mode: Literal["c"] | None = "c" if job.mapped else None
        return cls(*(np.load(job.data / f"{name}.npy", mmap_mode=mode) for name in ("x", "y", "offsets")))

    def of(self, client: int) -> tuple[np.ndarray, np.ndarray]:
        """Return one client's x and y."""
        rows = slice(int(self.offsets[client]), int(self.offsets[client + 1]))
        return self.x[rows], self.y[rows]


@dataclass
class Notes:
    """The times of a run, on the clock of the whole machine, and its models."""

    job: Job
    packages: tuple[str, ...]
    began: float = 0.0
    ended: list[float] = field(default_factory=list)

    def begin(self) -> None:
        """Note that the first round begins."""
        self.began = time.time()

    def end_round(self) -> None:
        """Note that a round has ended."""
        self.ended.append(time.time())

    def keep(self, name: str, parameters: dict[str, np.ndarray]) -> None:
        """Write a model, in torch's layout."""
        np.savez(self.job.out / f"{name}.npz", **parameters)

    def write(self, final: dict[str, np.ndarray], few: dict[str, np.ndarray] | None, **more: Any) -> None:
        """Write what the harness reads, once the run is over."""
        self.keep("final", final)
        if few is not None:
            self.keep("few", few)
        versions = {name: metadata.version(name) for name in self.packages}
        versions["python"] = sys.version.split()[0]
        result = {"began": self.began, "ended": self.ended, "versions": versions, **more}
        (self.job.out / "result.json").write_text(json.dumps(result), encoding="utf-8")
