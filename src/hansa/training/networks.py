"""Networks of the examples: factories that a plan can name.

Source of all three: McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017, "Communication-efficient
learning of deep networks from decentralized data", section 3, https://arxiv.org/abs/1602.05629.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


def mlp(*, inputs: int = 784, hidden: Sequence[int] = (200, 200), classes: int = 10) -> nn.Module:
    """Return a multi-layer perceptron with ReLU: [b, ...] with ``inputs`` numbers each -> logits [b, classes].

    The defaults are the paper's "2NN" (199,210 parameters). ``hidden`` may be empty.
    """
    widths = [inputs, *hidden]
    layers = [layer for before, width in pairwise(widths) for layer in (nn.Linear(before, width), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], classes))


def cnn(*, channels: int = 1, image: int = 28, classes: int = 10) -> nn.Module:
    """Return two 5x5 convolutions (32, 64), each with 2x2 max-pooling, and a dense layer of 512.

    It takes square images [b, image, image], [b, channels, image, image] or flat, and returns logits
    [b, classes]. The defaults are the paper's CNN (1,663,370 parameters). ``image`` is at least 4.
    """
    flat = 64 * (image // 4) ** 2
    return nn.Sequential(
        _Reshape((channels, image, image)),
        nn.Conv2d(channels, 32, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(flat, 512),
        nn.ReLU(),
        nn.Linear(512, classes),
    )


def char_lstm(*, vocabulary: int = 81, embedding: int = 8, hidden: int = 256, layers: int = 2) -> nn.Module:
    """Return a stacked LSTM over characters: tokens [b, length] -> logits of the next one [b, vocabulary]."""
    return _CharLstm(vocabulary, embedding, hidden, layers)


class _Reshape(nn.Module):
    """Gives every example a shape."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return x [b, ...] as [b, *shape]."""
        return x.reshape(len(x), *self.shape)


class _CharLstm(nn.Module):
    """An embedding, LSTM layers, and a dense layer on the last state."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, num_layers=layers, batch_first=True)
        self.output = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [b, vocabulary] of the character after tokens [b, length]."""
        states: Tensor = self.lstm(self.embedding(tokens))[0]
        logits: Tensor = self.output(states[:, -1])
        return logits
