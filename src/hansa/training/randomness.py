"""What a module draws while it trains, found by running it: dropout that masks replace, or other numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from hansa.core.nouns import Signature
from hansa.training.dropout import Draws
from hansa.training.torch_factory import isolated_torch, reseed
from hansa.training.torch_model import Identity, Network

_SPREAD: Final = 0.02
"""How far a trial moves the parameters, so that layers which start at zero take part."""

_TRIALS: Final = ((2, 0), (3, 0), (3, 1))
"""The examples of each trial step, and torch's seed: the axis that grows is that of the examples."""


@dataclass(frozen=True)
class Randomness:
    """What a training step draws: the axis of the examples in each dropout call, and what else.

    ``other`` says in words why the numbers stay torch's own; it is empty where masks replace all of them.
    """

    axes: tuple[int, ...] = ()
    other: str = ""


_FOUND: Final[WeakKeyDictionary[Identity, Randomness]] = WeakKeyDictionary()


def draws_of(network: Network, signature: Signature) -> Draws | None:
    """Return what replaces a network's dropout calls; None where it has none, or draws from torch's generator."""
    found = randomness_of(network, signature)
    return Draws(found.axes) if found.axes and not found.other else None


def randomness_of(network: Network, signature: Signature) -> Randomness:
    """Return what a network draws in training, from two steps on random examples; found once."""
    if network.identity not in _FOUND:
        _FOUND[network.identity] = _randomness(network, signature)
    return _FOUND[network.identity]


def _randomness(network: Network, signature: Signature) -> Randomness:
    draws = Draws()
    shapes: list[list[tuple[int, ...]]] = []
    gradients: list[Tensor] = []
    with trial(network) as values:
        for count, seed in _TRIALS:
            network.load(values)
            reseed(seed)
            before = _generators(network)
            try:
                gradients.append(_gradient(network, draws, trial_examples(network, signature, count)[0]))
            except Exception as error:  # noqa: BLE001 - training raises it in its own words, if the plan's data meet it
                return Randomness(other=f"a trial step on {count} random examples raised {named(error)}")
            if _generators(network) != before:
                return Randomness(other="it draws random numbers otherwise than by dropout")
            shapes.append(list(draws.shapes))
    if not torch.allclose(gradients[-2], gradients[-1], rtol=0, atol=0, equal_nan=True):
        return Randomness(other="it draws again while gradients are computed (checkpointing)")
    if [len(shape) for shape in shapes[0]] != [len(shape) for shape in shapes[-1]]:
        return Randomness(other="its dropout calls are not the same in every step")
    return Randomness(tuple(starmap(_grown, zip(shapes[0], shapes[-1], strict=True))))


def _gradient(network: Network, draws: Draws, x: Tensor) -> Tensor:
    """Return the gradient of the sum of a training step's squared outputs."""
    network.collect_gradients()
    draws.set(0, 1)
    with draws:
        outputs = network(x)
    outputs.square().sum().backward()  # type: ignore[no-untyped-call]  # torch has no types there
    return torch.cat([group.gradients.to("cpu", torch.float32) for group in network.groups])


def _grown(few: Sequence[int], more: Sequence[int]) -> int:
    """Return the first axis that grew with the number of examples; 0 if none did, as all then share a mask."""
    return next((axis for axis, (a, b) in enumerate(zip(few, more, strict=True)) if a != b), 0)


def _generators(network: Network) -> tuple[Any, ...]:
    """Return the states of the generators that a module may draw from."""
    _, device = network.input_kind
    states = [torch.default_generator.get_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    numbers: Any = np.random.get_state()  # noqa: NPY002 - what a module may draw from, not what we do
    return (*(state.numpy().tobytes() for state in states), random.getstate(), numbers[1].tobytes(), numbers[2])


@contextmanager
def trial(network: Network) -> Iterator[Tensor]:
    """Run a network in training mode; it holds what it held before afterwards.

    Yields parameters to try, float32 [size]: those that are loaded, moved a little.
    """
    held = torch.empty(network.branch.size)
    network.read(held)
    moves = np.random.default_rng(0).standard_normal(len(held), dtype=np.float32)
    moved = torch.nan_to_num(held, nan=0.0, posinf=0.0, neginf=0.0) + _SPREAD * torch.from_numpy(moves)
    with isolated_torch(0), torch.enable_grad():
        network.module.train()
        try:
            yield moved
        finally:
            network.load(held)
            network.collect_gradients()


def trial_examples(network: Network, signature: Signature, count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random examples x [count, ...] and labels y [count] as the data have them."""
    numbers = np.random.default_rng(seed)
    dtype, device = network.input_kind
    if signature.integer_inputs:
        x = torch.from_numpy(numbers.integers(0, max(signature.vocabulary, 1), (count, *signature.shape)))
    else:
        x = torch.from_numpy(numbers.standard_normal((count, *signature.shape))).to(dtype)
    if signature.classes:
        y = torch.from_numpy(numbers.integers(0, signature.classes, count))
    else:
        y = torch.from_numpy(numbers.standard_normal(count)).to(torch.float32)
    return x.to(device), y.to(device)


def named(error: BaseException) -> str:
    """Return an error's kind and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
