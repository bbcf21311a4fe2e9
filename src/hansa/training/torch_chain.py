"""From a torch module to the fused path's stack of layers, where the module is one.

The module is traced with torch.fx. What comes out must be a chain, each step of a kind that
:mod:`hansa.training.fused_layers` has; anything else is no stack, and another path trains it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn
from torch.nn import functional

from hansa.training.fused import Program
from hansa.training.fused_layers import Activation, Dropout, Embedding, Layer, LayerNorm, Linear, Shape
from hansa.training.torch_model import Identity, Network


class NoStackError(Exception):
    """Says what of a module the fused path has not."""


_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps its hooks; torch has no other way to ask."""

_FOUND: Final[WeakKeyDictionary[Identity, tuple[Layer, ...]]] = WeakKeyDictionary()


def program_of(network: Network, loss: str) -> Program:
    """Return the stack of layers that a network is. Raises NoStackError with the reason if it is none."""
    if network.identity not in _FOUND:
        _FOUND[network.identity] = _stack(network)
    return Program(_FOUND[network.identity], loss)


def _stack(network: Network) -> tuple[Layer, ...]:
    module = network.module
    if len(network.groups) != 1 or network.groups[0].values.dtype != torch.float32:
        raise NoStackError("its parameters are not all float32 on one device")
    if network.groups[0].values.device.type != "cpu":
        raise NoStackError("it is not on the CPU")
    if network.buffers:
        raise NoStackError("it has buffers")
    if any(_hooked(part) for part in module.modules()):
        raise NoStackError("it has hooks of its own")
    if type(module) in _MODULES:
        return tuple(_MODULES[type(module)](module, lambda parameter: _name(network, parameter)))
    module.train()
    try:
        graph = fx.symbolic_trace(module).graph
    except Exception as error:  # any code may be in a module; what cannot be traced is no stack
        raise NoStackError(f"its forward cannot be traced ({type(error).__name__})") from error
    layers = tuple(layer for node in _chain(graph) for layer in _layers(node, network))
    used = [name for layer in layers for name in layer.names]
    if sorted(used) != sorted(parameter.name for parameter in network.parameters):
        raise NoStackError("a parameter is shared, frozen or not used")
    return layers


def _hooked(module: nn.Module) -> bool:
    return any(vars(module)[name] for name in _HOOKS)


def _chain(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the steps between input and output. Raises NoStackError where they are no chain."""
    last: Any = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if last is not None:
                raise NoStackError("its forward takes more than one input")
            last = node
        elif node.op == "output":
            if node.args[0] is not last:
                raise NoStackError("its outputs are not those of its last step")
        elif node.op == "get_attr":
            raise NoStackError(f"its forward takes {node.target!r} itself")
        elif not _is_batch_size(node, last):
            inputs = [argument for argument in node.all_input_nodes if not _is_batch_size(argument, last)]
            if inputs != [last]:
                raise NoStackError("its steps are no chain")
            last = node
            yield node


def _is_batch_size(node: fx.Node, of: Any) -> bool:
    """Return True for x.size(0) and x.shape[0], which a reshape of x may use."""
    if node.op == "call_method" and node.target == "size":
        return bool(node.args == (of, 0))
    if node.op == "call_function" and node.target is getattr:
        return bool(node.args == (of, "shape"))
    if node.op == "call_function" and node.target is operator.getitem:
        inner = node.args[0]
        return bool(node.args[1] == 0 and isinstance(inner, fx.Node) and _is_batch_size(inner, of))
    return False


def _layers(node: fx.Node, network: Network) -> Iterator[Layer]:
    """Yield the layer of one step (none for what does nothing). Raises NoStackError for an unknown one."""
    if node.op == "call_module":
        module = network.module.get_submodule(str(node.target))
        maker = _MODULES.get(type(module))
        if maker is None or node.kwargs or len(node.args) != 1:
            raise NoStackError(f"it has a layer of type {type(module).__name__}")
        yield from maker(module, lambda parameter: _name(network, parameter))
        return
    if node.target in (torch.flatten, "flatten"):
        start, end = (*node.args[1:], *([None] * 2))[:2]
        options = {"start_dim": start if start is not None else 0, "end_dim": end if end is not None else -1}
        if {**options, **node.kwargs} != {"start_dim": 1, "end_dim": -1}:
            raise NoStackError("it flattens more than each example")
        yield Shape()
        return
    if node.target in ("view", "reshape"):
        yield _reshaped(node)
        return
    kind = _FUNCTIONS.get(node.target)
    if kind is None or len(node.args) != 1 or not node.kwargs.keys() <= {"inplace"}:
        raise NoStackError(f"it calls {getattr(node.target, '__name__', node.target)}")
    yield Activation(kind)


def _reshaped(node: fx.Node) -> Shape:
    first, *rest = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple) else node.args[1:]
    if not all(isinstance(size, int) for size in rest) or not rest or (first != -1 and isinstance(first, int)):
        raise NoStackError("it reshapes more than each example")
    if first == -1 and -1 in rest:
        raise NoStackError("it reshapes more than each example")
    return Shape(tuple(int(size) for size in rest))  # type: ignore[arg-type]  # all are int


def _name(network: Network, parameter: nn.Parameter) -> str:
    """Return a parameter's name in the branch. Raises NoStackError for a frozen one."""
    for name, known in network.module.named_parameters():
        if known is parameter and any(each.name == name for each in network.parameters):
            return name
    raise NoStackError("a parameter is shared, frozen or not used")


NameOf = Callable[[nn.Parameter], str]


def _linear(layer: Any, name: NameOf) -> Iterator[Layer]:
    yield Linear(name(layer.weight), None if layer.bias is None else name(layer.bias))


def _embedding(layer: Any, name: NameOf) -> Iterator[Layer]:
    if layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
        raise NoStackError("its embedding has options of its own")
    yield Embedding(name(layer.weight), layer.padding_idx)


def _layer_norm(layer: Any, name: NameOf) -> Iterator[Layer]:
    weight, bias = (None if each is None else name(each) for each in (layer.weight, layer.bias))
    yield LayerNorm(len(layer.normalized_shape), layer.eps, weight, bias)


def _flatten(layer: Any, _: NameOf) -> Iterator[Layer]:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise NoStackError("it flattens more than each example")
    yield Shape()


def _nothing(_layer: Any, _name: NameOf) -> Iterator[Layer]:
    yield from ()


def _activation(kind: str, argument: str | None = None) -> Callable[[Any, NameOf], Iterator[Layer]]:
    def make(layer: Any, _: NameOf) -> Iterator[Layer]:
        yield Activation(kind, 0.0 if argument is None else float(getattr(layer, argument)))

    return make


def _dropout(layer: Any, _: NameOf) -> Iterator[Layer]:
    if layer.p:
        yield Dropout(float(layer.p))


_MODULES: Final[Mapping[type, Callable[[Any, NameOf], Iterator[Layer]]]] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.Flatten: _flatten,
    nn.Identity: _nothing,
    nn.Dropout: _dropout,
    nn.ReLU: _activation("relu"),
    nn.LeakyReLU: _activation("leaky-relu", "negative_slope"),
    nn.ELU: _activation("elu", "alpha"),
    nn.Tanh: _activation("tanh"),
    nn.Sigmoid: _activation("sigmoid"),
    nn.SiLU: _activation("silu"),
}
"""Exact types: a subclass may do something else."""

_FUNCTIONS: Final[Mapping[Any, str]] = {
    functional.relu: "relu",
    torch.relu: "relu",
    "relu": "relu",
    torch.tanh: "tanh",
    functional.tanh: "tanh",
    "tanh": "tanh",
    torch.sigmoid: "sigmoid",
    functional.sigmoid: "sigmoid",
    "sigmoid": "sigmoid",
    functional.silu: "silu",
}
