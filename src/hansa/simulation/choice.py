"""Which executor computes a run, and how: as the user says, or chosen by measuring the plan's own model and data."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from hansa.core.errors import PlanError, Problem
from hansa.core.registry import nearest
from hansa.simulation.executors import Batched, Executor, Serial

CHUNK: Final = 32
"""Clients that train at once where nobody said how many."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a run is computed. The last bits of its model depend on ``executor`` and ``chunk``, not on ``workers``.

    ``chunk`` clients train at once; ``workers`` chunks are computed at the same time.
    """

    executor: str
    chunk: int = 1
    workers: int = 1
    why: str = ""

    @property
    def text(self) -> str:
        """Return the choice in words."""
        many = f", {self.workers} workers" if self.workers > 1 else ""
        return f"{self.executor} (chunk {self.chunk}{many})"

    def as_json(self) -> dict[str, Any]:
        """Return what replay.json holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Choice:
        """Return the choice that replay.json holds. Raises TypeError or LookupError for anything else."""
        choice = cls(**content)
        if choice.executor not in EXECUTORS:
            raise LookupError(choice.executor)
        return choice


EXECUTORS: Final[dict[str, Callable[[Choice], Executor]]] = {
    "serial": lambda _: Serial(),
    "batched": lambda choice: Batched(chunk=choice.chunk, workers=choice.workers),
}
"""Every executor, made from a choice."""


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def choose(name: str, *, workers: int | None = None, chunk: int | None = None) -> Choice:
    """Return the choice that a user's words mean. Raises PlanError for an unknown executor or a bad number."""
    problems = [
        Problem(f"--{option}", f"must be at least 1, but {value} was given.")
        for option, value in (("workers", workers), ("chunk", chunk))
        if value is not None and value < 1
    ]
    if name not in EXECUTORS:
        problems.append(Problem("--executor", f"unknown executor {name!r}; {nearest(name, EXECUTORS)}"))
    if name == "serial" and (workers or 1, chunk or 1) != (1, 1):
        problems.append(Problem("--executor", "serial computes one client at a time; leave out --workers and --chunk."))
    if problems:
        raise PlanError(problems)
    if name == "serial":
        return Choice(executor=name, why="asked for")
    return Choice(executor=name, chunk=chunk or CHUNK, workers=workers or processors(), why="asked for")


def executor_of(choice: Choice) -> Executor:
    """Return the executor that a choice names."""
    return EXECUTORS[choice.executor](choice)
