"""Torch modules for the tests of executors: importable in worker processes too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FACTORY = f"{__name__}:"


class Recurrent(nn.Module):
    """Tokens through an embedding and a GRU; its last state decides."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru, self.output = nn.Embedding(7, 4), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(self.embedding(x))
        logits: Tensor = self.output(states[:, -1])
        return logits


def dense(hidden: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def dropped() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 3))


def embedded() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(7, 4, padding_idx=0), nn.LayerNorm(4), nn.Flatten(), nn.Linear(20, 6), nn.ELU(), nn.Linear(6, 3)
    )


def image() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )


def batch_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def talkative() -> nn.Module:
    print("a model that talks", torch.__version__)  # noqa: T201 - it is what this module is for
    return dense()


def digits() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def tokens() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Flatten(), nn.Linear(20, 3))
