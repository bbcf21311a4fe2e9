"""Two-dimensional convolution through the discrete Fourier transform, as matrix products in float32.

An image of 14 x 14 and a kernel of 5 x 5 take 4900 products a pair of channels in a direct convolution, and 384
between their transforms of 16 x 16. The transforms are products with small matrices of sines and cosines: any
size will do, and all of them run at the speed of matrix products. Source of the idea: Mathieu, Henaff, LeCun 2014,
"Fast training of convolutional networks through FFTs", https://arxiv.org/abs/1312.5851.

Of two frequencies whose numbers are conjugates of each other, one is kept. What is its own conjugate is a real number,
and two of these share a point. A product (p + iq)(r + is) takes three of real ones (Gauss): p (s - r), -q (r + s) and
(p + q) r; the first and the third add up to the imaginary part, the second and the third to the real one. So a spectrum
is three planes of real numbers, each multiplied by its own: the convolution is C'(A x . B k) with matrices A, B and C,
and its gradients are A'(C y . B k) and B'(A x . C y). Of A and C, the third plane is the sum of the others.

Points lie in rows, one for each frequency of the height; the first row holds frequency 0 and, of an even height, the
middle one, which are real before the width's turn.

The products are numpy's: its library takes many small ones quickly, and a call lets go of Python's lock but once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hansa.core.layout import Array, Floats

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
    spectra = half * full * 3 * batch * channels * outputs
    images = batch * channels * half * width * (2 * height + 4 * full)
    results = batch * outputs * half * columns * (2 * rows + 4 * full)
    kernels = channels * outputs * half * wide * (2 * tall + 6 * full)
    return direct > _GAIN * (spectra + images + results + _MEMORY * kernels)


@dataclass(frozen=True)
class _Transform:
    """A transform: ``first`` [2 rows, h] over the height, then ``second`` [rows, planes x period, 2 w] over the width.

    Two planes are followed by their sum.
    """

    first: Floats
    second: Floats
    period: int

    def of(self, values: Floats) -> Floats:
        """Return the spectrum of values [h, w, b, c]: [rows x 3 x period, b, c]."""
        rows, points, wide = self.second.shape
        halfway = (self.first @ values.reshape(len(values), -1)).reshape(rows, wide, -1)
        planes = np.empty((rows, 3 * self.period, halfway.shape[2]), dtype=np.float32)
        np.matmul(self.second, halfway, out=planes[:, :points])
        if points < planes.shape[1]:
            one, other, both = (planes[:, i * self.period : (i + 1) * self.period] for i in range(3))
            np.add(one, other, out=both)
        return planes.reshape(-1, *values.shape[2:])

    def transposed(self, spectrum: Floats) -> Floats:
        """Return the transpose of :meth:`of`: [rows x 3 x period, b, c] -> [h, w, b, c]; the spectrum is used up."""
        rows, points, wide = self.second.shape
        planes = spectrum.reshape(rows, 3, self.period, -1)
        if points < 3 * self.period:
            planes[:, :2] += planes[:, 2:]
        used = planes.reshape(rows, 3 * self.period, -1)[:, :points]
        halfway = self.second.transpose(0, 2, 1) @ used
        values: Floats = self.first.T @ halfway.reshape(2 * rows, -1)
        return values.reshape(-1, wide // 2, *spectrum.shape[1:])


@dataclass(frozen=True)
class _Transforms:
    """The transforms of one shape: A of an image, B of a kernel, C of a result."""

    image: _Transform
    kernel: _Transform
    result: _Transform


_Planes = Callable[[Array, Array], Array]
"""Makes planes [n, points, size] of the real and imaginary parts of points [points, size]."""


@lru_cache(maxsize=64)
def _transforms(shape: Shape) -> _Transforms:
    whole = math.prod(shape.period)
    shares = 2.0 / whole, 1.0 / whole  # of two conjugates, one is kept
    return _Transforms(
        _transform(shape, shape.image, lambda real, imaginary: np.stack([real, imaginary])),
        _transform(shape, shape.kernel, _of_kernel, sign=1, shift=shape.padding),
        _transform(shape, shape.result, lambda real, imaginary: np.stack([imaginary, real]), shares=shares),
    )


def _of_kernel(real: Array, imaginary: Array) -> Array:
    return np.stack([imaginary - real, -imaginary - real, real])


def _transform(  # noqa: PLR0913 - what is transformed, and how
    shape: Shape,
    size: tuple[int, int],
    planes: _Planes,
    *,
    sign: int = -1,
    shift: tuple[int, int] = (0, 0),
    shares: tuple[float, float] = (1.0, 1.0),
) -> _Transform:
    """Return the transform of real [height, width]; ``shares`` multiply what is a complex number, and a real one."""
    (high, wide), rows = shape.period, shape.rows
    two_real, pairs = _two_real(size[1], wide, sign=sign, shift=shift[1]), _pairs(wide)
    second = np.empty((rows, len(planes(*two_real)), wide, 2 * size[1]))
    second[:] = shares[0] * planes(*_complex(size[1], wide, sign=sign, shift=shift[1]))
    second[0] = shares[0] * planes(*two_real)
    second[0, :, pairs] = 0
    second[0, :2, pairs] = shares[1] * two_real[:, pairs].swapaxes(0, 1)
    first = _real(size[0], high, sign=sign, shift=shift[0])
    return _Transform(first.astype(np.float32), second.reshape(rows, -1, 2 * size[1]).astype(np.float32), period=wide)


def _angles(frequencies: int, size: int, period: int, shift: int) -> Array:
    turns = np.outer(np.arange(frequencies), np.arange(size) - shift) % period
    return turns * (2 * math.pi / period)


def _real(size: int, period: int, *, sign: int, shift: int) -> Array:
    """Return the transform of real numbers: [2 x half the period, rounded up, size].

    Its rows are the real and imaginary parts of the frequencies, but for the first two: frequency 0 and half the
    period, which are real, or zeros for the latter where the period is odd.
    """
    angles = _angles(period // 2 + 1, size, period, shift)
    kept = angles[: (period + 1) // 2]
    rows = np.stack([np.cos(kept), sign * np.sin(kept)], axis=1)
    rows[0, 1] = np.cos(angles[-1]) if period % 2 == 0 else 0
    return rows.reshape(-1, size)


def _complex(size: int, period: int, *, sign: int, shift: int) -> Array:
    """Return the transform of complex numbers: (real, imaginary) of [period, (real, imaginary) x size]."""
    angles = _angles(period, size, period, shift)
    cosines, sines = np.cos(angles), sign * np.sin(angles)
    return np.stack([np.concatenate([cosines, -sines], axis=1), np.concatenate([sines, cosines], axis=1)])


def _two_real(size: int, period: int, *, sign: int, shift: int) -> Array:
    """Return the transforms of two rows of real numbers, in the shape of :func:`_complex`.

    The points of :func:`_pairs` hold two real numbers each; all others are those of one row, then of the other.
    """
    one = _real(size, period, sign=sign, shift=shift)
    both = np.kron(np.eye(2), one)
    if period % 2:  # each has a zero beside its only real number: the other's goes there
        both[1] = both[len(one)]
        both = np.delete(both, [len(one), len(one) + 1], axis=0)
    return np.stack([both[0::2], both[1::2]])


def _pairs(period: int) -> list[int]:
    """Return the points of the first row that hold two real numbers, and no complex one."""
    return [0] if period % 2 else [0, period // 2]


def _flat(values: Tensor) -> Floats:
    """Return [b, c, h, w] as [h, w, b, c]."""
    return np.ascontiguousarray(values.detach().numpy().transpose(2, 3, 0, 1))


def _tensor(values: Floats, *axes: int) -> Tensor:
    return torch.from_numpy(values.transpose(axes))


_as_torch_does: Final = np.errstate(over="ignore", invalid="ignore")
"""What overflows shows in the loss, or in the update."""


class Convolution(torch.autograd.Function):
    """Convolution of x [b, c, h, w] with a kernel [o, c, k, l] and a bias [o] or None: [b, o, h', w']."""

    @staticmethod
    @_as_torch_does
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
        """Return the result, channels last; keep both spectra for the gradients."""
        transforms = _transforms(shape)
        images = transforms.image.of(_flat(x))
        kernels = transforms.kernel.of(np.ascontiguousarray(kernel.detach().numpy().transpose(2, 3, 1, 0)))
        values = transforms.result.transposed(images @ kernels).transpose(2, 0, 1, 3)
        result = x.new_empty(values.shape)
        torch.add(torch.from_numpy(values), 0 if bias is None else bias, out=result)
        ctx.spectra, ctx.shape = (images, kernels), shape
        return result.permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @_as_torch_does
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, kernel and bias, where they are wanted."""
        images, kernels = ctx.spectra
        transforms, flat = _transforms(ctx.shape), _flat(gradient)
        spectrum = transforms.result.of(flat)
        into_x = into_kernel = into_bias = None
        if ctx.needs_input_grad[0]:
            into_x = _tensor(transforms.image.transposed(spectrum @ kernels.transpose(0, 2, 1)), 2, 3, 0, 1)
        if ctx.needs_input_grad[1]:
            into_kernel = _tensor(transforms.kernel.transposed(images.transpose(0, 2, 1) @ spectrum), 3, 2, 0, 1)
        if ctx.needs_input_grad[2]:
            pixels = flat.reshape(-1, flat.shape[-1])
            into_bias = torch.from_numpy(np.ones(len(pixels), dtype=np.float32) @ pixels)
        return into_x, into_kernel, into_bias, None
