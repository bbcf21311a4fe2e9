"""A torch module as a round sees it: what of it travels, what a client keeps, what starts afresh.

Trainable parameters are views of one flat vector for each dtype, and so are their gradients: hooks and
optimizers are elementwise, so that they step the whole vector in one go.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Final
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hansa.core.layout import Branch, Floats, Parameter
from hansa.core.nouns import Signature
from hansa.core.registry import import_named
from hansa.core.sections import Model
from hansa.training.kernels import chosen
from hansa.training.torch_factory import (
    addresses,
    build_module,
    extent,
    input_kind,
    is_half,
    materialise,
    outputs_as,
    outputs_of,
    refuse_changed,
    refuse_meta,
    try_forward,
    unsuitable,
)

_FIXED_SEED: Final = 0
"""What a factory is seeded with for all that does not travel: the same on every client and in every run."""

_NETWORKS: Final = 4
"""The most networks that a thread keeps: one for each model and device. They end with the thread."""
_OF_THREAD: Final = threading.local()

_TAKEN: Final[WeakSet[nn.Module]] = WeakSet()
"""The modules that a network of this process works on."""


@dataclass(frozen=True, eq=False)
class Group:
    """The trainable parameters of one dtype: where they lie in the branch, and the storage of both vectors.

    The module's parameters are views of ``values`` [size]; ``members`` are those that take a gradient, each with
    its place in ``gradients`` [size].
    """

    place: slice
    values: Tensor
    members: tuple[tuple[nn.Parameter, slice], ...]

    @cached_property
    def gradients(self) -> Tensor:
        """Return where gradients add up, which means nothing until :meth:`Network.collect_gradients`.

        It takes memory from its first use on: steps that need no gradients of all parameters at once do without.
        """
        return torch.empty_like(self.values)


@dataclass(frozen=True, eq=False)
class Buffer:
    """One buffer: the modules and attributes that hold it, its first value, and whether it is kept.

    A floating, persistent buffer is kept (by the client, or averaged); any other starts afresh each time.
    """

    name: str
    owners: tuple[tuple[nn.Module, str], ...]
    initial: Tensor
    kept: bool

    def set(self, value: Tensor) -> None:
        """Put a value into every module that shares the buffer (which then owns it)."""
        for owner, attribute in self.owners:
            setattr(owner, attribute, value)

    def get(self) -> Tensor:
        """Return its value now; a module may have replaced the tensor."""
        owner, attribute = self.owners[0]
        value: Tensor = getattr(owner, attribute)
        return value.detach()


@dataclass(frozen=True, eq=False)
class Network:
    """A module and its parts. It is scratch space: ``load`` resets all that a client could have changed."""

    name: str
    module: nn.Module
    parameters: tuple[Parameter, ...]
    groups: tuple[Group, ...]
    buffers: tuple[Buffer, ...]
    result: Tensor
    first: Mapping[str, tuple[nn.Parameter, int]]
    """Every parameter of the module and its address, as they were before the module first ran."""
    identity: Identity = field(default_factory=lambda: Identity())  # noqa: PLW0108 - the class stands further below

    @cached_property
    def branch(self) -> Branch:
        """Return the branch of trainable parameters."""
        return Branch("params", self.parameters)

    @cached_property
    def kept_buffers(self) -> tuple[Buffer, ...]:
        """Return the floating, persistent buffers."""
        return tuple(buffer for buffer in self.buffers if buffer.kept)

    @cached_property
    def buffer_branch(self) -> Branch:
        """Return the floating, persistent buffers as a branch; its size may be 0."""
        return Branch(
            "buffers", tuple(Parameter(buffer.name, tuple(buffer.initial.shape)) for buffer in self.kept_buffers)
        )

    @cached_property
    def outputs(self) -> int:
        """Return the number of outputs of one example."""
        return outputs_of(self.result)

    @cached_property
    def input_kind(self) -> tuple[torch.dtype, torch.device]:
        """Return the dtype (of inputs that are no tokens) and device of the model."""
        return input_kind(self.module)

    @cached_property
    def tied(self) -> frozenset[int]:
        """Return the ids of the parameters whose memory is another parameter's too."""
        places = Counter((id(group), place.start) for group in self.groups for _, place in group.members)
        return frozenset(
            id(parameter)
            for group in self.groups
            for parameter, place in group.members
            if places[id(group), place.start] > 1
        )

    @cached_property
    def batch_norms(self) -> tuple[nn.Module, ...]:
        """Return the layers whose training needs more than one example."""
        return tuple(layer for layer in self.module.modules() if isinstance(layer, _BatchNorm))

    def first_values(self) -> Floats:
        """Return the trainable parameters of a network that has loaded nothing yet: float32 [size]."""
        values = torch.empty(self.branch.size)
        self.read(values)
        return values.numpy()

    def first_buffers(self) -> Floats:
        """Return the first values of the floating, persistent buffers: float32 [size of them]."""
        parts = [buffer.initial.reshape(-1).to("cpu", torch.float32).numpy() for buffer in self.kept_buffers]
        return np.concatenate([np.zeros(0, dtype=np.float32), *parts])

    def load(self, values: Tensor, buffers: Tensor | None = None) -> None:
        """Load parameters float32 [size] and buffers float32 [size of them]; all else becomes as first built.

        Without ``buffers`` they, too, get their first values.
        """
        for group in self.groups:
            group.values.copy_(values[group.place])
        start = 0
        for buffer in self.buffers:
            value = buffer.initial.clone()
            if buffer.kept and buffers is not None:
                value.copy_(buffers[start : start + value.numel()].view(value.shape))
                start += value.numel()
            buffer.set(value)

    def held(self, values: Floats) -> Floats:
        """Return parameters [..., size] as the model's own dtypes hold them: half precisions round them."""
        rounded = values
        for group in self.groups:
            if is_half(group.values):
                rounded = rounded.copy() if rounded is values else rounded
                part = torch.tensor(rounded[..., group.place])
                rounded[..., group.place] = part.to(group.values.dtype).to(torch.float32).numpy()
        return rounded

    def collect_gradients(self) -> None:
        """Let the next gradients add up in the groups' vectors, from zero."""
        for group in self.groups:
            group.gradients.zero_()
            for parameter, place in group.members:
                parameter.grad = group.gradients[place].view(parameter.shape)

    def release_gradients(self) -> None:
        """Let the next gradients lie where they are made, which saves passes over all of them."""
        for group in self.groups:
            for parameter, _ in group.members:
                parameter.grad = None

    def descend(self, rate: float) -> None:
        """Apply w <- w - rate g to every parameter that has a gradient, and release the gradients."""
        with torch.no_grad():
            for group in self.groups:
                for parameter, _ in group.members:
                    if parameter.grad is not None:
                        parameter.add_(parameter.grad, alpha=-rate)
                        parameter.grad = None

    def read(self, values: Tensor) -> None:
        """Copy the trainable parameters to ``values`` float32 [size]."""
        for group in self.groups:
            values[group.place].copy_(group.values)

    def read_change(self, start: Tensor, values: Tensor, moved: Callable[[Tensor, Tensor], bool] | None = None) -> None:
        """Write how far the trainable parameters are from ``start`` to ``values``, both float32 [size].

        ``moved`` may know it of one that is still at its start: it writes its change, or returns False.
        """
        for group in self.groups:
            begin, known = group.place.start, [] if moved is None else group.members
            for parameter, place in known:
                there = slice(group.place.start + place.start, group.place.start + place.stop)
                if moved is not None and moved(parameter, values[there].view(parameter.shape)):
                    self._read_change(group, start, values, slice(begin, there.start))
                    begin = there.stop
            self._read_change(group, start, values, slice(begin, group.place.stop))

    @staticmethod
    def _read_change(group: Group, start: Tensor, values: Tensor, there: slice) -> None:
        own = slice(there.start - group.place.start, there.stop - group.place.start)
        torch.sub(group.values[own].to(values), start[there], out=values[there])

    def read_buffers(self, values: Tensor) -> None:
        """Copy the floating, persistent buffers to ``values`` float32 [size of them]."""
        start = 0
        for buffer in self.kept_buffers:
            value = buffer.get()
            values[start : start + value.numel()].copy_(value.reshape(-1))
            start += value.numel()

    def check_parameters(self) -> None:
        """Raise ModelError where running the module made, replaced or moved parameters."""
        refuse_changed(self.module, self.name, self.first)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs for examples x [b, ...]: [b, outputs], in float32 or better."""
        return outputs_as(self.module(x), (len(x), self.outputs), self.name)


class Identity:
    """What all networks of one model have in common: what is found of one holds for the others."""


def network_of(model: Model, signature: Signature) -> Network:
    """Return this thread's one network of this model, made once and used by one client after another."""
    if not hasattr(_OF_THREAD, "network"):
        _OF_THREAD.network = lru_cache(maxsize=_NETWORKS)(_network)
    arguments = json.dumps(_plain(model.arguments))
    network: Network = _OF_THREAD.network(
        import_named(model.factory), model.factory, arguments, signature, chosen().device
    )
    return network


def fresh_network(model: Model, signature: Signature, seed: int) -> Network:
    """Return a new network whose first values follow from ``seed``."""
    return _build(import_named(model.factory), model.factory, _plain(model.arguments), signature, seed)


def _network(factory: Callable[..., Any], name: str, arguments: str, signature: Signature, device: str) -> Network:
    network = _build(factory, name, json.loads(arguments), signature, _FIXED_SEED)
    return replace(network, identity=_identity(factory, arguments, signature, device))


@lru_cache(maxsize=4 * _NETWORKS)
def _identity(factory: Callable[..., Any], arguments: str, signature: Signature, device: str) -> Identity:  # noqa: ARG001 - they are what is identified
    return Identity()


def _plain(arguments: Mapping[str, Any]) -> Any:
    """Return arguments as a plan file would hold them (tuples become lists), so that both ways build one model."""
    return json.loads(json.dumps(dict(arguments), sort_keys=True))


def _build(
    factory: Callable[..., Any], name: str, arguments: Mapping[str, Any], signature: Signature, seed: int
) -> Network:
    module = build_module(factory, name, arguments, seed)
    if module in _TAKEN:
        raise unsuitable(
            "A factory builds a new module each time that it is called.",
            f"{name!r} returned the same module twice, so that one client's training would reach another.",
            "Build the module inside the function, without a cache or a global.",
        )
    _TAKEN.add(module)
    materialise(module, name, signature, seed)
    refuse_meta(module, name)
    if device := chosen().device:
        module.to(device)
    tied = _tied(module, name)
    parameters, groups = _flatten(tied)
    buffers = _buffers(module)
    if not parameters:
        raise unsuitable(
            "A model needs parameters to train.",
            f"{name!r} has none that requires a gradient.",
            "Leave requires_grad on for what is to be trained.",
        )
    first = addresses(module)
    result = try_forward(module, name, signature)
    refuse_changed(module, name, first)
    return Network(name, module, parameters, groups, buffers, result, first)


def _tied(module: nn.Module, name: str) -> list[tuple[str, list[nn.Parameter]]]:
    """Return the trainable parameters once per storage: their first name, and all that are this storage."""
    shared: dict[Any, tuple[str, list[nn.Parameter]]] = {}
    for key, parameter in module.named_parameters():
        storage = (parameter.data_ptr(), parameter.shape, parameter.stride()) if parameter.numel() else key
        shared.setdefault(storage, (key, []))[1].append(parameter)
    _refuse_overlaps(name, {key: parameters[0] for key, parameters in shared.values()})
    trained = [item for item in shared.values() if any(parameter.requires_grad for parameter in item[1])]
    for key, (parameter, *_) in trained:
        if not parameter.is_floating_point():
            raise unsuitable(
                "Parameters travel as real numbers.",
                f"{key!r} of {name!r} is {parameter.dtype}.",
                "Hold complex parameters as pairs of real ones (torch.view_as_complex in forward).",
            )
    return trained


def _refuse_overlaps(name: str, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise ModelError where two parameters share memory without being the same view of it."""
    spans = sorted((*extent(value), key) for key, value in parameters.items() if value.numel())
    for (_, end, first), (start, _, second) in pairwise(spans):
        if start < end:
            raise unsuitable(
                "Parameters that share memory must be the same parameter.",
                f"{first!r} and {second!r} of {name!r} are different views of one storage.",
                "Use one nn.Parameter in both places (transposed in forward), or .clone() one of them.",
            )


def _flatten(tied: list[tuple[str, list[nn.Parameter]]]) -> tuple[tuple[Parameter, ...], tuple[Group, ...]]:
    """Move parameters into flat vectors, one for each dtype and device, in order of first appearance."""
    kinds: dict[Any, list[tuple[str, list[nn.Parameter]]]] = {}
    for item in tied:
        kinds.setdefault((item[1][0].dtype, item[1][0].device), []).append(item)
    parameters: list[Parameter] = []
    groups: list[Group] = []
    start = 0
    for (dtype, device), items in kinds.items():
        size = sum(shared[0].numel() for _, shared in items)
        values = torch.zeros(size, dtype=dtype, device=device)
        members: list[tuple[nn.Parameter, slice]] = []
        offset = 0
        for key, shared in items:
            parameters.append(Parameter(key, tuple(shared[0].shape)))
            place = slice(offset, offset + shared[0].numel())
            members += [(parameter, place) for parameter in _moved(shared, values[place])]
            offset = place.stop
        groups.append(Group(slice(start, start + size), values, tuple(members)))
        start += size
    return tuple(parameters), tuple(groups)


def _moved(shared: Iterable[nn.Parameter], values: Tensor) -> list[nn.Parameter]:
    """Make parameters that are one storage views of ``values``; return those that take a gradient."""
    for parameter in shared:
        values[:] = parameter.detach().reshape(-1)
        parameter.data = values.view(parameter.shape)
        parameter.grad = None
    return [parameter for parameter in shared if parameter.requires_grad]


def _buffers(module: nn.Module) -> tuple[Buffer, ...]:
    """Return every buffer once, with all modules that share it."""
    persistent = {id(value) for value in module.state_dict(keep_vars=True).values()}
    found: dict[int, tuple[str, Tensor, list[tuple[nn.Module, str]]]] = {}
    for path, owner in module.named_modules():
        for attribute, value in owner.named_buffers(recurse=False):
            name = f"{path}.{attribute}" if path else attribute
            found.setdefault(id(value), (name, value, []))[2].append((owner, attribute))
    return tuple(
        Buffer(name, tuple(owners), value.detach().clone(), value.is_floating_point() and id(value) in persistent)
        for name, value, owners in found.values()
    )
