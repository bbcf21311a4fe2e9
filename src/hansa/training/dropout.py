"""Dropout of torch modules by the published masks of :mod:`hansa.training.dropout_masks`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hansa.training.dropout_masks import masks
from hansa.training.recurrent import is_plain, recur

_ALPHA: Final = 1.7580993408473766
"""What SELU approaches far below zero, without its sign: alpha dropout drops to it."""


@torch.library.custom_op("hansa::dropout_masks", mutates_args=())
def batched_masks(seed: Tensor, step: int, call: int, count: int, p: float) -> Tensor:
    """Return the :func:`masks` of one client's ``seed``, an int64 scalar on the CPU: float32 [count].

    Under vmap, with a batched seed, the masks of all clients are made at once.
    """
    return torch.from_numpy(masks(seed.reshape(1).numpy(), step, call, count, p)[0])


def _vmapped_masks(_info: Any, _in_dims: Any, seed: Tensor, *rest: Any) -> tuple[Tensor, int]:
    return torch.from_numpy(masks(seed.numpy(), *rest)), 0


batched_masks.register_vmap(_vmapped_masks)


class Draws(TorchFunctionMode):
    """Within its block, what a module drops follows from the seed and step that were set last.

    ``axes`` tells, for each call of a step, which axis holds the examples. With ``batched``, recurrent layers are
    replaced even where they drop nothing: vmap has no rule for torch's own.
    """

    def __init__(self, axes: Sequence[int] = (), *, batched: bool = False) -> None:
        super().__init__()
        self.axes = axes
        self.batched = batched
        self.shapes: list[tuple[int, ...]] = []
        """The shape of the masks of each call since the step was set."""
        self.set(0, 1)
        self._attention = _with_globals(
            functional.multi_head_attention_forward,
            dropout=lambda *args, **kwargs: _dropout(self, functional.dropout, *args, **kwargs),
            scaled_dot_product_attention=lambda *args, **kwargs: _attention(
                self, functional.scaled_dot_product_attention, *args, **kwargs
            ),
            has_torch_function=lambda *_: False,
        )

    def set(self, seed: int | Tensor, step: int) -> None:
        """Take the numbers of a client (its seed; under vmap an int64 scalar) in a local step (from 1)."""
        self.seed = seed
        self.step = step
        self.shapes.clear()

    def masks(self, x: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
        """Return the next call's masks in some shape, of x's device and dtype: 0 or 1 / (1 - p)."""
        call = len(self.shapes)
        self.shapes.append(shape)
        axis = self.axes[call] if call < len(self.axes) else 0
        count, rows = math.prod(shape), (shape[axis], *shape[:axis], *shape[axis + 1 :])
        if isinstance(self.seed, Tensor):
            drawn: Tensor = batched_masks(self.seed, self.step, call, count, p)
        else:
            drawn = torch.from_numpy(masks(np.array([self.seed]), self.step, call, count, p)[0])
        drawn = drawn.view(rows).movedim(0, axis) if axis else drawn.view(shape)
        return drawn.to(x.device, x.dtype)

    def __torch_function__(
        self, func: Any, types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call what replaces a function, where something does."""
        if func is functional.multi_head_attention_forward:
            return self._attention(*args, **(kwargs or {}))
        replacement = _REPLACED.get(func)
        if replacement is None:
            return func(*args, **(kwargs or {}))
        return replacement(self, func, *args, **(kwargs or {}))


def _with_globals(function: Any, **names: Any) -> Callable[..., Any]:
    """Return a copy of a function that sees other functions under some names.

    A mode is off while its handler runs, so that it cannot see what torch's attention calls inside; and a call of
    torch's attention with the mode on would come back to the handler at once.
    """
    copy = FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _drops(p: float, training: bool) -> bool:  # noqa: FBT001 - torch's arguments
    """Return whether a call drops anything. A p out of range is left to torch, which refuses it."""
    return training and 0 < p <= 1


def _dropout(  # noqa: PLR0913, PLR0917 - torch's arguments
    draws: Draws,
    func: Any,
    input: Tensor,  # noqa: A002
    p: float = 0.5,
    training: bool = True,  # noqa: FBT001, FBT002
    inplace: bool = False,  # noqa: FBT001, FBT002
) -> Any:
    """Replace dropout: each element for itself."""
    if not _drops(p, training):
        return func(input, p, training, inplace)
    return _apply(input, draws.masks(input, tuple(input.shape), p), inplace=inplace)


def _dropout_channels(  # noqa: PLR0913, PLR0917 - torch's arguments
    draws: Draws,
    func: Any,
    input: Tensor,  # noqa: A002
    p: float = 0.5,
    training: bool = True,  # noqa: FBT001, FBT002
    inplace: bool = False,  # noqa: FBT001, FBT002
) -> Any:
    """Replace dropout1d, 2d and 3d: whole channels of [b, channels, ...] (or of one example [channels, ...])."""
    if not _drops(p, training):
        return func(input, p, training, inplace)
    return _apply(input, draws.masks(input, _channels(func, input), p), inplace=inplace)


def _channels(func: Any, input: Tensor) -> tuple[int, ...]:  # noqa: A002
    """Return the shape of a mask of whole channels; a dropout1d or 3d of one axis less takes a single example."""
    axes = {functional.dropout1d: 3, functional.dropout3d: 5}
    lead = 1 if input.ndim < axes.get(func, 0) else 2
    return (*input.shape[:lead], *([1] * (input.ndim - lead)))


def _apply(x: Tensor, mask: Tensor, *, inplace: bool) -> Tensor:
    return x.mul_(mask) if inplace else x * mask


def _alpha_dropout(  # noqa: PLR0913, PLR0917 - torch's arguments
    draws: Draws,
    func: Any,
    input: Tensor,  # noqa: A002
    p: float = 0.5,
    training: bool = False,  # noqa: FBT001, FBT002
    inplace: bool = False,  # noqa: FBT001, FBT002
) -> Any:
    """Replace alpha_dropout and feature_alpha_dropout: to -alpha, then scaled to keep mean and variance.

    Source: Klambauer, Unterthiner, Mayr, Hochreiter 2017, "Self-normalizing neural networks",
    https://arxiv.org/abs/1706.02515, section "New dropout technique".
    """
    if not _drops(p, training):
        return func(input, p, training, inplace)
    shape = _channels(func, input) if func is functional.feature_alpha_dropout else tuple(input.shape)
    kept = (draws.masks(input, shape, p) > 0).to(input.dtype)
    if p == 1:
        return _apply(input, kept, inplace=inplace)
    scale = 1 / math.sqrt((_ALPHA**2 * p + 1) * (1 - p))
    shift = (kept - 1) * (_ALPHA * scale) + _ALPHA * scale * p
    return _apply(input, kept * scale, inplace=inplace).add_(shift)


def _attention(  # noqa: PLR0913, PLR0917 - torch's arguments
    draws: Draws,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Replace scaled_dot_product_attention where it drops weights: its documented arithmetic with our mask."""
    more: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa} if enable_gqa else {"scale": scale}
    if not _drops(dropout_p, training=True):
        return func(query, key, value, attn_mask, dropout_p, is_causal, **more)
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    if attn_mask is None:
        weights = scores.softmax(dim=-1)
    else:
        masked = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        weights = torch._safe_softmax(masked, -1)  # noqa: SLF001 - as torch's own: a row with nothing to see is 0
    return (weights * draws.masks(weights, tuple(weights.shape), dropout_p)) @ value


def _plain_dropout(draws: Draws, func: Any, input: Tensor, p: float, train: bool) -> Any:  # noqa: A002, FBT001 - torch's arguments
    """Replace torch.dropout, which has no default values and no ``inplace``."""
    if not _drops(p, train):
        return func(input, p, train)
    return _apply(input, draws.masks(input, tuple(input.shape), p), inplace=False)


def _recurrent(draws: Draws, func: Any, *args: Any) -> Any:
    """Replace torch.lstm, gru, rnn_tanh and rnn_relu where they drop something, or where clients are batched."""
    if not is_plain(args):
        return func(*args)
    p, training = args[5], args[6]
    drops = _drops(p, training) and args[4] > 1
    if not (drops or draws.batched):
        return func(*args)
    drop = (lambda x: x * draws.masks(x, tuple(x.shape), p)) if drops else (lambda x: x)
    return recur(func.__name__, args, drop)


_REPLACED: Final[Mapping[Any, Callable[..., Any]]] = {
    functional.dropout: _dropout,
    torch.dropout: _plain_dropout,
    functional.dropout1d: _dropout_channels,
    functional.dropout2d: _dropout_channels,
    functional.dropout3d: _dropout_channels,
    functional.alpha_dropout: _alpha_dropout,
    functional.feature_alpha_dropout: _alpha_dropout,
    functional.scaled_dot_product_attention: _attention,
    torch.lstm: _recurrent,
    torch.gru: _recurrent,
    torch.rnn_tanh: _recurrent,
    torch.rnn_relu: _recurrent,
}
