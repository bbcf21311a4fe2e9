"""What a user should know of a torch module before a run."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from hansa.core.nouns import Signature
from hansa.training.torch_model import Network

_BATCH_NORM: Final = {
    "keep-local": (
        "Its running statistics stay with each client, who normalises with its own (as in FedBN); a client that never "
        "trained, and central evaluation, use the first ones (mean 0, variance 1), so that their figures say little."
    ),
    "average": (
        "Its running statistics are averaged with the parameters: the server sees statistics of each client's "
        "activations, and their mean fits no client well where clients differ. A plan that claims privacy refuses it."
    ),
}
_BATCH_NORM_BOTH: Final = (
    "In a step of one example it uses its running statistics. GroupNorm avoids all of this and is what federated "
    "learning works best with."
)


def notes(network: Network, mode: str, signature: Signature) -> tuple[str, ...]:
    """Return what a user should know of a model before a run."""
    found: list[str] = []
    if network.batch_norms:
        found.append(f"{network.name!r} has BatchNorm. {_BATCH_NORM[mode]} {_BATCH_NORM_BOTH}")
    elif network.kept_buffers and mode == "keep-local":
        names = ", ".join(buffer.name for buffer in network.kept_buffers[:3])
        found.append(
            f"{network.name!r} has buffers ({names}): each client keeps its own from round to round, and the server's "
            'model has their first values. Set model.buffers = "average" to average them.'
        )
    if signature.classes and network.outputs > 1 and _are_probabilities(network.result):
        found.append(
            f"The outputs of {network.name!r} look like probabilities (they sum to 1); the loss expects logits. "
            "Leave out the softmax at the end: with it the model trains slowly."
        )
    return tuple(found)


def _are_probabilities(result: Tensor) -> bool:
    return bool((result >= 0).all() and torch.allclose(result.sum(dim=-1).float(), torch.ones(len(result)), atol=1e-3))
