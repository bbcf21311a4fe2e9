"""Whether all learned the same: the loss of each final model on one fixed sample of all examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.places import DATA
from benchmarks.start import in_order
from benchmarks.systems import System
from benchmarks.tasks import Task

Parameters = dict[str, NDArray[Any]]


def losses(task: Task, out: Path, system: System) -> dict[str, float]:
    """Return the loss after the rounds whose model the run kept: rounds (as text) -> mean cross-entropy."""
    if system.is_hansa:
        return {str(system.rounds(task)): loss(task, _hansa_model(out / "run" / "model.safetensors", task))}
    kept = {task.few_rounds: out / "few.npz", system.rounds(task): out / "final.npz"}
    return {str(rounds): loss(task, in_order(_read(path), task)) for rounds, path in kept.items() if path.exists()}


def initial_loss(task: Task) -> float:
    """Return the loss of the model that every system starts from."""
    return loss(task, _read(DATA / task.name / "initial.npz"))


def loss(task: Task, parameters: Parameters) -> float:
    """Return the mean cross-entropy on the task's sample."""
    sample = _read(DATA / task.name / "sample.npz")
    logits = _cnn_logits(parameters, sample["x"]) if task.network == "cnn" else _dense_logits(parameters, sample["x"])
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), sample["y"]]
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - chosen))


def _read(path: Path) -> Parameters:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def _hansa_model(path: Path, task: Task) -> Parameters:
    from safetensors.numpy import load_file  # noqa: PLC0415 - comes with Hansa

    views = {name.removeprefix("params/"): value for name, value in load_file(path).items()}
    return in_order(views, task)


def _dense_logits(parameters: Parameters, x: NDArray[Any]) -> NDArray[Any]:
    layers = len(parameters) // 2
    for number in range(layers):
        x = x @ parameters[f"{number}.weight"].T + parameters[f"{number}.bias"]
        x = np.maximum(x, 0) if number + 1 < layers else x
    return x


def _cnn_logits(parameters: Parameters, x: NDArray[Any]) -> NDArray[Any]:
    import torch  # noqa: PLC0415 - slow to import
    from torch.nn import functional  # noqa: PLC0415

    weights = [torch.from_numpy(np.ascontiguousarray(value)) for value in parameters.values()]
    with torch.no_grad():
        hidden = torch.from_numpy(x)[:, None]
        for weight, bias in (weights[:2], weights[2:4]):
            hidden = functional.max_pool2d(functional.conv2d(hidden, weight, bias, padding=2).relu(), 2)
        hidden = functional.linear(hidden.flatten(1), *weights[4:6]).relu()
        logits: NDArray[Any] = functional.linear(hidden, *weights[6:8]).numpy()
    return logits
