"""Two-dimensional convolution through the discrete Fourier transform, as matrix products in float32.

An image of 14 x 14 and a kernel of 5 x 5 take 4900 products a pair of channels in a direct convolution, and 1152
between their transforms of 16 x 16. The transforms are products with small matrices of sines and cosines: any
size will do, and all of them run at the speed of matrix products. Source of the idea: Mathieu, Henaff, LeCun 2014,
"Fast training of convolutional networks through FFTs", https://arxiv.org/abs/1312.5851.

Complex numbers are held as two planes, real and imaginary, one above the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor

_GAIN: Final = 2.0
"""A direct convolution must take so many times the arithmetic; products of small matrices run at about half speed."""

_MEMORY: Final = 3.0
"""The transform of a kernel, which is small, into a spectrum, which is not, takes so many times its arithmetic."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a convolution with stride 1: image, kernel and padding, each (height, width)."""

    image: tuple[int, int]
    kernel: tuple[int, int]
    padding: tuple[int, int]

    @property
    def result(self) -> tuple[int, int]:
        """Return the size of the result."""
        height, width = (
            size + 2 * padding - kernel + 1
            for size, padding, kernel in zip(self.image, self.padding, self.kernel, strict=True)
        )
        return height, width

    @property
    def period(self) -> tuple[int, int]:
        """Return the least period at which what wraps around meets zeros only."""
        return self.image[0] + self.padding[0], self.image[1] + self.padding[1]

    @property
    def half(self) -> int:
        """Return how many frequencies of the height hold a real image; of the width, all are kept."""
        return self.period[0] // 2 + 1


def pays(shape: Shape, batch: int, channels: int, outputs: int) -> bool:
    """Return whether the arithmetic of a direct convolution is well above that of this one."""
    (height, width), (tall, wide), (rows, columns) = shape.image, shape.kernel, shape.result
    if rows < 1 or columns < 1:
        return False
    half, full = shape.half, shape.period[1]
    direct = batch * channels * outputs * rows * columns * tall * wide
    spectra = half * full * 4 * batch * channels * outputs
    images = batch * channels * half * width * (2 * height + 4 * full)
    results = batch * outputs * half * columns * (2 * rows + 4 * full)
    kernels = channels * outputs * half * wide * (2 * tall + 4 * full)
    return direct > _GAIN * (spectra + images + results + _MEMORY * kernels)


@dataclass(frozen=True)
class _Matrices:
    """The transforms of one shape, float32: first over the height, then over the width."""

    image: tuple[Tensor, Tensor]
    kernel: tuple[Tensor, Tensor]
    result: tuple[Tensor, Tensor]


@lru_cache(maxsize=64)
def _matrices(shape: Shape) -> _Matrices:
    (high, wide), half = shape.period, shape.half
    image = (
        _real(half, shape.image[0], high, sign=-1),
        _complex(shape.image[1], wide, sign=-1),
    )
    kernel = (
        _real(half, shape.kernel[0], high, sign=1, shift=shape.padding[0]),
        _complex(shape.kernel[1], wide, sign=1, shift=shape.padding[1]),
    )
    rows, columns = shape.result
    twice = torch.full((half, 1, 1), 2.0, dtype=torch.float64)  # frequencies whose conjugates are left out
    twice[0] = 1
    if high % 2 == 0:
        twice[-1] = 1
    back = _real(half, rows, high, sign=-1).double().view(half, 2, rows) * twice / high
    across = _complex(columns, wide, sign=-1).double() / wide
    return _Matrices(image, kernel, (back.view(2 * half, rows).float(), across.float()))


def _angles(frequencies: int, size: int, period: int, shift: int) -> Tensor:
    positions = torch.arange(size, dtype=torch.float64) - shift
    turns = torch.outer(torch.arange(frequencies, dtype=torch.float64), positions) % period
    return turns * (2 * math.pi / period)


def _real(frequencies: int, size: int, period: int, *, sign: int, shift: int = 0) -> Tensor:
    """Return the transform of real numbers: [frequencies x (real, imaginary), size]."""
    angles = _angles(frequencies, size, period, shift)
    return torch.stack([angles.cos(), sign * angles.sin()], dim=1).view(2 * frequencies, size).float()


def _complex(size: int, period: int, *, sign: int, shift: int = 0) -> Tensor:
    """Return the transform of complex numbers: [period x (real, imaginary), (real, imaginary) x size]."""
    angles = _angles(period, size, period, shift)
    cosines, sines = angles.cos(), sign * angles.sin()
    real, imaginary = torch.cat([cosines, -sines], dim=1), torch.cat([sines, cosines], dim=1)
    return torch.stack([real, imaginary], dim=1).view(2 * period, 2 * size).float()


def _forwards(matrices: tuple[Tensor, Tensor], values: Tensor, half: int) -> Tensor:
    """Return [height, width x rest] transformed: [half, period x 2, rest]."""
    first, second = matrices
    return torch.matmul(second, (first @ values).view(half, second.shape[1], -1))


def _backwards(matrices: tuple[Tensor, Tensor], spectrum: Tensor) -> Tensor:
    """Return the transpose of :func:`_forwards`: [half, period x 2, rest] -> [height, width x rest]."""
    first, second = matrices
    return first.t() @ torch.matmul(second.t(), spectrum).view(first.shape[0], -1)


def _flat(values: Tensor) -> Tensor:
    """Return [b, c, h, w] as [h, w x b x c]."""
    return values.permute(2, 3, 0, 1).reshape(values.shape[2], -1)


def _doubled(planes: Tensor) -> Tensor:
    """Return complex numbers [points, 2, b, c] as the real matrices that multiply by them: [points, 2 b, 2 c].

    They are (Xr, -Xi) above (Xi, Xr), so that their product with (Vr, Vi) stacked is the complex product.
    """
    points, _, batch, channels = planes.shape
    doubled = planes.new_empty((points, 2, batch, 2, channels))
    doubled[:, 0, :, 0] = doubled[:, 1, :, 1] = planes[:, 0]
    doubled[:, 1, :, 0] = planes[:, 1]
    torch.neg(planes[:, 1], out=doubled[:, 0, :, 1])
    return doubled.view(points, 2 * batch, 2 * channels)


def _halved(doubled: Tensor, batch: int) -> Tensor:
    """Return the transpose of :func:`_doubled`: [points, 2 b, 2 c] -> [points, 2, b, c]."""
    parts = doubled.view(len(doubled), 2, batch, 2, -1)
    planes = doubled.new_empty((len(doubled), 2, batch, parts.shape[-1]))
    torch.add(parts[:, 0, :, 0], parts[:, 1, :, 1], out=planes[:, 0])
    torch.sub(parts[:, 1, :, 0], parts[:, 0, :, 1], out=planes[:, 1])
    return planes


class Convolution(torch.autograd.Function):
    """Convolution of x [b, c, h, w] with a kernel [o, c, k, l] and a bias [o] or None: [b, o, h', w']."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
        """Return the result, channels last; keep both spectra for the gradients."""
        matrices, half = _matrices(shape), shape.half
        (batch, channels), outputs, (rows, columns) = x.shape[:2], len(kernel), shape.result
        points = half * shape.period[1]
        images = _doubled(_forwards(matrices.image, _flat(x), half).view(points, 2, batch, channels))
        taps = kernel.permute(2, 3, 1, 0).reshape(kernel.shape[2], -1)
        kernels = _forwards(matrices.kernel, taps, half).view(points, 2 * channels, outputs)
        spectrum = torch.bmm(images, kernels)
        values = _backwards(matrices.result, spectrum.view(half, -1, batch * outputs))
        placed = values.view(rows, columns, batch, outputs).permute(2, 0, 1, 3)
        result = x.new_empty((batch, rows, columns, outputs))
        result = result.copy_(placed) if bias is None else torch.add(placed, bias, out=result)
        ctx.save_for_backward(images, kernels)
        ctx.shape = shape
        return result.permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, kernel and bias, where they are wanted."""
        images, kernels = ctx.saved_tensors
        shape, (batch, outputs) = ctx.shape, gradient.shape[:2]
        matrices, half, flat = _matrices(shape), shape.half, _flat(gradient)
        spectrum = _forwards(matrices.result, flat, half).view(len(images), 2 * batch, outputs)
        into_x = into_kernel = into_bias = None
        if ctx.needs_input_grad[0]:
            planes = _halved(torch.bmm(spectrum, kernels.transpose(1, 2)), batch)
            into_x = _backwards(matrices.image, planes.view(half, 2 * shape.period[1], -1))
            into_x = into_x.view(*shape.image, batch, -1).permute(2, 3, 0, 1)
        if ctx.needs_input_grad[1]:
            taps = torch.bmm(images.transpose(1, 2), spectrum)
            into_kernel = _backwards(matrices.kernel, taps.view(half, 2 * shape.period[1], -1))
            into_kernel = into_kernel.view(*shape.kernel, -1, outputs).permute(3, 2, 0, 1)
        if ctx.needs_input_grad[2]:
            into_bias = flat.view(-1, outputs).sum(dim=0)
        return into_x, into_kernel, into_bias, None
