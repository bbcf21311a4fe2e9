"""The kernels of :mod:`hansa.training.kernels`, put under any module while it runs forward, and their measuring."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hansa.core.nouns import Signature
from hansa.training import torch_fourier
from hansa.training.kernels import PLAIN, Kernels
from hansa.training.randomness import trial_examples
from hansa.training.torch_factory import isolated_torch
from hansa.training.torch_model import Network

_DENSE_ENTRIES: Final = 2**14
"""A dense layer with fewer weights is quicker in torch's own product, which is one call."""

_TOLERANCE: Final = 1e-4
"""The largest relative difference (L2) of a step's result from plain torch's."""

_BATCHES: Final = 3
"""How many batches a step may be compared on."""

_REPEATS: Final = 2
"""How often each of two choices is timed; the fastest counts."""

_MARGIN: Final = 0.98
"""Another choice must take less than this share of the time."""

_MMAP_THRESHOLD: Final = -3
_TRIM_THRESHOLD: Final = -1


@cache
def keep_memory() -> None:
    """Let this process keep freed memory for the next step, where the C library is glibc.

    Otherwise it returns the larger temporaries to the system and gets every page anew, zeroed, at each step.
    """
    setting = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if setting is not None:
        setting(_MMAP_THRESHOLD, 2**25)
        setting(_TRIM_THRESHOLD, 2**30)


@dataclass(frozen=True)
class Products:
    """Gradients of weights [o, i] that are still products: of gradients [b, o], transposed, with inputs [b, i]."""

    factors: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def descend(self, rate: float) -> None:
        """Apply w <- w - rate g^T x to each weight."""
        with torch.no_grad():
            for weight, gradient, x in self.factors:
                weight.addmm_(gradient.t(), x, alpha=-rate)
        self.factors.clear()


class _Dense(torch.autograd.Function):
    """x [b, i] times weight [o, i] plus bias by oneDNN. With ``products``, the weight's gradient is left there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, products: Products | None) -> Tensor:
        """Return [b, o]."""
        ctx.save_for_backward(x, weight)
        ctx.products = products
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias, where they are wanted."""
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        into_x = into_weight = into_bias = None
        if ctx.needs_input_grad[0]:
            into_x = _product(gradient, weight.t(), None)
        if ctx.needs_input_grad[1] and ctx.products is not None:
            ctx.products.factors.append((weight.detach(), gradient, x))
        elif ctx.needs_input_grad[1]:
            into_weight = _product(gradient.t(), x.t(), None)
        if ctx.needs_input_grad[2]:
            into_bias = gradient.sum(dim=0)
        return into_x, into_weight, into_bias, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x [b, i] times weight [o, i], transposed, plus bias [o], by oneDNN: [b, o]."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001 - torch has no public name for it
    return result


class Layers(TorchFunctionMode):
    """Inside it, convolutions, pools and dense layers are computed by ``kernels``.

    ``products`` takes the gradients of dense layers, where every step is w <- w - rate g. ``swapped`` names the
    fields of the kernels that made a difference.
    """

    def __init__(self, kernels: Kernels, products: Products | None = None) -> None:
        super().__init__()
        self.kernels, self.products = kernels, products
        self.swapped: set[str] = set()
        swaps: dict[Any, Callable[..., Tensor | None]] = {}
        if kernels.channels_last or kernels.fourier:
            swaps[torch.conv2d] = self._convolution
        if kernels.channels_last:
            swaps[torch.max_pool2d] = self._pool
            swaps[functional._max_pool2d] = self._pool  # type: ignore[attr-defined]  # noqa: SLF001 - what functional.max_pool2d calls
        if kernels.dense == "onednn":
            swaps[functional.linear] = self._dense
        self._swaps = swaps

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what the kernels make of a call of torch, or what torch makes of it."""
        swap = self._swaps.get(func)
        if swap is not None and args and _ordinary(args[0]) and (kwargs is None or "input" not in kwargs):
            result = swap(func, *args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))

    def _convolution(  # noqa: PLR0913, PLR0917 - the parameters of torch.conv2d
        self,
        plain: Callable[..., Tensor],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        if x.dim() != 4:
            return None
        simple = self.kernels.fourier and groups == 1 and _pair(stride) == _pair(dilation) == (1, 1)
        shape = _shape(x, weight, padding) if simple else None
        if shape is not None and torch_fourier.pays(shape, len(x), x.shape[1], len(weight)):
            self.swapped.add("fourier")
            result: Tensor = torch_fourier.Convolution.apply(x, weight, bias, shape)  # type: ignore[no-untyped-call]
            return result
        if not self.kernels.channels_last:
            return None
        self.swapped.add("channels_last")
        return plain(_channels_last(x), weight, bias, stride, padding, dilation, groups)

    def _pool(self, plain: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        if x.dim() != 4:
            return None
        self.swapped.add("channels_last")
        result = plain(_channels_last(x), *args, **kwargs)
        if result.requires_grad:  # torch's backward goes by the gradient's strides, and copies twice where they differ
            result.register_hook(_channels_last)  # type: ignore[no-untyped-call]  # torch has no types there
        return result

    def _dense(self, _: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        if weight.dim() != 2 or weight.numel() < _DENSE_ENTRIES or x.numel() == 0:
            return None
        self.swapped.add("dense")
        hooked = weight._backward_hooks or weight._post_accumulate_grad_hooks or not weight.is_leaf  # noqa: SLF001 - torch has no public name for them
        rows = x.reshape(-1, x.shape[-1])
        result: Tensor = _Dense.apply(rows, weight, bias, None if hooked else self.products)  # type: ignore[no-untyped-call]
        return result.view(*x.shape[:-1], len(weight))


def _ordinary(x: Any) -> bool:
    """Return whether x is a float32 tensor on the CPU, and no cast is under way."""
    ordinary = isinstance(x, Tensor) and x.dtype == torch.float32 and x.device.type == "cpu"
    return ordinary and not torch.is_autocast_enabled("cpu")


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def _shape(x: Tensor, weight: Tensor, padding: Any) -> torch_fourier.Shape | None:
    """Return the sizes of a convolution, or None where its padding is not the same on both sides."""
    tall, wide = weight.shape[2:]
    if padding == "valid":
        padding = 0
    if padding == "same":
        if tall % 2 == 0 or wide % 2 == 0:
            return None
        padding = (tall // 2, wide // 2)
    high, across = _pair(padding)
    return torch_fourier.Shape((x.shape[2], x.shape[3]), (tall, wide), (high, across))


def _channels_last(x: Tensor) -> Tensor:
    """Return x [b, c, h, w] with the channels of a pixel side by side in memory, and strides that say so."""
    if x.shape[1] == 1:  # any such tensor counts as both; oneDNN goes by the strides
        return x.contiguous().as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
    return x.contiguous(memory_format=torch.channels_last)


def layers(kernels: Kernels, products: Products | None = None) -> AbstractContextManager[Any]:
    """Return the context in which a module runs forward with these kernels."""
    return nullcontext() if kernels.plain else Layers(kernels, products)


_CHANGES: Final[Mapping[str, Callable[[Kernels], Kernels]]] = {
    "channels_last": lambda kernels: replace(kernels, channels_last=True),
    "fourier": lambda kernels: replace(kernels, fourier=True),
    "dense": lambda kernels: replace(kernels, dense="onednn"),
}
_UNDONE: Final[tuple[Callable[[Kernels], Kernels], ...]] = (
    lambda kernels: replace(kernels, channels_last=False),
    lambda kernels: replace(kernels, fourier=False),
    lambda kernels: replace(kernels, dense="native"),
)


def fastest(network: Network, signature: Signature, batch_size: int) -> Kernels:
    """Return the fastest kernels for this network; it trains a little on random numbers.

    All that suit it are taken, but those without which its steps take clearly less time.
    """
    best = PLAIN
    start = torch.from_numpy(network.first_values())
    keep_memory()
    with isolated_torch(0), torch.enable_grad():
        network.module.train()
        trial = _Trial(
            network, start, [trial_examples(network, signature, batch_size, seed=seed)[0] for seed in range(_BATCHES)]
        )
        for kind, change in _CHANGES.items():
            choice = change(best)
            best = choice if trial.fits(choice, kind) else best
        for undo in _UNDONE:
            without = undo(best)
            if without != best and trial.quicker(without, best):
                best = without
    return best


@dataclass
class _Trial:
    """Plain descents from one start; the loss weighs the outputs by fixed numbers."""

    network: Network
    start: Tensor
    batches: list[Tensor]
    references: dict[int, Tensor] = field(default_factory=dict)

    def fits(self, kernels: Kernels, kind: str) -> bool:
        """Return whether a field of the kernels makes a difference here, and the step is torch's but for rounding.

        A unit that rounding turns on or off changes a step by more. So one batch that agrees is enough:
        with a kernel that is wrong, none does.
        """
        for batch in range(len(self.batches)):
            try:
                change, swapped = self._change(kernels, batch)
            except Exception:  # noqa: BLE001 - a module that a kernel does not suit keeps torch's own
                return False
            if kind not in swapped:
                return False
            reference = self._reference(batch)
            if torch.linalg.vector_norm(change - reference) <= _TOLERANCE * torch.linalg.vector_norm(reference):
                return True
        return False

    def quicker(self, one: Kernels, other: Kernels) -> bool:
        """Return whether steps with ``one`` take clearly less time than with ``other``."""
        times = [(self._time(one), self._time(other)) for _ in range(_REPEATS)]
        return min(first for first, _ in times) < _MARGIN * min(second for _, second in times)

    def _reference(self, batch: int) -> Tensor:
        if batch not in self.references:
            self.references[batch], _ = self._change(PLAIN, batch)
        return self.references[batch]

    def _time(self, kernels: Kernels) -> float:
        """Return the seconds of processor time of one step: other processes may be busy."""
        begun = time.thread_time()
        self._descend(kernels, self.batches[0])
        return time.thread_time() - begun

    def _change(self, kernels: Kernels, batch: int) -> tuple[Tensor, set[str]]:
        """Return the change of the parameters [size] by one step, and the fields that made a difference."""
        self.network.load(self.start)
        torch.default_generator.manual_seed(0)
        swapped = self._descend(kernels, self.batches[batch])
        values = torch.empty_like(self.start)
        self.network.read(values)
        return values - self.start, swapped

    def _descend(self, kernels: Kernels, x: Tensor) -> set[str]:
        products = Products()
        context = layers(kernels, products)
        self.network.release_gradients()
        with context:
            outputs = self.network(x)
        weights = torch.linspace(-1, 1, outputs.numel()).view_as(outputs)
        (outputs * weights).mean().backward()  # type: ignore[no-untyped-call]  # torch has no types there
        self.network.descend(1.0)
        products.descend(1.0)
        return context.swapped if isinstance(context, Layers) else set()
