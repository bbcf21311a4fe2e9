"""A small convolutional network of one's own: any function that returns a torch module will do."""

from __future__ import annotations

from torch import Tensor, nn


def small_cnn(*, channels: int = 16, classes: int = 10) -> nn.Module:
    """Return a network for images [b, 28, 28] -> logits [b, classes]."""
    return nn.Sequential(
        _AddChannel(),
        _block(1, channels),
        _block(channels, 2 * channels),
        nn.Flatten(),
        nn.Linear(2 * channels * 7 * 7, classes),
    )


def _block(inputs: int, outputs: int) -> nn.Module:
    """Convolution, GroupNorm (its statistics are each example's own, so nothing of them travels), ReLU, pooling."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1),
        nn.GroupNorm(4, outputs),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


class _AddChannel(nn.Module):
    """Images come without a channel axis; convolutions want one."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x [b, height, width] as [b, 1, height, width]."""
        return x.unsqueeze(1)
