"""Local training and prediction of a torch module, one client after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hansa.core.layout import Array, Floats, Int64s
from hansa.core.nouns import ClientBatch, ClientContext, ClientStates, Signature
from hansa.training.dropout import Draws
from hansa.training.kernels import chosen
from hansa.training.local import LocalBatches, LocalWork, Outcome, bend, dropout_seeds, hook_states, local_batches
from hansa.training.randomness import draws_of, randomness_of
from hansa.training.torch_dense import Products
from hansa.training.torch_factory import isolated_torch, one_thread, reseed, unsuitable, user_code
from hansa.training.torch_kernels import keep_memory, layers
from hansa.training.torch_losses import Loss
from hansa.training.torch_model import Network

GATHER_BYTES: Final = 2**26
"""Examples of consecutive clients are gathered together up to about so many bytes, padding included."""

PREDICT_ROWS: Final = 512
"""The most examples in one forward pass of a prediction; fewer where one example is large."""

PREDICT_ENTRIES: Final = 2**22
"""The most numbers in the inputs of one forward pass of a prediction, if that leaves one example."""


def loss_name(choice: str, network: Network, signature: Signature) -> str:
    """Return the loss that ``choice`` means for these outputs and labels; ModelError if they do not fit."""
    classes, outputs = signature.classes, network.outputs
    if choice == "auto":
        choice = "squared-error" if not classes else "cross-entropy"
        choice = "binary-cross-entropy" if classes == 2 and outputs == 1 else choice
    needs = {
        "cross-entropy": (classes >= 2 and outputs >= max(classes, 2), "at least two classes and an output for each"),
        "binary-cross-entropy": (classes == 2 and outputs == 1, "two classes and one output, the log odds"),
        "squared-error": (classes in (0, 2) and outputs == 1, "a real-valued label (or 0 and 1) and one output"),
    }
    fits, wanted = needs[choice]
    if not fits:
        label = f"{classes} classes" if classes else "a real-valued label"
        raise unsuitable(
            f"The loss {choice!r} needs {wanted}.",
            f"The data have {label}, and {network.name!r} returns {list(network.result.shape[1:]) or 'one number'} "
            "for an example.",
            "Change the last layer (model.arguments) or trainer.loss.",
        )
    return choice


@dataclass(frozen=True)
class Local:
    """One client's work: its examples, the example positions of each step, what its hooks read and its seed."""

    x: Tensor
    y: Tensor
    steps: list[Tensor]
    state: Mapping[str, Tensor]
    seed: int


def train_clients(
    work: LocalWork, network: Network, loss: Loss, context: ClientContext, states: ClientStates
) -> tuple[Outcome, Floats]:
    """Train every client of the context; return where each ended, and its buffers [n, size of them].

    A client's result is a function of its own data, state and number: nothing passes from one to the next.
    """
    clients, number = context.clients, context.assignment.round
    count = len(clients)
    batches = local_batches(work, clients.ordinals, clients.sizes, context.streams.of("order", number))
    seeds = dropout_seeds(context)
    start = _rows(network.held(context.assignment.model[..., context.layout.slices["params"]]), count)
    buffers = _rows(buffers_before(network, context, states), count)
    vectors = hook_states(work.hooks, context, states)
    delta, after = torch.empty(start.shape), torch.empty(buffers.shape)
    losses = np.zeros(count)
    draws, drawing = draws_of(network, clients.signature), bool(randomness_of(network, clients.signature).other)
    rate = None if work.hooks else work.optimizer.gradient_rate
    with _training(network, clients.signature):
        for i, (x, y) in enumerate(examples(clients, network)):
            begin = _seen(start[i])
            network.load(begin, _tensor(buffers[i]))
            if drawing:
                reseed(int(seeds[i]))
            state = {name: _tensor(vector[i]) for name, vector in vectors.items()}
            local = Local(x, y, _steps(batches, i), state, int(seeds[i]))
            if rate is None:
                losses[i] = _train_client(work, network, loss, local, draws)
                network.read_change(begin, delta[i])
            else:
                products = Products(network.tied)
                losses[i] = _descend_client(rate, network, loss, local, draws, products)
                network.read_change(begin, delta[i], products.moved)
            network.read_buffers(after[i])
    network.check_parameters()
    return Outcome(delta.numpy(), batches.steps, losses), after.numpy()


def _train_client(work: LocalWork, network: Network, loss: Loss, local: Local, draws: Draws | None) -> float:
    """Take every step of one client from the values that are loaded; return its mean loss."""
    memories = [work.optimizer.start(group.values) for group in network.groups]
    starts = [group.values.clone() if work.hooks else group.values for group in network.groups]
    states = [
        {name: vector[group.place].to(group.values) for name, vector in local.state.items()} for group in network.groups
    ]
    total = 0.0
    for number, positions in enumerate(local.steps, start=1):
        network.collect_gradients()
        if len(positions):
            if draws is not None:
                draws.set(local.seed, number)
            total += _backward(network, loss, local.x[positions], local.y[positions], draws)
        for group, memory, start, state in zip(network.groups, memories, starts, states, strict=True):
            gradient = bend(work.hooks, group.values, group.gradients, start, state)
            work.optimizer.step(group.values, gradient, memory, number)
    return total / max(len(local.steps), 1)


def _descend_client(  # noqa: PLR0913, PLR0917 - as _train_client, and where gradients may stay
    rate: float, network: Network, loss: Loss, local: Local, draws: Draws | None, products: Products
) -> float:
    """Take every step of one client as :func:`_train_client` does, where a step is w <- w - rate g.

    What is put off stays in ``products``.
    """
    total = 0.0
    network.release_gradients()
    for number, positions in enumerate(local.steps, start=1):
        if len(positions):
            if draws is not None:
                draws.set(local.seed, number)
            total += _backward(network, loss, local.x[positions], local.y[positions], draws, products)
            network.descend(rate)
            products.descend(rate)
    return total / max(len(local.steps), 1)


def _backward(  # noqa: PLR0913, PLR0917 - a step's examples and how it is taken
    network: Network, loss: Loss, x: Tensor, y: Tensor, draws: Draws | None, products: Products | None = None
) -> float:
    """Make the gradients of the mean loss of these examples; return that loss.

    Gradients of dense layers may stay in ``products``.
    """
    lone = len(x) == 1 and bool(network.batch_norms)
    with user_code(f"Training {network.name!r}"), _running_statistics(network) if lone else nullcontext():
        with layers(chosen(), products), draws or nullcontext():
            outputs = network(x)
        value = loss(outputs, y)
        value.backward()  # type: ignore[no-untyped-call]  # torch has no types there
    return value.item()


@contextmanager
def _training(network: Network, signature: Signature) -> Iterator[None]:
    """Set what training a module needs; on leaving, torch's random numbers go on as if nothing had been.

    Several threads may train at once, each with a network of its own; one that draws from torch's generator is alone.
    """
    keep_memory()
    draws = randomness_of(network, signature).other
    with isolated_torch(0) if draws else one_thread(), torch.enable_grad():
        network.module.train()
        yield


@contextmanager
def _running_statistics(network: Network) -> Iterator[None]:
    """Let BatchNorm layers use their running statistics: a single example has none of its own."""
    layers = [layer for layer in network.batch_norms if layer.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


def buffers_before(network: Network, context: ClientContext, states: ClientStates) -> Floats:
    """Return the buffers that clients start from: the server's [size], or their own [n, size]."""
    if "buffers" in context.layout.slices:
        sent: Floats = context.assignment.model[..., context.layout.slices["buffers"]]
        return sent
    return states["buffers"] if "buffers" in states else network.first_buffers()


def examples(clients: ClientBatch, network: Network) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each client's examples, x [size, ...] and y [size], gathered for many clients at once."""
    sizes, signature = clients.sizes, clients.signature
    dtype, device = network.input_kind
    kind = torch.int64 if signature.integer_inputs else dtype
    width = 8 * max(1, int(np.prod(signature.shape)))
    for block in _blocks(sizes, max(1, GATHER_BYTES // width)):
        x, y = clients.of(block).everything()
        for row, size in enumerate(sizes[block].tolist()):
            labels = _tensor(y[row, :size]).reshape(-1)
            yield (
                _tensor(x[row, :size]).to(device, kind),
                labels.to(device, torch.int64 if signature.classes else torch.float32),
            )


def _blocks(sizes: Int64s, budget: int) -> Iterator[slice]:
    """Yield runs of consecutive clients whose examples, padded to the largest, number at most ``budget``."""
    start, largest = 0, 0
    for i, size in enumerate(sizes.tolist()):
        largest = max(largest, size)
        if i > start and (i + 1 - start) * largest > budget:
            yield slice(start, i)
            start, largest = i, size
    if start < len(sizes):
        yield slice(start, len(sizes))


def _steps(batches: LocalBatches, client: int) -> list[Tensor]:
    """Return the positions of the real examples of each step of one client."""
    positions = batches.positions[client, : batches.steps[client]]
    table = torch.tensor(positions)
    return [row[:size] for row, size in zip(table.unbind(), (positions >= 0).sum(axis=1).tolist(), strict=True)]


def _rows(values: Floats, count: int) -> Floats:
    """Return [size] or [n, size] as [n, size], without a copy."""
    return np.broadcast_to(values, (count, values.shape[-1]))


def _tensor(array: Array) -> Tensor:
    """Return an array as a tensor, without a copy where it may be written to."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@dataclass(frozen=True)
class _Writable:
    """An array under numpy's own protocol, which says that it may be written to."""

    array: Array

    @property
    def __array_interface__(self) -> dict[str, Any]:
        found = self.array.__array_interface__
        return {**found, "data": (found["data"][0], False)}


def _seen(array: Array) -> Tensor:
    """Return an array as a tensor without a copy; torch has no tensors that may only be read, so be careful."""
    return torch.from_numpy(np.asarray(_Writable(array)))


def predict(network: Network, signature: Signature, x: Array, *, values: Floats, buffers: Floats | None) -> Floats:
    """Return the outputs of parameters [size] in eval mode, for examples x [b, ...]: float32 [b, outputs].

    Without ``buffers`` the model uses their first values. It runs under no_grad, not inference_mode: a module
    may cache a tensor in its forward (positions, masks) that its next training needs, and an inference
    tensor cannot take part in that.
    """
    dtype, device = network.input_kind
    kind = torch.int64 if signature.integer_inputs else dtype
    rows = min(PREDICT_ROWS, max(1, PREDICT_ENTRIES // max(1, int(np.prod(signature.shape)))))
    outputs = np.empty((len(x), network.outputs), dtype=np.float32)
    with isolated_torch(0), torch.no_grad(), user_code(f"Predicting with {network.name!r}"):
        network.load(_tensor(values), None if buffers is None else _tensor(buffers))
        network.module.eval()
        for start in range(0, len(x), rows):
            batch = _tensor(np.ascontiguousarray(x[start : start + rows])).to(device, kind)
            outputs[start : start + rows] = network(batch).to("cpu", torch.float32).numpy()
    return outputs
