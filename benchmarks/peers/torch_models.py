"""The tasks' models as torch modules, for the peers that train with torch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from peer_io import Job
from torch import nn


def network(job: Job) -> nn.Sequential:
    """Return the task's model, starting where every system starts."""
    module = _cnn(job.classes) if job.network == "cnn" else _mlp([job.features, *job.hidden, job.classes])
    initial = job.initial()
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), initial.values(), strict=True):
            parameter.copy_(torch.from_numpy(value))
    return module


def numpy_parameters(module: nn.Module, job: Job) -> dict[str, np.ndarray]:
    """Return a copy of the module's parameters under the names of the initial model."""
    parameters = (parameter.detach().numpy().copy() for parameter in module.parameters())
    return dict(zip(job.initial(), parameters, strict=True))


def _mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _cnn(classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)),
        nn.Conv2d(1, 32, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 512),
        nn.ReLU(),
        nn.Linear(512, classes),
    )
