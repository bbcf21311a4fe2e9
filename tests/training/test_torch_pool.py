"""Pools, channels last: they and their gradients are torch's own, with a ReLU before them or without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hansa.training.kernels import Kernels
from hansa.training.torch_kernels import Layers

LAST = Kernels(channels_last=True)

WINDOWS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (2, 3), "stride": (1, 2), "ceil_mode": True},
    {"kernel_size": 2, "dilation": 2},
]


def pulled(forward: Callable[[Tensor], Tensor], kernels: Kernels | None) -> tuple[Tensor, Tensor]:
    """Return the result for images with many equal numbers, and the gradient of a fixed sum of it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, (2, 3, 9, 8), generator=generator).float().requires_grad_()
    if kernels is None:
        result = forward(x * 1)
    else:
        with Layers(kernels):
            result = forward(x * 1)
    pull = torch.randn(result.shape, generator=generator)
    return result, torch.autograd.grad(result, x, pull)[0]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("before", [nn.Identity(), nn.ReLU(), nn.ReLU(inplace=True), torch.relu, Tensor.relu])
def test_a_pool_is_that_of_torch_to_the_last_bit(window: dict[str, Any], before: Callable[[Tensor], Tensor]) -> None:
    def forward(x: Tensor) -> Tensor:
        return functional.max_pool2d(before(x), **window)

    for found, wanted in zip(pulled(forward, LAST), pulled(forward, None), strict=True):
        assert torch.equal(found, wanted)


def test_a_relu_that_is_watched_or_of_what_was_changed_keeps_its_own_gradient() -> None:
    seen: list[Tensor] = []

    def changed_before(x: Tensor) -> Tensor:
        y = x + 1
        bent = torch.relu(y)
        y *= 3
        return functional.max_pool2d(bent, 2)

    def watched(x: Tensor) -> Tensor:
        bent = torch.relu(x)
        bent.register_hook(seen.append)
        return functional.max_pool2d(bent, 2)

    def used_twice(x: Tensor) -> Tensor:
        bent = torch.relu(x)
        return functional.max_pool2d(bent, 1) * 2 + bent

    for forward in (changed_before, watched, used_twice):
        for found, wanted in zip(pulled(forward, LAST), pulled(forward, None), strict=True):
            assert torch.equal(found, wanted)
    assert len(seen) == 2


def test_the_pools_of_modules_and_functions_are_swapped_and_others_are_left_alone() -> None:
    x = torch.randn(2, 3, 8, 8)
    for pool in (nn.MaxPool2d(2), lambda x: functional.max_pool2d(x, 2), lambda x: torch.max_pool2d(x, 2)):
        with Layers(LAST) as mode:
            assert pool(x).is_contiguous(memory_format=torch.channels_last)
        assert mode.swapped == {"channels_last"}
    with Layers(LAST) as mode:
        functional.max_pool2d(x[0], 2)
        functional.max_pool2d(x, 2, return_indices=True)
    assert not mode.swapped
