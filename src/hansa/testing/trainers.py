"""Trainers whose every step can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from hansa.core.layout import TRAIN_LOSS, Array, Branch, Floats, Layout, Parameter
from hansa.core.nouns import Batch, ClientContext, ClientStates, InitialModel, Signature
from hansa.core.pieces import Hook
from hansa.core.schema import Doc, Family
from hansa.core.sections import Model
from hansa.core.streams import Stream
from hansa.training.local import LocalWork, Outcome, bend, hand_back, hook_states, local_batches


@dataclass(frozen=True, kw_only=True)
class QuadraticTrainer(LocalWork):
    """Descends 1/2 (w - a_i)^T H_i (w - a_i) by exact gradients: any client optimizer, any hooks.

    The clients come from :func:`hansa.testing.quadratic_clients`; their number of examples, ``epochs`` and
    ``batch_size`` (or ``steps``) set the number of local steps. The plan's ``model.arguments`` may hold ``start``,
    the first parameters (else zeros); its factory is not called.
    """

    bends_gradients: ClassVar[bool] = True

    def initial(self, model: Model, signature: Signature, stream: Stream) -> InitialModel:  # noqa: ARG002 - the trainer protocol
        """Return one parameter vector [p]."""
        size = signature.shape[-1]
        layout = Layout((Branch("params", (Parameter("w", (size,)),)),))
        return InitialModel(layout, np.array(model.arguments.get("start", [0.0] * size), dtype=np.float32))

    def notes(self, model: Model, signature: Signature) -> tuple[str, ...]:  # noqa: ARG002 - the trainer protocol
        """Return nothing."""
        return ()

    def batching(self, model: Model, signature: Signature) -> tuple[str, str]:  # noqa: ARG002 - the trainer protocol
        """Return "fused": every client at once."""
        return "fused", "a toy of a few lines of numpy"

    def client_rows(self, model: Model, signature: Signature) -> dict[str, Array]:  # noqa: ARG002 - the trainer protocol
        """Return nothing: the trainer keeps nothing for a client."""
        return {}

    def train(self, model: Model, context: ClientContext, states: ClientStates) -> tuple[Batch, dict[str, Array]]:  # noqa: ARG002 - the trainer protocol
        """Train every client at once; one whose steps are done stays where it is."""
        clients, layout = context.clients, context.layout
        order = context.streams.of("order", context.assignment.round)
        steps = local_batches(self, clients.ordinals, clients.sizes, order).steps
        params = context.assignment.model[..., layout.slices["params"]]
        start = np.ascontiguousarray(np.broadcast_to(params, (len(clients), params.shape[-1])))
        examples = clients.gather(np.zeros((len(clients), 1), dtype=np.int64))[0][:, 0]
        end, buffers = start.copy(), self.optimizer.start(start)
        state = hook_states(self.hooks, context, states)
        losses = np.zeros(len(clients))
        for number in range(1, int(steps.max(initial=0)) + 1):
            done, kept = steps < number, end.copy()
            gradient, loss = _gradient(examples, end)
            losses += np.where(done, 0, loss)
            self.optimizer.step(end, bend(self.hooks, end, gradient, start, dict(state)), buffers, number)
            end[done] = kept[done]
        return hand_back(self, context, states, Outcome(end - start, steps, losses / steps))

    def predict(self, model: Model, signature: Signature, values: Floats, x: Array, states: ClientStates) -> Array:  # noqa: ARG002 - the trainer protocol
        """Return each example's loss: float32 [b, 1]."""
        point = np.broadcast_to(values[: signature.shape[-1]], (len(x), signature.shape[-1]))
        return _gradient(x, point)[1].astype(np.float32)[:, None]


def _gradient(examples: Array, points: Floats) -> tuple[Floats, Array]:
    """Return H (w - a) [n, p] and the loss [n] of examples [n, p + 1, p] at points [n, p]."""
    away = points - examples[:, -1]
    gradient = np.einsum("npq,nq->np", examples[:, :-1], away)
    return gradient, np.einsum("np,np->n", gradient, away) / 2


@dataclass(frozen=True, kw_only=True)
class StumpTrainer:
    """Fits the two leaves of one split, x[0] <= 0 or not, by their mean labels: a trainer without gradients."""

    bends_gradients: ClassVar[bool] = False
    optimizer: ClassVar[None] = None

    hooks: Annotated[tuple[Hook, ...], Family("hook"), Doc("refused: there are no gradients to bend")] = ()

    def initial(self, model: Model, signature: Signature, stream: Stream) -> InitialModel:  # noqa: ARG002 - the trainer protocol
        """Return two leaves of zero."""
        layout = Layout((Branch("params", (Parameter("leaves", (2,)),)),))
        return InitialModel(layout, np.zeros(2, dtype=np.float32))

    def notes(self, model: Model, signature: Signature) -> tuple[str, ...]:  # noqa: ARG002 - the trainer protocol
        """Return nothing."""
        return ()

    def batching(self, model: Model, signature: Signature) -> tuple[str, str]:  # noqa: ARG002 - the trainer protocol
        """Return "fused": every client at once."""
        return "fused", "a toy of a few lines of numpy"

    def client_rows(self, model: Model, signature: Signature) -> dict[str, Array]:  # noqa: ARG002 - the trainer protocol
        """Return nothing: the trainer keeps nothing for a client."""
        return {}

    def train(self, model: Model, context: ClientContext, states: ClientStates) -> tuple[Batch, dict[str, Array]]:  # noqa: ARG002 - the trainer protocol
        """Return the way from the server's leaves to each client's own; an empty leaf stays."""
        clients, layout = context.clients, context.layout
        x, y = clients.everything()
        leaf = (x.reshape(*y.shape, -1)[..., 0] > 0).astype(np.int64)
        real = np.arange(y.shape[1])[None, :] < clients.sizes[:, None]
        values = np.zeros((len(clients), layout.size), dtype=np.float32)
        for side in (0, 1):
            inside = real & (leaf == side)
            count = inside.sum(axis=1)
            mean = np.where(inside, y, 0).sum(axis=1) / np.maximum(count, 1)
            values[:, side] = np.where(count > 0, mean - context.assignment.model[..., side], 0)
        lanes = layout.encode_lanes({TRAIN_LOSS.name: np.zeros(len(clients))}, len(clients))
        return Batch(values, lanes, layout, {"steps": np.full(len(clients), np.nan)}), {}

    def predict(self, model: Model, signature: Signature, values: Floats, x: Array, states: ClientStates) -> Array:  # noqa: ARG002 - the trainer protocol
        """Return the leaf of each example: float32 [b, 1]."""
        return values[(x.reshape(len(x), -1)[:, 0] > 0).astype(np.int64)].astype(np.float32)[:, None]
