"""Whether a module's clients may train together, found by trying: its reason is shown to users."""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from hansa.core.layout import views_of
from hansa.core.nouns import Signature
from hansa.training.fused_layers import MaskSource
from hansa.training.randomness import draws_of, named, randomness_of, trial, trial_examples
from hansa.training.torch_chain import NoStackError, program_of
from hansa.training.torch_losses import EACH, LOSSES
from hansa.training.torch_model import Identity, Network
from hansa.training.vmapped import Step, stacked

Batching = tuple[str, str]
"""("fused", "vmap" or "none", why)."""

_TOLERANCE: Final = 1e-3
"""How far a trial's gradient may be from the loop's, as a share of the parameter's largest: rounding, no more."""
_FLOOR: Final = 1e-5
"""The same, as a share of the largest gradient of all parameters."""

_MIXED: Final = 2e-5
"""How far outputs may move where another example changes, as a share of the largest: rounding of other kernels."""
_SHARE: Final = 0.1
"""How far the second client's parameters are moved towards their neighbours."""

_SEED: Final = 5
_SIZES: Final = (3, 2)
"""The examples of the trial's two clients; the second one's batch has padding."""

_FOUND: Final[WeakKeyDictionary[Identity, dict[str, Batching]]] = WeakKeyDictionary()

_PLAIN: Final = frozenset(vars(nn.Module()))
"""What every module has: parameters, buffers, hooks."""


def batching_of(network: Network, loss: str, signature: Signature) -> Batching:
    """Return how a network's clients may train together ("fused" or "vmap"), or "none", and why; found once.

    They may if a module's examples do not reach one another, nothing but parameters changes in training, and a trial
    step of two clients of unlike sizes equals that of the loop to rounding.
    """
    found = _FOUND.setdefault(network.identity, {})
    if loss not in found:
        other = _other_randomness(network, signature)
        reason = refusal(network) or other
        found[loss] = ("none", reason) if reason else _tried(network, loss, signature)
    return found[loss]


def refusal(network: Network) -> str:
    """Return what rules a network out before it is run, or nothing."""
    if network.batch_norms:
        return "BatchNorm mixes the examples of a batch, and keeps statistics"
    if any(_has_hooks(parameter) for parameter in network.module.parameters()):
        return "a parameter has hooks of its own"
    dtypes = {str(group.values.dtype).removeprefix("torch.") for group in network.groups}
    if len(network.groups) > 1:
        return "its parameters are of several dtypes or on several devices"
    if dtypes != {"float32"}:
        return f"its parameters are {dtypes.pop()}, not float32"
    return ""


def _has_hooks(parameter: nn.Parameter) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))  # noqa: SLF001 - torch has no other way to ask


def _other_randomness(network: Network, signature: Signature) -> str:
    return randomness_of(network, signature).other


def _tried(network: Network, loss: str, signature: Signature) -> Batching:
    """Return what trial steps find of a network."""
    with trial(network) as values:
        try:
            reason = apart(network, signature, values)
            if reason:
                return "none", reason
            pair = _pair(network, loss, signature, values)
            no_stack = _no_stack(network, loss, pair)
            if not no_stack:
                return "fused", "it is a stack of layers, and a trial step of two clients equals that of the loop"
            if near(network, _stacked(network, loss, signature, pair), pair.alone):
                return "vmap", f"{no_stack}; a trial step of two clients under vmap equals that of the loop"
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises is why the loop is taken
            return "none", f"a trial step of it raised {named(error)}"
    return "none", "under vmap its gradients differ from those of the loop"


def apart(network: Network, signature: Signature, values: Tensor) -> str:
    """Return how examples reach one another or what a step leaves behind, if they do; within a trial."""
    return _keeps_state(network, signature, values) or _mixes_examples(network, signature, values)


def _outputs(network: Network, signature: Signature, x: Tensor) -> Tensor:
    """Return the outputs of one client in training mode, with its dropout."""
    draws = draws_of(network, signature)
    if draws is None:
        return network(x)
    draws.set(_SEED, 1)
    with draws:
        return network(x)


def _keeps_state(network: Network, signature: Signature, values: Tensor) -> str:
    """Return which buffer or attribute a training step changes, after a first one that may fill caches."""
    network.load(values)
    x, _ = trial_examples(network, signature, _SIZES[0])
    _outputs(network, signature, x)
    attributes = _attributes(network.module)
    buffers = {buffer.name: (buffer, buffer.get(), buffer.get().clone()) for buffer in network.buffers}
    _outputs(network, signature, x)
    for name, (buffer, before, copy) in buffers.items():
        if buffer.get().data_ptr() != before.data_ptr() or not torch.equal(before, copy):
            return f"its buffer {name!r} changes in training"
    changed = sorted(key for key, value in _attributes(network.module).items() if attributes.get(key) != value)
    return f"its attribute {changed[0]!r} changes in training" if changed else ""


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return every plain attribute of a module and its parts: numbers and texts as they are, others by identity."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if key not in _PLAIN:
                plain = value is None or isinstance(value, (bool, int, float, str))
                size = len(value) if isinstance(value, (list, dict, set)) else 0
                found[f"{path}.{key}" if path else key] = value if plain else (id(value), size)
    return found


def _mixes_examples(network: Network, signature: Signature, values: Tensor) -> str:
    """Return that the outputs for one example depend on others, if they do."""
    network.load(values)
    count = _SIZES[0]
    (x, _), (others, _) = (trial_examples(network, signature, count, seed=seed) for seed in (0, 1))
    whole = _outputs(network, signature, x).detach()
    near = float(whole.abs().max()) * _MIXED
    for place in (0, count - 1):
        changed = x.clone()
        changed[place] = others[place]
        rest = [i for i in range(count) if i != place]
        if not _near(_outputs(network, signature, changed)[rest], whole[rest], near):
            return "the outputs for one example depend on the others in its batch"
    if not _near(_outputs(network, signature, x[:-1]), whole[:-1], near):
        return "the outputs for an example depend on how many are in its batch"
    return ""


class _Pair(NamedTuple):
    """Two clients of unlike sizes in a trial step, and the gradients [2, size] that the loop finds for each alone."""

    parameters: Tensor
    x: Tensor
    y: Tensor
    shares: Tensor
    alone: Tensor


def _pair(network: Network, loss: str, signature: Signature, values: Tensor) -> _Pair:
    count = _SIZES[0]
    x, y = trial_examples(network, signature, 2 * count)
    x, y = x.view(2, count, *x.shape[1:]), y.view(2, count)
    both = torch.stack([values, values.roll(1) * _SHARE + values * (1 - _SHARE)])
    each = torch.stack(
        [alone(network, loss, signature, both[i], (x[i, :size], y[i, :size])) for i, size in enumerate(_SIZES)]
    )
    x[1, -1], y[1, -1] = x[1, 0], y[1, 0]
    shares = torch.tensor([[1 / count if place < size else 0 for place in range(count)] for size in _SIZES])
    return _Pair(both, x, y, (shares / shares.sum(dim=1, keepdim=True)).to(x.device), each)


def _no_stack(network: Network, loss: str, pair: _Pair) -> str:
    """Return why a network is no stack of layers, or nothing where it is one and agrees with the loop."""
    try:
        program = program_of(network, loss)
    except NoStackError as reason:
        return str(reason)
    parameters, gradients = pair.parameters.numpy(), np.zeros(pair.parameters.shape, dtype=np.float32)
    program.gradients(
        views_of(network.branch, parameters),
        views_of(network.branch, gradients),
        pair.x.numpy(),
        pair.y.numpy(),
        pair.shares.numpy(),
        scale=1.0,
        draws=MaskSource(np.full(2, _SEED), 1),
    )
    agrees = near(network, torch.from_numpy(gradients), pair.alone)
    return "" if agrees else "as a stack of layers its gradients differ from those of the loop"


def _stacked(network: Network, loss: str, signature: Signature, pair: _Pair) -> Tensor:
    """Return the gradients of both clients under vmap: float32 [2, size]."""
    runner = stacked(network, signature)
    buffers = torch.from_numpy(network.first_buffers()).to(pair.x.device).expand(2, -1)
    leaves = runner.leaves(pair.parameters.to(pair.x.device))
    seeds = torch.full((2,), _SEED)
    step = Step(pair.x, pair.y.reshape(-1), pair.shares, seeds, 1)
    with runner.borrowed():
        found, _ = runner.step(leaves, runner.buffers(buffers), EACH[loss], step)
    gradients = torch.zeros(pair.parameters.shape)
    for (place, _), gradient in zip(runner.spans, found, strict=True):
        gradients[:, place] = gradient.detach().reshape(2, -1).cpu()
    return gradients


def near(network: Network, gradients: Tensor, wanted_ones: Tensor) -> bool:
    """Return whether gradients [n, size] are those that are wanted, parameter by parameter, up to rounding."""
    floor = float(wanted_ones.abs().max()) * _FLOOR
    wanted, found = (views_of(network.branch, array.numpy()) for array in (wanted_ones, gradients))
    return all(
        np.allclose(found[name], array, rtol=0, atol=float(np.abs(array).max(initial=0)) * _TOLERANCE + floor)
        for name, array in wanted.items()
    )


def alone(network: Network, loss: str, signature: Signature, values: Tensor, examples: tuple[Tensor, Tensor]) -> Tensor:
    """Return the gradient of one client's mean loss, as the loop takes it: float32 [size]."""
    network.load(values)
    (group,) = network.groups
    network.collect_gradients()
    x, y = examples
    LOSSES[loss](_outputs(network, signature, x), y).backward()  # type: ignore[no-untyped-call]  # torch has no types there
    return group.gradients.to("cpu", copy=True)


def _near(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    return torch.allclose(found.detach(), wanted, rtol=0, atol=tolerance, equal_nan=True)
