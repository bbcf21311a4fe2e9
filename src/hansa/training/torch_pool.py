"""Max pooling with the channels of a pixel together, which takes the gradient of a ReLU before it on its way.

A ReLU lets the gradient of a positive number through, and the largest of some numbers is positive where their ReLU's
largest is. So the ReLU's own gradient need not be formed: that of the pool, which is a quarter of its size where a
pool takes two by two, is masked instead. It is the same to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SOURCE = "_hansa_before_relu"


def channels_last(x: Tensor) -> Tensor:
    """Return x [b, c, h, w] with the channels of a pixel side by side in memory, and strides that say so."""
    if x.shape[1] == 1:  # any such tensor counts as both; oneDNN goes by the strides
        return x.contiguous().as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
    return x.contiguous(memory_format=torch.channels_last)


def remember_source(result: Tensor, x: Tensor) -> None:
    """Note at the result of a ReLU what it was made of."""
    setattr(result, _SOURCE, (x, _version(x), _version(result)))


def _source(result: Tensor) -> Tensor | None:
    """Return what a ReLU made this of, if neither was changed since and nobody waits for the gradient between."""
    x, before, after = getattr(result, _SOURCE, (None, 0, 0))
    watched = bool(result._backward_hooks) or result.retains_grad  # noqa: SLF001 - torch has no public name for it
    if x is None or watched or (_version(x), _version(result)) != (before, after):
        return None
    source: Tensor = x
    return source


def _version(x: Tensor) -> int:
    """Return how often a tensor was changed in place."""
    return x._version  # noqa: SLF001 - torch has no public name for it


def pool(x: Tensor, window: tuple[Any, ...]) -> Tensor:
    """Return the largest of each window of x [b, c, h, w], channels last, as torch.max_pool2d does.

    ``window`` is what follows the input there: kernel, stride, padding, dilation, whether sizes are rounded up.
    """
    source = _source(x)
    result: Tensor = _Pool.apply(x if source is None else source, x.detach(), window, source is not None)  # type: ignore[no-untyped-call]
    return result


class _Pool(torch.autograd.Function):
    """Max pooling of ``values``, which are ``x`` or, if ``bent``, its ReLU; the gradient goes to ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, window: tuple[Any, ...], bent: bool) -> Tensor:  # noqa: ARG004, FBT001 - autograd gives and takes them by place
        """Return the largest of each window."""
        result: Tensor
        result, places = torch.ops.aten.max_pool2d_with_indices(channels_last(values), *window)
        ctx.save_for_backward(places, *([result] if bent else []))
        ctx.window, ctx.shape = window, values.shape
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of x; torch's own is quick where both layouts are the same."""
        places, *results = ctx.saved_tensors
        gradient = channels_last(gradient)
        for result in results:
            gradient = torch.ops.aten.threshold_backward(gradient, result, 0)
        like = torch.empty(ctx.shape, memory_format=torch.channels_last)  # only its size and layout are looked at
        into_x = torch.ops.aten.max_pool2d_with_indices_backward(gradient, like, *ctx.window, places)
        return into_x, None, None, None
