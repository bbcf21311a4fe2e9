"""Whether a module's clients may train together, found by trying: its reason is shown to users."""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hansa.core.nouns import Signature
from hansa.training.randomness import draws_of, named, randomness_of, trial, trial_examples
from hansa.training.torch_loop import LOSSES
from hansa.training.torch_model import Network
from hansa.training.vmapped import EACH, Step, stacked

Batching = tuple[str, str]
"""("vmap" or "none", why)."""

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

_FOUND: Final[WeakKeyDictionary[Network, dict[str, Batching]]] = WeakKeyDictionary()

_PLAIN: Final = frozenset(vars(nn.Module()))
"""What every module has: parameters, buffers, hooks."""


def batching_of(network: Network, loss: str, signature: Signature) -> Batching:
    """Return ("vmap", why) if a network's clients may train together, else ("none", why not); found once.

    They may if a module's examples do not reach one another, nothing but parameters changes in training, and a trial
    step of two clients of unlike sizes equals that of the loop to rounding.
    """
    found = _FOUND.setdefault(network, {})
    if loss not in found:
        reason = _refusal(network) or _other_randomness(network, signature) or _tried(network, loss, signature)
        found[loss] = ("none", reason) if reason else ("vmap", "a trial step of two clients equals that of the loop")
    return found[loss]


def _refusal(network: Network) -> str:
    """Return what rules a network out before it is run, or nothing."""
    if network.batch_norms:
        return "BatchNorm mixes the examples of a batch, and keeps statistics"
    dtypes = {str(group.values.dtype).removeprefix("torch.") for group in network.groups}
    if len(network.groups) > 1:
        return "its parameters are of several dtypes or on several devices"
    if dtypes != {"float32"}:
        return f"its parameters are {dtypes.pop()}, not float32"
    return ""


def _other_randomness(network: Network, signature: Signature) -> str:
    return randomness_of(network, signature).other


def _tried(network: Network, loss: str, signature: Signature) -> str:
    """Return what trial steps found against a network, or nothing."""
    with trial(network) as values:
        for check in (_keeps_state, _mixes_examples, _differs):
            try:
                reason = check(network, loss, signature, values)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises is why the loop is taken
                return f"a trial step of it raised {named(error)}"
            if reason:
                return reason
    return ""


def _outputs(network: Network, signature: Signature, x: Tensor) -> Tensor:
    """Return the outputs of one client in training mode, with its dropout."""
    draws = draws_of(network, signature)
    if draws is None:
        return network(x)
    draws.set(_SEED, 1)
    with draws:
        return network(x)


def _keeps_state(network: Network, loss: str, signature: Signature, values: Tensor) -> str:  # noqa: ARG001 - as every check
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


def _mixes_examples(network: Network, loss: str, signature: Signature, values: Tensor) -> str:  # noqa: ARG001 - as every check
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


def _differs(network: Network, loss: str, signature: Signature, values: Tensor) -> str:
    """Return that two clients' gradients together are not those of the loop, if so."""
    count = _SIZES[0]
    x, y = trial_examples(network, signature, 2 * count)
    x, y = x.view(2, count, *x.shape[1:]), y.view(2, count)
    both = torch.stack([values, values.roll(1) * _SHARE + values * (1 - _SHARE)])
    alone = torch.stack(
        [_alone(network, loss, signature, both[i], (x[i, :size], y[i, :size])) for i, size in enumerate(_SIZES)]
    )
    x[1, -1], y[1, -1] = x[1, 0], y[1, 0]
    shares = torch.tensor([[1 / count if place < size else 0 for place in range(count)] for size in _SIZES])
    shares = (shares / shares.sum(dim=1, keepdim=True)).to(x.device)
    runner = stacked(network, signature)
    buffers = torch.from_numpy(network.first_buffers()).to(x.device).expand(2, -1)
    leaves = runner.leaves(both.to(x.device))
    seeds = torch.full((2,), _SEED)
    with runner.borrowed():
        gradients, _ = runner.step(
            leaves, runner.buffers(buffers), EACH[loss], Step(x, y.reshape(-1), shares, seeds, 1)
        )
    floor = float(alone.abs().max()) * _FLOOR
    for (place, _), gradient in zip(runner.spans, gradients, strict=True):
        wanted = alone[:, place]
        if not _near(gradient.reshape(2, -1).cpu(), wanted, float(wanted.abs().max()) * _TOLERANCE + floor):
            return "under vmap its gradients differ from those of the loop"
    return ""


def _alone(
    network: Network, loss: str, signature: Signature, values: Tensor, examples: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the gradient of one client's mean loss, as the loop takes it: float32 [size]."""
    network.load(values)
    (group,) = network.groups
    group.gradients.zero_()
    x, y = examples
    LOSSES[loss](_outputs(network, signature, x), y).backward()  # type: ignore[no-untyped-call]  # torch has no types there
    return group.gradients.to("cpu", copy=True)


def _near(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    return torch.allclose(found.detach(), wanted, rtol=0, atol=tolerance, equal_nan=True)
