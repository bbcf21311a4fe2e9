"""Which executor computes a run, and how: as the user says, or found by measuring (:mod:`hansa.simulation.auto`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from hansa.core.errors import PlanError, Problem
from hansa.core.registry import nearest
from hansa.simulation.executors import Batched, Executor, Serial
from hansa.training.kernels import Kernels, missing_device

AUTO: Final = "auto"
CHUNK: Final = 32
"""Clients that train at once where nobody said how many, and nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a run is computed. The last bits of its model depend on all of it but ``workers``.

    ``chunk`` clients train at once; ``workers`` chunks are computed at the same time; ``kernels`` are those of
    :class:`hansa.training.kernels.Kernels`. ``kind`` is how several clients of a chunk train, as the trainer's
    ``batching`` says: "fused", "vmap", or "none" (one by one).
    """

    executor: str
    chunk: int = 1
    workers: int = 1
    kernels: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""
    why: str = ""

    @property
    def text(self) -> str:
        """Return the choice in words."""
        many = f", {self.workers} workers" if self.workers > 1 else ""
        plain = Kernels().record()
        other = [str(name if value is True else value) for name, value in self.kernels.items() if value != plain[name]]
        own = f", with {' and '.join(other)}" if other else ""
        return f"{self.executor}, {self.chunk} client{'s' if self.chunk > 1 else ''} at once{many}{own}"

    def as_json(self) -> dict[str, Any]:
        """Return what replay.json holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Choice:
        """Return the choice that replay.json holds. Raises TypeError or LookupError for anything else."""
        choice = cls(**content)
        Kernels(**choice.kernels)
        if any(type(number) is not int for number in (choice.chunk, choice.workers)) or any(
            type(text) is not str for text in (choice.kind, choice.why)
        ):
            raise TypeError(content)
        if choice.executor not in EXECUTORS or min(choice.chunk, choice.workers) < 1:
            raise LookupError(choice.executor)
        return choice


def _batched(choice: Choice) -> Executor:
    return Batched(chunk=choice.chunk, workers=choice.workers, kernels=Kernels(**choice.kernels))


def _processes(choice: Choice) -> Executor:
    from hansa.simulation.processes import Processes  # noqa: PLC0415 - loky is imported where it is used

    return Processes(chunk=choice.chunk, workers=choice.workers, kernels=Kernels(**choice.kernels))


def _ray(choice: Choice) -> Executor:
    from hansa.simulation.ray_cluster import Ray  # noqa: PLC0415 - ray is an extra

    cluster: Executor = Ray(chunk=choice.chunk, workers=choice.workers, kernels=Kernels(**choice.kernels))
    return cluster


EXECUTORS: Final[dict[str, Callable[[Choice], Executor]]] = {
    "serial": lambda choice: Serial(kernels=Kernels(**choice.kernels)),
    "batched": _batched,
    "process": _processes,
    "ray": _ray,
}
"""Every executor, made from a choice."""


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def asked_for(
    name: str, *, workers: int | None = None, chunk: int | None = None, device: str | None = None
) -> Choice | None:
    """Return the choice that a user's words mean, None for ``auto``. Raises PlanError for words that mean none."""
    problems = [
        Problem(f"--{option}", f"must be at least 1, but {value} was given.")
        for option, value in (("workers", workers), ("chunk", chunk))
        if value is not None and value < 1
    ]
    if name not in (AUTO, *EXECUTORS):
        problems.append(Problem("--executor", f"unknown executor {name!r}; {nearest(name, (AUTO, *EXECUTORS))}"))
    if name == "serial" and (workers or 1, chunk or 1) != (1, 1):
        problems.append(Problem("--executor", "serial computes one client at a time; leave out --workers and --chunk."))
    if name == AUTO and (workers, chunk) != (None, None):
        problems.append(
            Problem("--executor", "auto chooses --workers and --chunk; leave them out, or name an executor.")
        )
    if device and (missing := missing_device(device)):
        problems.append(Problem("--device", f"torch cannot compute on {device!r} here: {missing}."))
    if problems:
        raise PlanError(problems)
    if name == AUTO:
        return None
    kernels = Kernels(device=device or "").record()
    if name == "serial":
        return Choice(executor=name, kernels=kernels, why="asked for")
    many = CHUNK if name == "batched" else 1
    return Choice(executor=name, chunk=chunk or many, workers=workers or processors(), kernels=kernels, why="asked for")


def executor_of(choice: Choice) -> Executor:
    """Return the executor that a choice names."""
    return EXECUTORS[choice.executor](choice)
