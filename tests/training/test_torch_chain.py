"""Which modules are stacks of layers, and why others are none; a stack ends where the loop does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hansa.core.layout import COUNT, TRAIN_LOSS
from hansa.core.nouns import Assignment, ClientBatch, ClientContext, Signature
from hansa.core.sections import Model
from hansa.core.streams import Stream, Streams
from hansa.testing import MemoryClients
from hansa.training.optimizers import Sgd
from hansa.training.torch_chain import NoStackError, program_of
from hansa.training.torch_trainer import TorchTrainer

FEATURES = Signature((6,), 3)
IMAGES = Signature((2, 3), 3)
TOKENS = Signature((6,), 3, integer_inputs=True, vocabulary=9)
TRAINER = TorchTrainer(optimizer=Sgd(learning_rate=0.1), epochs=2, batch_size=4)


class Own(nn.Module):
    """Two dense layers, put together by a function of the layers and the examples."""

    def __init__(self, forward: Callable[[Any, Any], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)
        for name, part in parts.items():
            self.add_module(name, part)
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.way(self, x)
        return out


class Doubled(nn.Linear):
    """A dense layer that is none."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Named(nn.Linear):
    """A dense layer of another name."""


class Kept(nn.Module):
    """A forward pass that asks for more than its examples."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(6, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.dense(x if mask is None else x * mask)
        return out


def dense(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), *more, nn.Linear(6, 3))


def tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    module[2].weight = module[0].weight
    return module


def twice() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 3))


def frozen(name: str) -> nn.Module:
    module = dense(nn.Tanh())
    dict(module.named_parameters())[name].requires_grad_(requires_grad=False)
    return module


def hooked(kind: str) -> nn.Module:
    module = dense(nn.Tanh())
    if kind == "forward":
        module[0].register_forward_hook(lambda _module, _inputs, output: output * 2)
    elif kind == "before":
        module[1].register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2,))
    elif kind == "backward":
        module[1].register_full_backward_hook(lambda _module, given, _output: (given[0] * 2,))
    else:
        module[1].register_full_backward_pre_hook(lambda _module, output: (output[0] * 2,))
    return module


def parametrized() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 3))


def with_parameter_hook() -> nn.Module:
    module = dense(nn.Tanh())
    module[0].weight.register_hook(lambda gradient: gradient * 2)
    return module


def own_embedding(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 4, **options), nn.Flatten(), nn.Linear(24, 3))


STACKS: dict[str, tuple[Callable[[], nn.Module], Signature]] = {
    "one dense layer": (lambda: nn.Linear(6, 3), FEATURES),
    "without bias": (lambda: nn.Linear(6, 3, bias=False), FEATURES),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), nn.Linear(4, 3)), FEATURES),
    "view, relu": (
        lambda: Own(lambda m, x: m.second(functional.relu(m.first(x.view(x.size(0), -1))))),
        IMAGES,
    ),
    "reshape by shape": (lambda: Own(lambda m, x: m.second(m.first(x.reshape(x.shape[0], 6)).tanh())), IMAGES),
    "view as a tuple": (lambda: Own(lambda m, x: m.second(torch.sigmoid(m.first(x.view((x.size(0), -1)))))), IMAGES),
    "view with -1 first": (lambda: Own(lambda m, x: m.second(torch.relu(m.first(x.view(-1, 6))))), IMAGES),
    "torch.flatten": (lambda: Own(lambda m, x: m.second(functional.silu(m.first(torch.flatten(x, 1))))), IMAGES),
    "x.flatten": (lambda: Own(lambda m, x: m.second(m.first(x.flatten(start_dim=1)).sigmoid())), IMAGES),
    "relu in place": (lambda: Own(lambda m, x: m.second(functional.relu(m.first(x), inplace=True))), FEATURES),
    "elu": (lambda: dense(nn.ELU(0.7)), FEATURES),
    "leaky": (lambda: dense(nn.LeakyReLU(0.2)), FEATURES),
    "dropout": (lambda: dense(nn.ReLU(), nn.Dropout(0.3)), FEATURES),
    "dropout of nothing": (lambda: dense(nn.ReLU(), nn.Dropout(0.0)), FEATURES),
    "identity": (lambda: dense(nn.Identity(), nn.SiLU()), FEATURES),
    "layer norm": (lambda: dense(nn.LayerNorm(6), nn.Tanh()), FEATURES),
    "layer norm, plain": (lambda: dense(nn.LayerNorm(6, elementwise_affine=False)), FEATURES),
    "layer norm, no bias": (lambda: dense(nn.LayerNorm(6, bias=False)), FEATURES),
    "layer norm, two axes": (
        lambda: nn.Sequential(nn.LayerNorm((2, 3)), nn.Flatten(), nn.Linear(6, 3)),
        IMAGES,
    ),
    "dense along an axis": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)), IMAGES),
    "embedding": (own_embedding, TOKENS),
    "embedding, padding": (lambda: own_embedding(padding_idx=2), TOKENS),
}

OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "residual": (lambda: Own(lambda m, x: m.second(x + m.first(x))), "its steps are no chain"),
    "shared twice": (twice, "a parameter is shared, frozen or not used"),
    "tied": (tied, "a parameter is shared, frozen or not used"),
    "frozen weight": (lambda: frozen("0.weight"), "a parameter is shared, frozen or not used"),
    "frozen bias": (lambda: frozen("2.bias"), "a parameter is shared, frozen or not used"),
    "unused": (lambda: Own(lambda m, x: m.second(x)), "a parameter is shared, frozen or not used"),
    "forward hook": (lambda: hooked("forward"), "it has hooks of its own"),
    "hook before": (lambda: hooked("before"), "it has hooks of its own"),
    "backward hook": (lambda: hooked("backward"), "it has hooks of its own"),
    "hook before backward": (lambda: hooked("before backward"), "it has hooks of its own"),
    "subclass": (lambda: nn.Sequential(Doubled(6, 3)), "its forward takes '0.weight' itself"),
    "subclass that changes nothing": (lambda: nn.Sequential(Named(6, 3)), "its forward takes '0.weight' itself"),
    "parametrized": (parametrized, "Parametrized"),
    "flatten all": (lambda: nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 6)), nn.Linear(6, 3)), "flattens more"),
    "torch.flatten all": (lambda: Own(lambda m, x: m.second(m.first(torch.flatten(x).view(-1, 6)))), "flattens more"),
    "flatten some": (lambda: nn.Sequential(nn.Flatten(1, 1), nn.Linear(6, 3)), "flattens more"),
    "view across examples": (
        lambda: Own(lambda m, x: m.second(m.first(x.view(6, -1).reshape(-1, 6)))),
        "reshapes more",
    ),
    "two unknowns": (lambda: Own(lambda m, x: m.second(m.first(x.view(-1, 6))).view(-1, x.size(1) // 2)), "chain|resh"),
    "scaled": (lambda: Own(lambda m, x: m.second(m.first(x) * 2)), "calls mul"),
    "branch": (lambda: Own(lambda m, x: m.second(m.first(x)) if x.sum() > 0 else m.second(x)), "cannot be traced"),
    "other layer": (lambda: dense(nn.GELU()), "GELU"),
    "buffers": (lambda: dense(nn.BatchNorm1d(6)), "it has buffers"),
    "two inputs": (Kept, "more than one input"),
    "first output of two": (lambda: Own(lambda m, x: (m.second(m.first(x)), x)[0] + 0), "calls add"),
    "dropout as a function": (lambda: Own(lambda m, x: m.second(functional.dropout(m.first(x)))), "calls dropout"),
    "softmax": (lambda: Own(lambda m, x: m.second(torch.softmax(m.first(x), 1))), "calls softmax"),
    "largest norm": (lambda: own_embedding(max_norm=1.0), "embedding has options of its own"),
    "scaled by frequency": (lambda: own_embedding(scale_grad_by_freq=True), "embedding has options of its own"),
    "sparse": (lambda: own_embedding(sparse=True), "embedding has options of its own"),
}


def make(kind: str) -> nn.Module:
    return (STACKS.get(kind) or OTHERS[kind])[0]()


def network(kind: str, signature: Signature) -> Any:
    return TRAINER._network(Model(factory=f"{__name__}:make", arguments={"kind": kind}), signature)


def updates(kind: str, signature: Signature, ordinals: list[int]) -> Any:
    model = Model(factory=f"{__name__}:make", arguments={"kind": kind})
    initial = TRAINER.initial(model, signature, Stream(7))
    layout = initial.layout.with_lanes(COUNT, TRAIN_LOSS)
    draw = np.random.default_rng(1)
    sizes = (9, 4, 13, 1)
    if signature.vocabulary:
        x = [draw.integers(0, signature.vocabulary, (size, *signature.shape)) for size in sizes]
    else:
        x = [draw.standard_normal((size, *signature.shape)).astype(np.float32) for size in sizes]
    data = MemoryClients(x, [draw.integers(0, 3, size) for size in sizes])
    assignment = Assignment(1, layout, initial.values, np.array(ordinals), len(sizes))
    clients = ClientBatch(np.array(ordinals), data, signature)
    return TRAINER.train(model, ClientContext(assignment, clients, Streams(3)), {})[0].values


@pytest.mark.parametrize("kind", STACKS)
def test_a_stack_is_found_and_ends_where_the_loop_does(kind: str) -> None:
    signature = STACKS[kind][1]
    model = Model(factory=f"{__name__}:make", arguments={"kind": kind})
    assert TRAINER.batching(model, signature)[0] == "fused"
    together = updates(kind, signature, [0, 1, 2, 3])
    alone = np.concatenate([updates(kind, signature, [ordinal]) for ordinal in range(4)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_dropout_of_nothing_is_no_layer_at_all() -> None:
    names = [
        type(layer).__name__ for layer in program_of(network("dropout of nothing", FEATURES), "cross-entropy").layers
    ]
    assert names == ["Linear", "Activation", "Linear"]


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_stack_says_why(kind: str) -> None:
    reasons = OTHERS[kind][1]
    signature = TOKENS if "embedding" in reasons else FEATURES
    with pytest.raises(NoStackError) as caught:
        program_of(network(kind, signature), "cross-entropy")
    assert any(reason in str(caught.value) for reason in reasons.split("|")), str(caught.value)


@pytest.mark.parametrize(
    "kind", ["residual", "tied", "shared twice", "frozen weight", "two inputs", "subclass", "scaled"]
)
def test_what_is_no_stack_still_trains_together_and_its_reason_is_told(kind: str) -> None:
    model = Model(factory=f"{__name__}:make", arguments={"kind": kind})
    found, why = TRAINER.batching(model, FEATURES)
    assert found == "vmap"
    assert OTHERS[kind][1] in why
    together = updates(kind, FEATURES, [0, 1, 2, 3])
    alone = np.concatenate([updates(kind, FEATURES, [ordinal]) for ordinal in range(4)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_a_hook_on_a_parameter_is_no_stack_and_trains_as_in_the_loop() -> None:
    OTHERS["hook on a parameter"] = (with_parameter_hook, "")
    together = updates("hook on a parameter", FEATURES, [0, 1, 2, 3])
    alone = np.concatenate([updates("hook on a parameter", FEATURES, [ordinal]) for ordinal in range(4)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5 * np.abs(alone).max())
