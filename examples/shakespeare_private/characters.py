"""A model of the next character that is small enough for noise: what the last few characters make likely, added up."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LastCharacters(nn.Module):
    """Log-linear in the last characters: a table of [vocabulary, vocabulary] for each, from zeros."""

    def __init__(self, vocabulary: int, last: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(vocabulary, vocabulary) for _ in range(last))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        for table in self.tables:
            nn.init.zeros_(table.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [b, vocabulary] of the character after tokens [b, length]."""
        logits = self.bias.expand(len(tokens), -1)
        for back, table in enumerate(self.tables, start=1):
            logits = logits + table(tokens[:, -back])
        return logits


def last_characters(*, vocabulary: int = 81, last: int = 2) -> nn.Module:
    """Return the model; with the defaults it has 13,203 parameters."""
    return LastCharacters(vocabulary, last)
