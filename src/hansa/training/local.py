"""What every trainer shares: which examples each local step sees, and what a round hands back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import numpy as np
from annotated_types import Ge, Le

from hansa.core.example_privacy import ExamplePrivacy
from hansa.core.layout import TRAIN_LOSS, Array, Floats, Int64s
from hansa.core.nouns import Batch, ClientContext, ClientStates
from hansa.core.pieces import ClientOptimizer, Hook
from hansa.core.schema import Doc, Family, Unsound
from hansa.core.streams import Stream

_MOST: Final = 10**6
"""Most passes or steps of one client in one round: the examples of every step are laid out beforehand."""


@dataclass(frozen=True, kw_only=True)
class LocalWork:
    """How long and with what a client trains: the settings that all gradient trainers share."""

    optimizer: Annotated[ClientOptimizer, Family("client_optimizer"), Doc("the local optimizer")]
    epochs: Annotated[int | None, Ge(1), Le(_MOST), Doc("passes over a client's examples (or give steps)")] = None
    steps: Annotated[int | None, Ge(1), Le(_MOST), Doc("local steps, the same for every client (or give epochs)")] = (
        None
    )
    batch_size: Annotated[int | Literal["all"], Doc('examples in a step, or "all"')] = 32
    hooks: Annotated[tuple[Hook, ...], Family("hook"), Doc("what bends the gradients: prox, control-variate")] = ()
    example_privacy: Annotated[
        ExamplePrivacy | None,
        Doc("differential privacy of single examples, by noise in every step of every client (local DP-SGD)"),
    ] = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise Unsound("give epochs or steps, and not both.")
        if isinstance(self.batch_size, int) and self.batch_size < 1:
            raise Unsound('batch_size must be at least 1, or "all".')


@dataclass(frozen=True)
class LocalBatches:
    """The examples of every local step: ``positions`` int64 [n, steps, batch], -1 is padding.

    Client i takes ``steps[i]`` steps; its later rows are not looked at.
    """

    positions: Int64s
    steps: Int64s


def local_batches(work: LocalWork, ordinals: Int64s, sizes: Int64s, stream: Stream) -> LocalBatches:
    """Return which examples each client uses at each step: a fresh shuffle every epoch, a last partial batch."""
    width = max(1, int(sizes.max(initial=0)))
    batch = width if work.batch_size == "all" else min(int(work.batch_size), width)
    per_epoch = np.maximum(1, -(-sizes // batch))
    steps = per_epoch * work.epochs if work.epochs else np.full(len(sizes), work.steps, dtype=np.int64)
    positions = np.full((len(sizes), int(steps.max(initial=0)), batch), -1, dtype=np.int64)
    for epoch in range(int((-(-steps // per_epoch)).max(initial=0))):
        (busy,) = np.nonzero(epoch * per_epoch < steps)
        batches = _batches(stream.permutations(ordinals[busy], sizes[busy], draw=epoch), batch)
        if epoch == 0:
            most = min(batches.shape[1], positions.shape[1])
            positions[:, :most] = batches[:, :most]
            continue
        numbers = epoch * per_epoch[busy, None] + np.arange(batches.shape[1])[None, :]
        rows, places = np.nonzero(numbers < (epoch + 1) * per_epoch[busy, None])
        within = numbers[rows, places] < positions.shape[1]
        rows, places = rows[within], places[within]
        positions[busy[rows], numbers[rows, places]] = batches[rows, places]
    return LocalBatches(positions, steps)


def _batches(shuffles: Int64s, batch: int) -> Int64s:
    """Return shuffles [n, width] cut into batches, the last one padded with -1: int64 [n, batches, batch]."""
    count, width = shuffles.shape
    padded = np.full((count, -(-width // batch) * batch), -1, dtype=np.int64)
    padded[:, :width] = shuffles
    return padded.reshape(count, -1, batch)


def dropout_seeds(context: ClientContext) -> Int64s:
    """Return what each client's dropout masks of this round are made from: int64 [n], not negative."""
    words = context.streams.of("dropout", context.assignment.round).bits(context.clients.ordinals, 1)[:, 0]
    return (words >> np.uint64(1)).astype(np.int64)


def hook_states(hooks: tuple[Hook, ...], context: ClientContext, states: ClientStates) -> dict[str, Floats]:
    """Return the vectors that hooks read: their branches as the server sent them, and the clients' own.

    Each is float32 [n, size of "params"].
    """
    count = len(context.clients)
    layout, model = context.layout, context.assignment.model
    vectors = {name: model[..., layout.slices[name]] for hook in hooks for name in hook.branches}
    size = layout.branch("params").size
    own = {name: states[name] for hook in hooks for name in hook.state}
    return {name: np.broadcast_to(vector, (count, size)) for name, vector in (vectors | own).items()}


def bend(hooks: tuple[Hook, ...], parameter: Any, gradient: Any, start: Any, state: dict[str, Any]) -> Any:
    """Return the gradient after every hook, in the plan's order."""
    for hook in hooks:
        gradient = hook.gradient(parameter, gradient, start, state)
    return gradient


@dataclass(frozen=True)
class Outcome:
    """What local training did: how far it moved the parameters [n, size] (not held by others), in how many steps [n].

    ``loss`` is the mean over the steps [n], ``buffers`` the averaged buffers [n, size of them].
    """

    delta: Floats
    steps: Int64s
    loss: Array
    buffers: Floats | None = None


def hand_back(
    work: LocalWork, context: ClientContext, states: ClientStates, outcome: Outcome
) -> tuple[Batch, dict[str, Array]]:
    """Return the updates over all branches, and the states that hooks keep."""
    layout = context.layout
    parts: dict[str, Array] = {"params": outcome.delta}
    if outcome.buffers is not None:
        parts["buffers"] = outcome.buffers - context.assignment.model[..., layout.slices["buffers"]]
    following: dict[str, Array] = {}
    vectors = hook_states(work.hooks, context, states)
    for hook in work.hooks:
        updates, kept = hook.finish(
            delta=outcome.delta, steps=outcome.steps, learning_rate=work.optimizer.learning_rate, state=vectors
        )
        parts |= updates
        following |= kept
    one, *more = (parts[branch.name] for branch in layout.branches)
    values = np.concatenate([one, *more], axis=1, dtype=np.float32) if more else one
    values[np.isnan(outcome.loss)] = np.nan  # no measure of such an update is known: it counts as not finite
    lanes = layout.encode_lanes({TRAIN_LOSS.name: np.nan_to_num(outcome.loss)}, len(values))
    side = {"steps": work.optimizer.effective_steps(outcome.steps)}
    return Batch(values, lanes, layout, side), following
