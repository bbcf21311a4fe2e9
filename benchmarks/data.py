"""Synthetic examples, made once: the same files for every system.

A task's folder holds ``data.npz`` (what a user of Hansa writes) and, for the peers, the same arrays as plain files
that can be mapped: ``x.npy`` [N, ...], ``y.npy`` [N], ``offsets.npy`` [clients + 1] (client i has the rows from
offsets[i] to offsets[i + 1]). ``initial.npz`` is the model that every system starts from, and ``sample.npz`` a fixed
sample of all examples, on which final models are compared.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.places import DATA
from benchmarks.tasks import SEED, Task

_SAMPLE = 4000
_MADE = "made.json"
_FORM = 1
"""Raised where the files change for the same task."""


def prepare(task: Task) -> Path:
    """Return the folder of the task's data, made if it is not there or was made for another description."""
    folder = DATA / task.name
    about = {"form": _FORM, "task": asdict(task)}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    made = folder / _MADE
    if not made.exists() or json.loads(made.read_text(encoding="utf-8")) != key:
        folder.mkdir(parents=True, exist_ok=True)
        made.unlink(missing_ok=True)
        _write(task, folder)
        made.write_text(json.dumps(key), encoding="utf-8")
    return folder


def client_sizes(task: Task, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the number of examples of each client: a beta law between the bounds, with the task's mean."""
    low, mean, high = task.sizes
    place = (mean - low) / (high - low)
    drawn = generator.beta(3 * place, 3 * (1 - place), size=task.clients)
    return np.rint(low + drawn * (high - low)).astype(np.int64)


def _write(task: Task, folder: Path) -> None:
    generator = np.random.Generator(np.random.PCG64([SEED, *task.name.encode()]))
    sizes = client_sizes(task, generator)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    x, y = _examples(task, int(offsets[-1]), generator)
    client = np.repeat(np.arange(task.clients), sizes)
    np.savez(folder / "data.npz", X=x, y=y, client=client)
    for name, array in {"x": x, "y": y, "offsets": offsets}.items():
        np.save(folder / f"{name}.npy", array)
    chosen = generator.choice(len(y), size=min(_SAMPLE, len(y)), replace=False)
    np.savez(folder / "sample.npz", x=x[chosen], y=y[chosen])


def _examples(task: Task, count: int, generator: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return examples x float32 [count, ...] around the means of their classes, and labels y int64 [count]."""
    means = generator.normal(size=(task.classes, *task.shape))
    if len(task.shape) == 2:
        means = _smooth(means)
    means *= task.spread / np.linalg.norm(means.reshape(task.classes, -1), axis=1).mean()
    y = generator.integers(0, task.classes, size=count)
    x = generator.standard_normal(size=(count, *task.shape), dtype=np.float32)
    x += means.astype(np.float32)[y]
    return x, y.astype(np.int64)


def _smooth(images: NDArray[Any]) -> NDArray[Any]:
    """Return images [n, h, w] in which neighbours are alike, as in drawn characters: three passes of a 5x5 mean."""
    for _ in range(3):
        for axis in (1, 2):
            images = sum(np.roll(images, step, axis=axis) for step in range(-2, 3)) / 5
    return images
