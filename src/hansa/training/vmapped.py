"""Local training of a torch module for many clients at once: ``torch.func.vmap`` over stacked parameters.

Only the forward pass runs under vmap. Its results are plain tensors with a client axis, so that the loss and the
gradients are those of torch's own autograd: the clients share nothing, and the gradient of the sum of their losses
holds each client's own. (vmap of grad gives the same numbers and took 1.5 times as long in the networks tried.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from hansa.core.layout import Array, Floats, Int64s
from hansa.core.nouns import ClientContext, ClientStates, Signature
from hansa.training.dropout import Draws
from hansa.training.local import LocalBatches, LocalWork, Outcome, bend, dropout_seeds, hook_states, local_batches
from hansa.training.randomness import draws_of
from hansa.training.torch_factory import isolated_torch, outputs_as, user_code
from hansa.training.torch_loop import buffers_before
from hansa.training.torch_losses import EACH, Loss
from hansa.training.torch_model import Network

_LISTS: Final = ("_flat_weights", "_flat_weight_refs")
"""Where recurrent layers note their parameters once more; they renew the lists when they find others."""


class Step(NamedTuple):
    """One local step of n clients: examples [n, b, ...], labels [n, b], shares of the mean [n, b], seeds and number.

    A share is 1 / (real examples of the client's batch), and 0 where an example is padding.
    """

    x: Tensor
    y: Tensor
    shares: Tensor
    seeds: Tensor
    number: int


@dataclass(frozen=True)
class _Place:
    """Where a module holds one tensor: a dictionary, its key, and the index of what is put there."""

    container: Any
    key: str
    index: int
    held: Any
    trained: bool


class Stacked:
    """A network's module, run for many clients at once. It borrows the module: one thread at a time.

    Built once for a network and kept with it. Everything that changes from client to client is an argument; the
    rest (frozen parameters, buffers with no value of a client's own) is the module's.
    """

    def __init__(self, network: Network, draws: Draws | None) -> None:
        self.module, self.name, self.outputs = network.module, network.name, network.outputs
        self.draws = draws
        self.spans, self.places = _parameters(network)
        self.buffer_shapes = [tuple(buffer.initial.shape) for buffer in network.kept_buffers]
        self.buffer_places = [
            _Place(owner._buffers, key, index, None, trained=False)  # noqa: SLF001 - where a module keeps them
            for index, buffer in enumerate(network.kept_buffers)
            for owner, key in buffer.owners
        ]
        self.lists = [
            (vars(module), key, vars(module)[key])
            for module in self.module.modules()
            if isinstance(module, nn.RNNBase)
            for key in _LISTS
            if key in vars(module)
        ]
        self.seeded = bool(draws and draws.axes)
        self.vmapped = torch.vmap(self._forward, in_dims=(0, 0, 0, 0 if self.seeded else None))

    def leaves(self, values: Tensor) -> list[Tensor]:
        """Return the parameters as views [n, *shape] of values [n, size], each with a gradient of its own."""
        return [view.detach().requires_grad_() for view in self.views(values)]

    def views(self, values: Tensor) -> list[Tensor]:
        """Return the parameters' places in values [n, size]: [n, *shape] each."""
        return [values[:, part].view(len(values), *shape) for part, shape in self.spans]

    def buffers(self, values: Tensor) -> list[Tensor]:
        """Return the floating, persistent buffers as views [n, *shape] of values [n, size of them]."""
        views, start = [], 0
        for shape in self.buffer_shapes:
            size = int(np.prod(shape))
            views.append(values[:, start : start + size].view(len(values), *shape))
            start += size
        return views

    def step(
        self, leaves: Sequence[Tensor], buffers: Sequence[Tensor], each: Loss, step: Step
    ) -> tuple[Sequence[Tensor], Tensor]:
        """Return the gradients of every client's mean loss, like the leaves, and that loss [n]."""
        if self.draws is not None:
            self.draws.set(0, step.number)
        outputs = self.vmapped(leaves, buffers, step.x, step.seeds)
        losses = each(outputs.flatten(0, 1), step.y.reshape(-1)).view(step.shares.shape) * step.shares
        each_client = losses.sum(dim=1)
        return torch.autograd.grad(each_client.sum(), leaves, materialize_grads=True), each_client.detach()

    def _forward(self, leaves: Sequence[Tensor], buffers: Sequence[Tensor], x: Tensor, seed: Tensor) -> Tensor:
        """Return one client's outputs [b, outputs]; what it puts into the module, :func:`borrowed` takes out."""
        for place in self.places:
            leaf = leaves[place.index]
            place.container[place.key] = leaf if place.trained else leaf.detach()
        for place in self.buffer_places:
            place.container[place.key] = buffers[place.index]
        outputs: Tensor
        if self.draws is None:
            outputs = self.module(x)
        else:
            if self.seeded:
                self.draws.seed = seed
            with self.draws:
                outputs = self.module(x)
        return outputs_as(outputs, (len(x), self.outputs), self.name)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Give the module its own tensors back on leaving; vmap's slow paths are no warning to a user.

        torch itself is told not to warn: Python's filters belong to all threads at once.
        """
        buffers = [place.container[place.key] for place in self.buffer_places]
        _warn_of_slow_paths(wanted=False)
        try:
            yield
        finally:
            _warn_of_slow_paths(wanted=True)
            for place in self.places:
                place.container[place.key] = place.held
            for place, value in zip(self.buffer_places, buffers, strict=True):
                place.container[place.key] = value
            for attributes, key, held in self.lists:
                attributes[key] = held


def _warn_of_slow_paths(*, wanted: bool) -> None:
    torch._C._functorch._set_vmap_fallback_warning_enabled(wanted)  # type: ignore[attr-defined]  # noqa: SLF001 - it has no other


def _parameters(network: Network) -> tuple[list[tuple[slice, tuple[int, ...]]], list[_Place]]:
    """Return where each trainable parameter lies in the one group's values, and every place that holds it."""
    values = network.groups[0].values
    found: list[tuple[int, Any, Any, nn.Parameter]] = []
    for module in network.module.modules():
        held: list[tuple[Any, Any, Any]] = [(module._parameters, *item) for item in module._parameters.items()]  # noqa: SLF001 - where a module keeps them
        for container, key, value in held:
            offset = value.data_ptr() - values.data_ptr() if isinstance(value, nn.Parameter) and value.numel() else -1
            if 0 <= offset < values.nbytes:
                found.append((offset // values.element_size(), container, key, value))
    starts = sorted({(offset, tuple(value.shape)) for offset, _, _, value in found})
    index = {start: i for i, start in enumerate(starts)}
    places = [
        _Place(container, key, index[offset, tuple(value.shape)], value, value.requires_grad)
        for offset, container, key, value in found
    ]
    return [(slice(start, start + int(np.prod(shape))), shape) for start, shape in starts], places


_STACKED: Final[WeakKeyDictionary[Network, Stacked]] = WeakKeyDictionary()


def stacked(network: Network, signature: Signature) -> Stacked:
    """Return what runs a network for many clients at once, built once."""
    if network not in _STACKED:
        draws = draws_of(network, signature)
        recurrent = any(isinstance(module, nn.RNNBase) for module in network.module.modules())
        if draws is not None or recurrent:
            draws = Draws(draws.axes if draws else (), batched=True)
        _STACKED[network] = Stacked(network, draws)
    return _STACKED[network]


def train_clients(
    work: LocalWork, network: Network, loss: str, context: ClientContext, states: ClientStates
) -> tuple[Outcome, Floats]:
    """Train all clients of the context at once; return where each ended, and its buffers [n, size of them].

    The clients with the most steps come first, so that those who are done drop off the end. A client's result is
    that of the loop to float32 rounding. At least one client has examples, and the network is one that
    ``batching_of`` calls "vmap".
    """
    clients, number = context.clients, context.assignment.round
    batches = local_batches(work, clients.ordinals, clients.sizes, context.streams.of("order", number))
    order = np.argsort(-batches.steps, kind="stable")
    params = context.assignment.model[..., context.layout.slices["params"]]
    start = np.broadcast_to(params, (len(clients), params.shape[-1]))
    buffers = buffers_before(network, context, states)
    buffers = np.broadcast_to(buffers, (len(clients), buffers.shape[-1]))
    runner = stacked(network, clients.signature)
    with isolated_torch(0), torch.enable_grad(), user_code(f"Training {network.name!r}"):
        network.module.train()
        network.load(torch.from_numpy(start[0].copy()), torch.from_numpy(buffers[0].copy()))
        vectors = {name: vector[order] for name, vector in hook_states(work.hooks, context, states).items()}
        together = _together(work, network, runner, (start[order], buffers[order]), vectors)
        losses = _descend(work, runner, EACH[loss], _Pack(network, context, batches, order), together)
    network.check_parameters()
    delta, mean = np.empty(start.shape, dtype=np.float32), np.empty(len(start))
    delta[order] = together.values.cpu().numpy()
    delta -= start
    mean[order] = losses
    return Outcome(delta, batches.steps, mean / np.maximum(batches.steps, 1)), np.array(buffers)


def _together(
    work: LocalWork,
    network: Network,
    runner: Stacked,
    first: tuple[Floats, Floats],
    vectors: Mapping[str, Floats],
) -> _Active:
    """Return everything that training changes or reads, for all clients: the first parameters and buffers [n, ...]."""
    device = network.input_kind[1]
    values, buffers = (torch.from_numpy(rows).to(device) for rows in first)
    state = {name: torch.from_numpy(vector).to(device) for name, vector in vectors.items()}
    gradient = torch.empty_like(values)
    return _Active(
        runner.leaves(values),
        runner.buffers(buffers),
        values,
        gradient,
        runner.views(gradient),
        values.clone() if work.hooks else values,
        state,
        work.optimizer.start(values),
    )


class _Pack:
    """All steps of all clients, laid out step by step: one gather a step.

    Padding repeats the first example of its batch, so that it is as finite as what is real.
    """

    def __init__(self, network: Network, context: ClientContext, batches: LocalBatches, order: Int64s) -> None:
        clients = context.clients
        x, y = clients.everything()
        dtype, device = network.input_kind
        signature = clients.signature
        self.x = torch.from_numpy(x).to(device, torch.int64 if signature.integer_inputs else dtype).flatten(0, 1)
        self.y = torch.from_numpy(y).to(device, torch.int64 if signature.classes else torch.float32).reshape(-1)
        positions = batches.positions[order].transpose(1, 0, 2)  # [steps, n, b]
        real = positions >= 0
        counts = real.sum(axis=2)
        rows = order[:, None] * x.shape[1] + np.where(real, positions, np.maximum(positions[:, :, :1], 0))
        self.rows = torch.from_numpy(rows).to(device)
        shares = (real / np.maximum(counts, 1)[:, :, None]).astype(np.float32)
        self.shares = torch.from_numpy(shares).to(device)
        self.empty = torch.from_numpy(counts == 0).to(device)
        self.some_empty = (counts == 0).any(axis=1).tolist()
        self.active = (batches.steps[order][None, :] > np.arange(len(positions))[:, None]).sum(axis=1).tolist()
        self.seeds = torch.from_numpy(dropout_seeds(context)[order])

    def __iter__(self) -> Iterator[Step]:
        """Yield every step, for the clients that still take it."""
        for number, active in enumerate(self.active):
            rows = self.rows[number, :active]
            flat = rows.reshape(-1)
            x = self.x.index_select(0, flat).view(*rows.shape, *self.x.shape[1:])
            shares, seeds = self.shares[number, :active], self.seeds[:active]
            yield Step(x, self.y.index_select(0, flat), shares, seeds, number + 1)


@dataclass(frozen=True)
class _Active:
    """What belongs to the clients that still train: views of the first rows of everything."""

    leaves: Sequence[Tensor]
    buffers: Sequence[Tensor]
    values: Tensor
    gradient: Tensor
    places: Sequence[Tensor]
    start: Tensor
    state: dict[str, Tensor]
    memory: dict[str, Tensor]


def _descend(work: LocalWork, runner: Stacked, each: Loss, pack: _Pack, all_clients: _Active) -> Array:
    """Take every step, in place; return each client's loss, summed over its steps: float64 [n]."""
    total = torch.zeros(len(all_clients.values), dtype=torch.float64, device=all_clients.values.device)
    now = all_clients
    with runner.borrowed():
        for step in pack:
            count = len(step.seeds)
            if count < len(now.values):
                now = _first(runner, all_clients, count)
            gradients, loss = runner.step(now.leaves, now.buffers, each, step)
            for place, gradient in zip(now.places, gradients, strict=True):
                place.copy_(gradient)  # a gradient of a weight is often transposed: one copy, not reshape and cat
            if pack.some_empty[step.number - 1]:
                empty = pack.empty[step.number - 1, :count]
                now.gradient[empty] = 0
                loss = loss.masked_fill(empty, 0)
            bent = bend(work.hooks, now.values, now.gradient, now.start, now.state)
            work.optimizer.step(now.values, bent, now.memory, step.number)
            total[:count] += loss
    summed: Array = total.cpu().numpy()
    return summed


def _first(runner: Stacked, clients: _Active, count: int) -> _Active:
    """Return the first clients' part of everything."""
    values = clients.values[:count]
    return _Active(
        runner.leaves(values),
        [buffer[:count] for buffer in clients.buffers],
        values,
        clients.gradient[:count],
        [place[:count] for place in clients.places],
        clients.start[:count],
        {name: vector[:count] for name, vector in clients.state.items()},
        {name: vector[:count] for name, vector in clients.memory.items()},
    )
