"""Two-dimensional convolution through the discrete Fourier transform, as matrix products in float32.

An image of 14 x 14 and a kernel of 5 x 5 take 4900 products a pair of channels in a direct convolution, and 512
between their transforms of 16 x 16. The transforms are products with small matrices of sines and cosines: any
size will do, and all of them run at the speed of matrix products. Source of the idea: Mathieu, Henaff, LeCun 2014,
"Fast training of convolutional networks through FFTs", https://arxiv.org/abs/1312.5851.

Of two frequencies whose numbers are conjugates of each other, one is kept. What is its own conjugate is a real number,
and two of these share a point. So real images of h x w have h w / 2 points of two planes, real and imaginary, one
above the other: a spectrum takes no more room than its image. Points lie in rows, one for each frequency of the
height; the first row holds frequency 0 and, of an even height, the middle one, which are real before the width's turn.
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
    def rows(self) -> int:
        """Return how many frequencies of the height are kept."""
        return (self.period[0] + 1) // 2


def pays(shape: Shape, batch: int, channels: int, outputs: int) -> bool:
    """Return whether the arithmetic of a direct convolution is well above that of this one."""
    (height, width), (tall, wide), (rows, columns) = shape.image, shape.kernel, shape.result
    if rows < 1 or columns < 1:
        return False
    half, full = shape.rows, shape.period[1]
    direct = batch * channels * outputs * rows * columns * tall * wide
    spectra = half * full * 4 * batch * channels * outputs
    images = batch * channels * half * width * (2 * height + 4 * full)
    results = batch * outputs * half * columns * (2 * rows + 4 * full)
    kernels = channels * outputs * half * wide * (2 * tall + 4 * full)
    return direct > _GAIN * (spectra + images + results + _MEMORY * kernels)


@dataclass(frozen=True)
class _Transform:
    """A transform: ``first`` [2 rows, h] over the height, then ``second`` [rows, 2 period, 2 w] over the width."""

    first: Tensor
    second: Tensor

    def of(self, values: Tensor) -> Tensor:
        """Return the spectrum of values [h, w x rest]: [rows, 2 period, rest]."""
        rows, _, wide = self.second.shape
        return torch.bmm(self.second, (self.first @ values).view(rows, wide, -1))

    def transposed(self, spectrum: Tensor) -> Tensor:
        """Return the transpose of :meth:`of`: [rows, 2 period, rest] -> [h, w x rest]."""
        return self.first.t() @ torch.bmm(self.second.transpose(1, 2), spectrum).view(len(self.first), -1)


@dataclass(frozen=True)
class _Transforms:
    """The transforms of one shape; that of the result is the transpose of the way back."""

    image: _Transform
    kernel: _Transform
    result: _Transform


@lru_cache(maxsize=64)
def _transforms(shape: Shape) -> _Transforms:
    (high, wide), rows = shape.period, shape.rows
    share = torch.full((rows, wide, 2), 2.0 / (high * wide), dtype=torch.float64)  # of two conjugates, one is kept
    share[0, _pairs(wide)] /= 2
    first, second = _steps(shape, shape.result, sign=-1)
    return _Transforms(
        _transform(*_steps(shape, shape.image, sign=-1)),
        _transform(*_steps(shape, shape.kernel, sign=1, shift=shape.padding)),
        _transform(first, second * share.view(rows, 2 * wide, 1)),
    )


def _transform(first: Tensor, second: Tensor) -> _Transform:
    return _Transform(first.float(), second.float())


def _steps(shape: Shape, size: tuple[int, int], *, sign: int, shift: tuple[int, int] = (0, 0)) -> tuple[Tensor, Tensor]:
    """Return both steps of the transform of real [height, width], float64."""
    (high, wide), rows = shape.period, shape.rows
    second = _complex(size[1], wide, sign=sign, shift=shift[1]).repeat(rows, 1, 1)
    second[0] = _two_real(size[1], wide, sign=sign, shift=shift[1])
    return _real(size[0], high, sign=sign, shift=shift[0]), second


def _angles(frequencies: int, size: int, period: int, shift: int) -> Tensor:
    positions = torch.arange(size, dtype=torch.float64) - shift
    turns = torch.outer(torch.arange(frequencies, dtype=torch.float64), positions) % period
    return turns * (2 * math.pi / period)


def _real(size: int, period: int, *, sign: int, shift: int) -> Tensor:
    """Return the transform of real numbers: [2 x half the period, rounded up, size].

    Its rows are the real and imaginary parts of the frequencies, but for the first two: frequency 0 and half the
    period, which are real, or zeros for the latter where the period is odd.
    """
    angles = _angles(period // 2 + 1, size, period, shift)
    kept = angles[: (period + 1) // 2]
    rows = torch.stack([kept.cos(), sign * kept.sin()], dim=1)
    rows[0, 1] = angles[-1].cos() if period % 2 == 0 else 0
    return rows.flatten(0, 1)


def _complex(size: int, period: int, *, sign: int, shift: int) -> Tensor:
    """Return the transform of complex numbers: [period x (real, imaginary), (real, imaginary) x size]."""
    angles = _angles(period, size, period, shift)
    cosines, sines = angles.cos(), sign * angles.sin()
    real, imaginary = torch.cat([cosines, -sines], dim=1), torch.cat([sines, cosines], dim=1)
    return torch.stack([real, imaginary], dim=1).flatten(0, 1)


def _two_real(size: int, period: int, *, sign: int, shift: int) -> Tensor:
    """Return the transforms of two rows of real numbers, in the shape of :func:`_complex`.

    The points of :func:`_pairs` hold two real numbers each; all others are those of one row, then of the other.
    """
    one = _real(size, period, sign=sign, shift=shift)
    none = torch.zeros_like(one)
    both = torch.cat([torch.cat([one, none], dim=1), torch.cat([none, one], dim=1)])
    if period % 2:  # each has a zero beside its only real number: the other's goes there
        both[1] = both[len(one)]
        both = torch.cat([both[: len(one)], both[len(one) + 2 :]])
    return both


def _pairs(period: int) -> list[int]:
    """Return the points of the first row that hold two real numbers, and no complex one."""
    return [0] if period % 2 else [0, period // 2]


def _flat(values: Tensor) -> Tensor:
    """Return [b, c, h, w] as [h, w x b x c]."""
    return values.permute(2, 3, 0, 1).reshape(values.shape[2], -1)


def _doubled(planes: Tensor) -> Tensor:
    """Return numbers [rows, period, 2, b, c] as the real matrices that multiply by them: [rows x period, 2 b, 2 c].

    They are (Xr, -Xi) above (Xi, Xr), so that their product with (Vr, Vi) stacked is the complex product; for a pair of
    real numbers (X, 0) above (0, Y).
    """
    rows, period, _, batch, channels = planes.shape
    doubled = planes.new_empty((rows, period, 2, batch, 2, channels))
    real, imaginary = planes[:, :, 0], planes[:, :, 1]
    doubled[:, :, 0, :, 0] = doubled[:, :, 1, :, 1] = real
    doubled[:, :, 1, :, 0] = imaginary
    torch.neg(imaginary, out=doubled[:, :, 0, :, 1])
    for point in _pairs(period):
        doubled[0, point, 1, :, 1] = imaginary[0, point]
        doubled[0, point, 0, :, 1] = doubled[0, point, 1, :, 0] = 0
    return doubled.view(rows * period, 2 * batch, 2 * channels)


def _halved(doubled: Tensor, rows: int, batch: int) -> Tensor:
    """Return the transpose of :func:`_doubled`: [rows x period, 2 b, 2 c] -> [rows, period x 2, b x c]."""
    parts = doubled.view(rows, -1, 2, batch, 2, doubled.shape[2] // 2)
    planes = doubled.new_empty((rows, parts.shape[1], 2, batch, parts.shape[-1]))
    torch.add(parts[:, :, 0, :, 0], parts[:, :, 1, :, 1], out=planes[:, :, 0])
    torch.sub(parts[:, :, 1, :, 0], parts[:, :, 0, :, 1], out=planes[:, :, 1])
    for point in _pairs(parts.shape[1]):
        planes[0, point, 0] = parts[0, point, 0, :, 0]
        planes[0, point, 1] = parts[0, point, 1, :, 1]
    return planes.view(rows, 2 * parts.shape[1], -1)


class Convolution(torch.autograd.Function):
    """Convolution of x [b, c, h, w] with a kernel [o, c, k, l] and a bias [o] or None: [b, o, h', w']."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
        """Return the result, channels last; keep both spectra for the gradients."""
        transforms, (rows, columns) = _transforms(shape), shape.result
        (batch, channels), outputs, points = x.shape[:2], len(kernel), shape.rows * shape.period[1]
        images = _doubled(transforms.image.of(_flat(x)).view(shape.rows, -1, 2, batch, channels))
        taps = kernel.permute(2, 3, 1, 0).reshape(kernel.shape[2], -1)
        kernels = transforms.kernel.of(taps).view(points, 2 * channels, outputs)
        spectrum = torch.bmm(images, kernels)
        values = transforms.result.transposed(spectrum.view(shape.rows, -1, batch * outputs))
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
        transforms, flat = _transforms(shape), _flat(gradient)
        spectrum = transforms.result.of(flat).view(len(images), 2 * batch, outputs)
        into_x = into_kernel = into_bias = None
        if ctx.needs_input_grad[0]:
            planes = _halved(torch.bmm(spectrum, kernels.transpose(1, 2)), shape.rows, batch)
            into_x = transforms.image.transposed(planes).view(*shape.image, batch, -1).permute(2, 3, 0, 1)
        if ctx.needs_input_grad[1]:
            taps = torch.bmm(images.transpose(1, 2), spectrum)
            into_kernel = transforms.kernel.transposed(taps.view(shape.rows, 2 * shape.period[1], -1))
            into_kernel = into_kernel.view(*shape.kernel, -1, outputs).permute(3, 2, 0, 1)
        if ctx.needs_input_grad[2]:
            into_bias = flat.view(-1, outputs).sum(dim=0)
        return into_x, into_kernel, into_bias, None
