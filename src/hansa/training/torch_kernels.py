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
from hansa.training import torch_dense, torch_fourier, torch_pool
from hansa.training.kernels import PLAIN, Kernels
from hansa.training.randomness import trial_examples
from hansa.training.torch_dense import Products
from hansa.training.torch_factory import isolated_torch
from hansa.training.torch_model import Network
from hansa.training.torch_pool import channels_last

_DENSE_ENTRIES: Final = 2**14
"""A dense layer with fewer weights is quicker in torch's own product, which is one call."""

_TOLERANCE: Final = 1e-4
"""The largest relative difference (L2) of a step's result from plain torch's."""

_BATCHES: Final = 3
"""How many batches a step may be compared on."""

_STEPS: Final = 2
"""How many steps are taken to compare or to time."""

_REPEATS: Final = 2
"""How often each of two choices is timed; the fastest counts."""

_MARGIN: Final = 0.98
"""Another choice must take less than this share of the time."""

_MMAP_THRESHOLD: Final = -3
_TRIM_THRESHOLD: Final = -1


@cache
def keep_memory() -> None:
    """Let this process keep freed memory for the next step, where the C library is glibc.

    Otherwise it returns the larger temporaries to the system and gets every page anew, zeroed, at each step. But the
    largest arrays, sums of a large model in double precision for one, are few a client and would only leave gaps.
    """
    setting = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if setting is not None:
        setting(_MMAP_THRESHOLD, 2**23)
        setting(_TRIM_THRESHOLD, 2**30)


class Layers(TorchFunctionMode):
    """Inside it, convolutions, pools and dense layers are computed by ``kernels``.

    ``products`` takes the gradients of dense layers, where every step is w <- w - rate g. ``swapped`` names the
    fields of the kernels that made a difference.
    """

    def __init__(self, kernels: Kernels, products: Products | None = None) -> None:
        super().__init__()
        self.kernels, self.products = kernels, products
        self.swapped: set[str] = set()
        swaps: dict[Any, Callable[..., Tensor | None]] = {}  # not bound to self: a cycle would hold the products
        if kernels.channels_last or kernels.fourier:
            swaps[torch.conv2d] = Layers._convolution
        if kernels.channels_last:
            swaps |= dict.fromkeys((torch.max_pool2d, functional.max_pool2d), Layers._pool)
            swaps |= dict.fromkeys((torch.relu, Tensor.relu, functional.relu), Layers._relu)
        if kernels.dense == "onednn":
            swaps[functional.linear] = Layers._dense
        self._swaps = swaps

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what the kernels make of a call of torch, or what torch makes of it."""
        swap = self._swaps.get(func)
        if swap is not None and args and _ordinary(args[0]) and (kwargs is None or "input" not in kwargs):
            result = swap(self, func, *args, **(kwargs or {}))
            if result is not None:
                return result
        if self.products is not None and self.products.debts:
            self.products.reveal((*args, *(kwargs or {}).values()))
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
        return plain(channels_last(x), weight, bias, stride, padding, dilation, groups)

    def _pool(  # noqa: PLR0913, PLR0917 - the parameters of functional.max_pool2d
        self,
        _: Callable[..., Tensor],
        x: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,  # noqa: FBT001, FBT002
        return_indices: bool = False,  # noqa: FBT001, FBT002
    ) -> Tensor | None:
        if x.dim() != 4 or return_indices:
            return None
        self.swapped.add("channels_last")
        return torch_pool.pool(x, (kernel_size, stride or [], padding, dilation, ceil_mode))

    def _relu(self, plain: Callable[..., Tensor], x: Tensor, inplace: bool = False) -> Tensor | None:  # noqa: FBT001, FBT002
        if x.dim() != 4 or inplace or not x.requires_grad:
            return None
        result = plain(x)
        torch_pool.remember_source(result, x)
        return result

    def _dense(self, _: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        if weight.dim() != 2 or weight.numel() < _DENSE_ENTRIES or x.numel() == 0:
            return None
        self.swapped.add("dense")
        rows = x.reshape(-1, x.shape[-1])
        result: Tensor = torch_dense.Dense.apply(rows, weight, bias, self._debt(x, weight))  # type: ignore[no-untyped-call]
        return result.view(*x.shape[:-1], len(weight))

    def _debt(self, x: Tensor, weight: Tensor) -> torch_dense.Debt | None:
        """Return where the gradient of a weight that is multiplied by x goes, if it need not be formed."""
        if self.products is None:
            return None
        hooked = _hooked(weight)
        self.products.reveal([x, weight] if hooked else [x])
        return None if hooked else self.products.of(weight)


def _hooked(weight: Tensor) -> bool:
    """Return whether somebody waits for a weight's gradient, or it was computed of something else."""
    return bool(weight._backward_hooks or weight._post_accumulate_grad_hooks or not weight.is_leaf)  # noqa: SLF001 - torch has no public name for them


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
        """Return the seconds of processor time of some steps: other processes may be busy."""
        begun = time.thread_time()
        self._descent(kernels, self.batches[0])
        return time.thread_time() - begun

    def _change(self, kernels: Kernels, batch: int) -> tuple[Tensor, set[str]]:
        """Return the change of the parameters [size] by some steps, and the fields that made a difference."""
        self.network.load(self.start)
        torch.default_generator.manual_seed(0)
        return self._descent(kernels, self.batches[batch])

    def _descent(self, kernels: Kernels, x: Tensor) -> tuple[Tensor, set[str]]:
        products, change = Products(self.network.tied), torch.empty_like(self.start)
        swapped = self._descend(kernels, x, products)
        self.network.read_change(self.start, change, products.moved)
        return change, swapped

    def _descend(self, kernels: Kernels, x: Tensor, products: Products) -> set[str]:
        """Take some steps, as what one puts off shows in the next; return the fields that made a difference."""
        context = layers(kernels, products)
        self.network.release_gradients()
        for _ in range(_STEPS):
            with context:
                outputs = self.network(x)
            weights = torch.linspace(-1, 1, outputs.numel()).view_as(outputs)
            (outputs * weights).mean().backward()  # type: ignore[no-untyped-call]  # torch has no types there
            self.network.descend(1.0)
            products.descend(1.0)
        return context.swapped if isinstance(context, Layers) else set()
