"""The gradient of every single example of a torch module, by Opacus (Yousefpour et al. 2021, arXiv 2109.12298)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from hansa.core.errors import HansaError
from hansa.core.layout import Floats, Int64s
from hansa.core.nouns import ClientBatch, Signature
from hansa.training.batching import alone, apart, near, refusal
from hansa.training.noised_steps import Gradients, rows_at_once
from hansa.training.randomness import draws_of, named, randomness_of, trial, trial_examples
from hansa.training.torch_factory import one_thread, unsuitable, user_code
from hansa.training.torch_kernels import keep_memory
from hansa.training.torch_loop import examples
from hansa.training.torch_losses import EACH
from hansa.training.torch_model import Identity, Network

_FIRST_IS_DATA: Final = "Full backward hook is firing when gradients are computed with respect to module outputs"
"""What torch warns of wherever the first layer's inputs are data, as they are here."""

_TRIED: Final = 3
_FOUND: Final[WeakKeyDictionary[Identity, dict[str, str]]] = WeakKeyDictionary()


def require(network: Network, loss: str, signature: Signature) -> None:
    """Raise ModelError for a network whose examples have no gradients of their own, HansaError without Opacus."""
    _opacus()
    found = _FOUND.setdefault(network.identity, {})
    if loss not in found:
        found[loss] = _reason(network, loss, signature)
    if found[loss]:
        raise unsuitable(
            "trainer.example_privacy needs the gradient of each example, as if the others were not there.",
            f"{network.name!r} has none: {found[loss]}.",
            "Use layers without state between examples and without random draws: GroupNorm or LayerNorm in place of "
            "BatchNorm, no dropout, and what Opacus supports.",
        )


def sources(network: Network, loss: str, clients: ClientBatch) -> Iterator[Gradients]:
    """Yield, for every client in order, what gives gradients of its examples; each is for use before the next.

    Raises as :func:`require` does.
    """
    require(network, loss, clients.signature)
    keep_memory()
    with one_thread(), torch.enable_grad(), _hooked(network) as hooks:
        network.load(torch.zeros(network.branch.size))
        for x, y in examples(clients, network):
            yield _Client(network, hooks, loss, x, y)
    network.check_parameters()


class _Client:
    """Gradients of one client's examples."""

    def __init__(self, network: Network, hooks: Any, loss: str, x: Tensor, y: Tensor) -> None:
        self._network, self._hooks, self._loss, self._x, self._y = network, hooks, loss, x, y
        (self._group,) = network.groups
        self._rows = rows_at_once(network.branch.size)

    def __call__(self, values: Floats, positions: Int64s) -> Floats:
        """Return gradients [m, size] at parameters [size].

        Always as many rows are computed, the first one over again for those that lack, so that no kernel is chosen by
        how many examples a step has.
        """
        count = len(positions)
        padded = np.concatenate([positions, np.full(max(0, self._rows - count), positions[0])])
        self._group.values.copy_(torch.from_numpy(values))
        chosen = torch.from_numpy(padded)
        return self.of(self._x[chosen], self._y[chosen])[:count]

    def of(self, x: Tensor, y: Tensor) -> Floats:
        """Return the gradient of each of these examples at the parameters that are loaded: [m, size]."""
        found = np.zeros((len(x), self._network.branch.size), dtype=np.float32)
        self._hooks.set_grad_sample_to_none()
        with user_code(f"Training {self._network.name!r}"):
            losses = EACH[self._loss](self._network(x), y)
            losses.sum().backward()  # type: ignore[no-untyped-call]  # torch has no types there
        for parameter, place in self._group.members:
            sample: Any = getattr(parameter, "grad_sample", None)
            if sample is not None:
                found[:, place] += sample.detach().reshape(len(x), -1).cpu().numpy()
        self._network.release_gradients()
        return found


@contextmanager
def _hooked(network: Network) -> Iterator[Any]:
    """Let Opacus watch a network, in training mode."""
    warnings.filterwarnings("ignore", message=_FIRST_IS_DATA)
    network.module.train()
    network.release_gradients()
    hooks = _opacus()(network.module, loss_reduction="sum", strict=True)
    try:
        yield hooks
    finally:
        hooks.cleanup()
        for module in network.module.modules():
            for left in ("activations", "max_batch_len"):  # of a step that did not come to its end
                vars(module).pop(left, None)
        network.release_gradients()


def _reason(network: Network, loss: str, signature: Signature) -> str:
    """Return why single examples of a network cannot be protected, or nothing."""
    other = randomness_of(network, signature).other
    dropout = "its dropout draws a mask for each place in a batch" if draws_of(network, signature) else ""
    found = refusal(network) or other or dropout
    if found:
        return found
    with trial(network) as values, one_thread():
        try:
            return apart(network, signature, values) or _differs(network, loss, signature, values)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises is why it is refused
            return f"a trial step with Opacus raised {named(error)}"


def _differs(network: Network, loss: str, signature: Signature, values: Tensor) -> str:
    """Return that the gradients of a batch's examples are not those of each example alone, if so."""
    x, y = trial_examples(network, signature, _TRIED)
    each = torch.stack([alone(network, loss, signature, values, (x[i : i + 1], y[i : i + 1])) for i in range(_TRIED)])
    network.load(values)
    with _hooked(network) as hooks:
        found = torch.from_numpy(_Client(network, hooks, loss, x, y).of(x, y))
    return "" if near(network, found, each) else "Opacus finds other gradients than each example has alone"


def _opacus() -> Any:
    """Return the class of Opacus that attaches to modules; HansaError where it is missing."""
    try:
        from opacus.grad_sample.grad_sample_module import GradSampleHooks  # noqa: PLC0415 - an extra, two seconds long
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("opacus", "opt_einsum", "scipy"):
            raise
        raise HansaError(
            "HANSA-EXTRA-MISSING",
            rule="trainer.example_privacy of torch models needs Opacus.",
            found="It is not installed here.",
            action="Install the extra: pip install 'hansa[opacus]'.",
        ) from error
    return GradSampleHooks
