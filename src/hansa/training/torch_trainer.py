"""The trainer of any torch module. Importing it needs no torch: a plan can be read and checked without."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from hansa.core.errors import HansaError, ModelError
from hansa.core.layout import Array, Floats, Layout
from hansa.core.nouns import Batch, ClientContext, ClientStates, InitialModel, Signature
from hansa.core.schema import Doc
from hansa.core.sections import Model
from hansa.core.streams import Stream
from hansa.training.local import LocalWork, Outcome, hand_back
from hansa.training.noised_steps import NOISED, train_clients

if TYPE_CHECKING:
    from hansa.training.torch_model import Network


@dataclass(frozen=True, kw_only=True)
class TorchTrainer(LocalWork):
    """Trains any ``torch.nn.Module``, many clients at once where that is sound, on the device of its factory.

    What travels are the parameters that require a gradient, once per storage, as float32, and under
    ``buffers = "average"`` the floating persistent buffers. Frozen parameters, integer buffers and buffers
    that are not persistent are what the factory made them (from a fixed seed) at the start of each
    assignment. A tensor that a module keeps in a plain attribute is not reset between clients.
    """

    bends_gradients: ClassVar[bool] = True
    protects_examples: ClassVar[bool] = True

    loss: Annotated[
        Literal["auto", "cross-entropy", "binary-cross-entropy", "squared-error"],
        Doc("what is minimised; auto: by the label and the number of outputs, which are logits or a number"),
    ] = "auto"

    def initial(self, model: Model, signature: Signature, stream: Stream) -> InitialModel:
        """Return the branch "params" (and "buffers" if averaged), with first values from the stream.

        Raises ModelError for a model that does not build, does not fit the data or cannot be trained.
        """
        torch_model, torch_loop = _torch_modules()
        network: Network = torch_model.fresh_network(model, signature, stream.seed())
        loss = torch_loop.loss_name(self.loss, network, signature)
        if self.example_privacy is not None:
            _per_example().require(network, loss, signature)
        self._refuse_lone_examples(network)
        layout = Layout((network.branch,))
        values = network.first_values()
        if model.buffers == "average" and network.kept_buffers:
            layout = layout.with_branches(network.buffer_branch)
            values = np.concatenate([values, network.first_buffers()])
        _refuse_not_finite(layout, values, network.name)
        return InitialModel(layout, values)

    def client_rows(self, model: Model, signature: Signature) -> dict[str, Array]:
        """Return the first values of a client's own buffers, or nothing where there are none or they are averaged."""
        network = self._network(model, signature)
        if model.buffers == "average" or not network.kept_buffers:
            return {}
        return {"buffers": network.first_buffers()}

    def batching(self, model: Model, signature: Signature) -> tuple[str, str]:
        """Return how clients of a chunk train, "none" (one by one), "fused" or "vmap" (together), and why."""
        if self.example_privacy is not None:
            return NOISED
        _, torch_loop = _torch_modules()
        from hansa.training.batching import batching_of  # noqa: PLC0415 - as above: torch is an extra

        network = self._network(model, signature)
        found: tuple[str, str] = batching_of(network, torch_loop.loss_name(self.loss, network, signature), signature)
        return found

    def train(self, model: Model, context: ClientContext, states: ClientStates) -> tuple[Batch, dict[str, Array]]:
        """Train the clients: one alone by the loop, several together where :meth:`batching` says that they may.

        A loss that stops being finite is handed back as it is.
        """
        network = self._network(model, context.clients.signature)
        outcome, buffers = self._trained(model, network, context, states)
        averaged = "buffers" in context.layout.slices
        if averaged:
            outcome = replace(outcome, buffers=buffers)
        batch, following = hand_back(self, context, states, outcome)
        if network.kept_buffers and not averaged:
            following = {**following, "buffers": buffers}
        return batch, following

    def _trained(
        self, model: Model, network: Network, context: ClientContext, states: ClientStates
    ) -> tuple[Outcome, Floats]:
        """Return what the clients' training came to, by the fastest sound path, and their buffers [n, size of them]."""
        _, torch_loop = _torch_modules()
        from hansa.training import fused, torch_chain, torch_losses, vmapped  # noqa: PLC0415 - torch is an extra

        clients = context.clients
        loss = torch_loop.loss_name(self.loss, network, clients.signature)
        if self.example_privacy is not None:
            found = _per_example().sources(network, loss, clients)
            return train_clients(self, context, states, found), _same_buffers(network, context, states)
        together = len(clients) > 1 and clients.sizes.any()
        kind = self.batching(model, clients.signature)[0] if together else "none"
        if kind == "fused":
            ended = fused.train_clients(self, torch_chain.program_of(network, loss), network.branch, context, states)
            return ended, np.zeros((len(clients), 0), dtype=np.float32)
        if kind == "vmap":
            # What vmap cannot take may show on real data only. The loop is the reference: it takes it, or says why not.
            with suppress(ModelError):
                return vmapped.train_clients(self, network, loss, context, states)
        done: tuple[Outcome, Floats] = torch_loop.train_clients(
            self, network, torch_losses.LOSSES[loss], context, states
        )
        return done

    def predict(self, model: Model, signature: Signature, values: Floats, x: Array, states: ClientStates) -> Array:
        """Return the outputs in eval mode: float32 [b, outputs].

        Local buffers are those of ``states``, or the first ones where it holds none.
        """
        _, torch_loop = _torch_modules()
        network = self._network(model, signature)
        size, more = network.branch.size, network.buffer_branch.size
        buffers = states.get("buffers")
        if model.buffers == "average":
            buffers = values[size : size + more]
        buffers = None if buffers is None else np.asarray(buffers).reshape(-1)
        predicted: Array = torch_loop.predict(network, signature, x, values=values[:size], buffers=buffers)
        return predicted

    def notes(self, model: Model, signature: Signature) -> tuple[str, ...]:
        """Return what a user should know of this model before a run: sentences, none if all is plain."""
        network = self._network(model, signature)
        from hansa.training import torch_notes  # noqa: PLC0415 - as above: torch is an extra

        found: tuple[str, ...] = torch_notes.notes(network, model.buffers, signature)
        return found

    def _network(self, model: Model, signature: Signature) -> Network:
        network: Network = _torch_modules()[0].network_of(model, signature)
        return network

    def _refuse_lone_examples(self, network: Network) -> None:
        if network.batch_norms and self.batch_size == 1:
            raise ModelError(
                "HANSA-MODEL-UNSUITABLE",
                rule="BatchNorm needs at least two examples in a training step.",
                found=f"The model {network.name!r} has BatchNorm layers and trainer.batch_size is 1.",
                action="Raise trainer.batch_size, or use GroupNorm in place of BatchNorm.",
            )


def _same_buffers(network: Network, context: ClientContext, states: ClientStates) -> Floats:
    """Return the buffers that clients start from, which training with noised steps does not change: [n, size]."""
    before = _torch_modules()[1].buffers_before(network, context, states)
    return np.array(np.broadcast_to(before, (len(context.clients), before.shape[-1])))


def _per_example() -> Any:
    from hansa.training import per_example  # noqa: PLC0415 - torch and Opacus are extras

    return per_example


def _refuse_not_finite(layout: Layout, values: Floats, name: str) -> None:
    for branch in layout.branches:
        for key, view in layout.views(values, branch.name).items():
            if not np.isfinite(view).all():
                raise ModelError(
                    "HANSA-MODEL-UNSUITABLE",
                    rule="The first values of a model are finite float32 numbers.",
                    found=f"{key!r} of {name!r} holds NaN or infinity.",
                    action="Initialise it in the factory (torch.empty leaves whatever was in memory).",
                )


def _torch_modules() -> tuple[Any, Any]:
    """Return the modules that need torch, torch_model and torch_loop; HansaError where torch is missing."""
    try:
        from hansa.training import torch_loop, torch_model  # noqa: PLC0415 - imported when used: torch is an extra
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise HansaError(
            "HANSA-EXTRA-MISSING",
            rule='trainer.kind = "torch" needs torch.',
            found="It is not installed here.",
            action="Run in the clone: pip install -e '.[torch]'",
        ) from error
    return torch_model, torch_loop
