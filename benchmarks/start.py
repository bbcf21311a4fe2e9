"""Where every system starts, and whom it trains: Hansa's own initial model and cohorts, as files for the peers.

Both follow from the plan's seed. Peers that can be told whom to train then train exactly the same clients.
"""

from __future__ import annotations

import os
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.places import HERE, PLANS
from benchmarks.tasks import Task


def write_start(task: Task, folder: Path) -> None:
    """Write initial.npz and cohorts.npy [rounds, cohort] into the task's folder."""
    from hansa.algorithms.samplers import Uniform  # noqa: PLC0415 - the harness itself needs no Hansa
    from hansa.core.streams import Streams  # noqa: PLC0415
    from hansa.simulation.preparation import prepare  # noqa: PLC0415
    from hansa.wire.plans import read_plan  # noqa: PLC0415

    with chdir(HERE):
        prepared = prepare(read_plan(PLANS / f"{task.name}.toml"))
    streams = Streams(prepared.plan.seed)
    everyone: Any = SimpleNamespace(size=task.clients)
    sampler = Uniform(size=task.cohort)
    rounds = range(1, task.rounds + 1)
    cohorts = [sampler.draw(everyone, number, streams.of("cohort", number).coins()) for number in rounds]
    views = prepared.first.layout.views(prepared.first.model, "params")
    replace_npz(folder / "initial.npz", in_order(views, task))
    np.save(folder / "cohorts.npy", np.stack(cohorts))


def in_order(views: dict[str, NDArray[Any]], task: Task) -> dict[str, NDArray[Any]]:
    """Return a model's parameters under the task's names, whatever the system calls them.

    Torch's names have the layer's number in front; those of Hansa's linear models are "weight" (transposed there)
    and "intercept". Raises ValueError where a shape is not the task's.
    """
    if set(views) == {"weight", "intercept"}:
        return {"0.weight": np.ascontiguousarray(views["weight"].T), "0.bias": views["intercept"]}
    names = sorted(views, key=lambda name: (int(name.split(".")[0]), not name.endswith("weight")))
    ordered = {to: np.asarray(views[name]) for to, name in zip(task.parameters, names, strict=True)}
    for name, shape in task.parameters.items():
        if ordered[name].shape != shape:
            raise ValueError(f"{name} of task {task.name} has the shape {ordered[name].shape}, not {shape}")
    return ordered


def replace_npz(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write an archive whole."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    os.replace(partial, path)  # noqa: PTH105 - as short
