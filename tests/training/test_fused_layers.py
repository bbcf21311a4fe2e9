"""Layers with hand-derived gradients against torch's autograd: every one, every loss, any shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from hansa.algorithms.hooks import ControlVariate, Prox
from hansa.core.layout import COUNT, TRAIN_LOSS, Branch, Parameter, views_of
from hansa.core.nouns import Assignment, ClientBatch, ClientContext, Signature
from hansa.core.sections import Model
from hansa.core.streams import Stream, Streams
from hansa.testing import MemoryClients
from hansa.training import fused, fused_turns
from hansa.training.dropout_masks import masks
from hansa.training.fused import Program
from hansa.training.fused_layers import (
    ACTIVATIONS,
    Activation,
    Dropout,
    Embedding,
    Layer,
    LayerNorm,
    Linear,
    MaskSource,
    Shape,
)
from hansa.training.fused_losses import residual
from hansa.training.fused_turns import turned_for
from hansa.training.optimizers import Sgd
from hansa.training.torch_trainer import TorchTrainer

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3)
"""What lies between the axis of the examples and the last axis of a layer's input."""


@dataclass
class Case:
    """One layer with its numbers, and torch's own function of the same parameters for one client."""

    layer: Layer
    x: Any
    parameters: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def check(self, function: Any, *, tokens: bool = False) -> None:
        """Compare output and all derivatives with those of torch, client by client, in double precision."""
        y, saved = self.layer.forward(self.parameters, self.x, None)
        back = np.random.default_rng(self.seed).standard_normal(y.shape).astype(np.float32)
        into = {name: np.full_like(values, np.nan) for name, values in self.parameters.items()}
        down = self.layer.backward(self.parameters, into, saved, back.copy(), onward=not tokens)
        for client in range(len(self.x)):
            x = torch.from_numpy(self.x[client])
            x = x if tokens else x.double().requires_grad_()
            weights = {
                name: torch.from_numpy(values[client]).double().requires_grad_()
                for name, values in self.parameters.items()
            }
            wanted = function(x, **weights)
            wanted.backward(torch.from_numpy(back[client]).double())
            near(y[client], wanted)
            for name, weight in weights.items():
                near(into[name][client], weight.grad)
            if not tokens:
                near(down[client], x.grad)


def near(found: Any, wanted: Tensor | None) -> None:
    assert wanted is not None
    reference = wanted.detach().numpy()
    scale = max(1.0, float(np.abs(reference).max(initial=0)))
    assert found.shape == reference.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference, rtol=0, atol=2e-5 * scale)


def numbers(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 4),
    SHAPES,
    st.integers(1, 6),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_a_dense_layer(
    count: int, between: list[int], inputs: int, outputs: int, bias: bool, transposed: bool, seed: int
) -> None:
    shape = (inputs, outputs) if transposed else (outputs, inputs)
    parameters = {"w": numbers(seed, count, *shape)} | ({"b": numbers(seed + 1, count, outputs)} if bias else {})
    layer = Linear("w", "b" if bias else None, transposed)

    def function(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return functional.linear(x, w.T if transposed else w, b)

    Case(layer, numbers(seed + 2, count, *between, inputs), parameters).check(function)
    assert set(layer.names) == set(parameters)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 4),
    SHAPES,
    st.integers(1, 6),
    st.integers(1, 5),
    st.one_of(st.none(), st.just(0)),
    st.integers(0, 99),
)
def test_an_embedding_adds_what_a_token_gets_and_leaves_its_padding(
    count: int, shape: list[int], vocabulary: int, width: int, padding: int | None, seed: int
) -> None:
    tokens = np.random.default_rng(seed).integers(0, vocabulary, (count, *shape))

    def function(x: Tensor, w: Tensor) -> Tensor:
        return functional.embedding(x, w, padding_idx=padding)

    Case(Embedding("w", padding), tokens, {"w": numbers(seed, count, vocabulary, width)}).check(function, tokens=True)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    SHAPES,
    st.lists(st.integers(1, 5), min_size=1, max_size=2),
    st.sampled_from([(), ("w",), ("w", "b")]),
    st.sampled_from([1e-5, 1e-2]),
    st.integers(0, 99),
)
def test_layer_norm_with_and_without_weight_and_bias(
    count: int, between: list[int], normalised: list[int], affine: tuple[str, ...], epsilon: float, seed: int
) -> None:
    # Where numbers are nearly equal, derivatives are as large as 1 / sqrt(epsilon): they are kept apart.
    x = numbers(seed, count, *between, *normalised) / 5 + np.arange(np.prod(normalised)).reshape(normalised) % 7
    parameters = {name: numbers(place, count, *normalised) for place, name in enumerate(affine)}
    layer = LayerNorm(len(normalised), epsilon, *affine)

    def function(x: Tensor, w: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        return functional.layer_norm(x, normalised, w, b, epsilon)

    if np.prod(normalised) > 1:
        Case(layer, x.astype(np.float32), parameters).check(function)


TORCH = {
    "relu": lambda x, _: torch.relu(x),
    "leaky-relu": functional.leaky_relu,
    "elu": functional.elu,
    "tanh": lambda x, _: torch.tanh(x),
    "sigmoid": lambda x, _: torch.sigmoid(x),
    "silu": lambda x, _: functional.silu(x),
}


@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 3),
    shape=SHAPES,
    argument=st.sampled_from([0.01, 0.5, 1.0, 2.0]),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_an_activation(kind: str, count: int, shape: list[int], argument: float, spread: float, seed: int) -> None:
    x = numbers(seed, count, *shape, 3) * np.float32(spread)
    Case(Activation(kind, argument), x).check(lambda x: TORCH[kind](x, argument))


@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
@pytest.mark.parametrize("value", [-1e4, -100.0, -0.0, 0.0, 100.0, 1e4])
def test_an_activation_where_it_is_flat_or_bends(kind: str, value: float) -> None:
    """At 0 torch chooses a one-sided derivative, and the trial of a module compares with torch."""
    x = np.full((1, 1, 1), value, dtype=np.float32)
    with np.errstate(all="raise", under="ignore"):
        Case(Activation(kind, 0.5), x).check(lambda x: TORCH[kind](x, 0.5))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 99))
def test_a_shape_and_back(count: int, batch: int, shape: list[int], seed: int) -> None:
    x = numbers(seed, count, batch, *shape)
    Case(Shape(), x).check(lambda x: x.flatten(1))
    Case(Shape((*reversed(shape),)), x).check(lambda x: x.reshape(batch, *reversed(shape)))
    Case(Shape((-1, 1)), x).check(lambda x: x.reshape(batch, -1, 1))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), SHAPES, st.floats(0.05, 0.95), st.integers(0, 99))
def test_dropout_multiplies_by_the_masks_that_the_loop_draws(count: int, shape: list[int], p: float, seed: int) -> None:
    x, draws = numbers(seed, count, *shape, 5), MaskSource(np.arange(count) + seed, 3, calls=2)
    layer = Dropout(p)
    y, saved = layer.forward({}, x, draws)
    mask = masks(np.arange(count) + seed, 3, 2, x[0].size, p).reshape(x.shape)
    np.testing.assert_array_equal(y, x * mask)
    assert draws.calls == 3
    back = numbers(seed + 1, *y.shape)
    np.testing.assert_array_equal(layer.backward({}, {}, saved, back.copy(), onward=True), back * mask)
    assert layer.forward({}, x, None)[0] is x


LOSSES = {
    "squared-error": lambda out, y: functional.mse_loss(out[:, 0], y, reduction="none"),
    "binary-cross-entropy": lambda out, y: functional.binary_cross_entropy_with_logits(out[:, 0], y, reduction="none"),
    "cross-entropy": lambda out, y: functional.cross_entropy(out, y, reduction="none"),
}


@pytest.mark.parametrize("loss", sorted(LOSSES))
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 3),
    batch=st.integers(1, 5),
    classes=st.integers(2, 6),
    spread=st.sampled_from([0.1, 1.0, 40.0]),
    seed=st.integers(0, 99),
)
def test_a_loss_and_its_derivative(loss: str, count: int, batch: int, classes: int, spread: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    outputs = numbers(seed, count, batch, classes if loss == "cross-entropy" else 1) * np.float32(spread)
    y: Any = draw.integers(0, classes if loss == "cross-entropy" else 2, (count, batch))
    y = draw.standard_normal((count, batch)).astype(np.float32) if loss == "squared-error" else y
    weight = draw.uniform(0, 2, (count, batch)).astype(np.float32)
    back, losses = residual(loss, outputs.copy(), y, weight)
    for client in range(count):
        out = torch.from_numpy(outputs[client]).double().requires_grad_()
        label = torch.from_numpy(y[client])
        wanted = LOSSES[loss](out, label if loss == "cross-entropy" else label.double())
        (wanted * torch.from_numpy(weight[client])).sum().backward()
        near(back[client], out.grad)
        near(losses[client].astype(np.float32), wanted)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(0, 99), st.floats(0.1, 2.0))
def test_a_stack_writes_scaled_gradients_of_the_weighted_mean_and_padding_counts_nothing(
    count: int, seed: int, scale: float
) -> None:
    branch = Branch(
        "params",
        tuple(Parameter(name, shape) for name, shape in [("e", (5, 3)), ("n", (3,)), ("w", (4, 6)), ("b", (4,))]),
    )
    layers = (Embedding("e"), LayerNorm(1, 1e-5, "n"), Activation("tanh"), Shape(), Linear("w", "b"))
    draw = np.random.default_rng(seed)
    vectors = numbers(seed, count, branch.size)
    x, y = draw.integers(0, 5, (count, 3, 2)), draw.integers(0, 4, (count, 3))
    share = draw.uniform(0.1, 1, (count, 3)).astype(np.float32)
    share[:, 2] = 0
    parameters, into = views_of(branch, vectors), views_of(branch, np.full_like(vectors, np.nan))
    loss = Program(layers, "cross-entropy").gradients(parameters, into, x, y, share, scale=scale, draws=None)
    for client in range(count):
        w = {name: torch.from_numpy(v[client].copy()).double().requires_grad_() for name, v in parameters.items()}
        hidden = functional.layer_norm(functional.embedding(torch.from_numpy(x[client]), w["e"]), [3], w["n"])
        outputs = functional.linear(torch.tanh(hidden).flatten(1), w["w"], w["b"])
        each = functional.cross_entropy(outputs, torch.from_numpy(y[client]), reduction="none")
        wanted = (each * torch.from_numpy(share[client]).double()).sum()
        (scale * wanted).backward()
        assert loss[client] == pytest.approx(float(wanted.detach()), rel=1e-5)
        for name, weight in w.items():
            near(into[name][client], weight.grad)


# Turned first weights


FEATURES, HIDDEN = 5, 64
SIGNATURE = Signature((FEATURES,), 3)


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3))


WIDE = Model(factory=f"{__name__}:wide")


def trained(*, sizes: tuple[int, ...], rows: bool = False, **work: Any) -> tuple[Any, Any]:
    """Return the updates of some clients, and what they keep; ``rows``: every client starts from its own model."""
    trainer = TorchTrainer(**{"batch_size": 4, "epochs": 2, "optimizer": Sgd(learning_rate=0.1), **work})
    initial = trainer.initial(WIDE, SIGNATURE, Stream(7))
    layout, values = initial.layout, initial.values
    if any(isinstance(hook, ControlVariate) for hook in trainer.hooks):
        layout = layout.with_branches(Branch("control", layout.branch("params").parameters))
        values = np.concatenate([values, numbers(3, len(values)) * 0.01])
    if rows:
        values = values[None] + numbers(4, len(sizes), len(values)) * 0.01
    layout = layout.with_lanes(COUNT, TRAIN_LOSS)
    data = MemoryClients(
        [numbers(10 + place, size, FEATURES) for place, size in enumerate(sizes)],
        [np.random.default_rng(place).integers(0, 3, size) for place, size in enumerate(sizes)],
    )
    ordinals = np.arange(len(sizes))
    context = ClientContext(
        Assignment(2, layout, values, ordinals, len(sizes)), ClientBatch(ordinals, data, SIGNATURE), Streams(1)
    )
    states = {
        name: numbers(5, len(sizes), layout.branch("params").size) * 0.01
        for hook in trainer.hooks
        for name in hook.state
    }
    batch, following = trainer.train(WIDE, context, states)
    return batch.values, following


WORK = [
    {},
    {"hooks": (Prox(mu=0.7),)},
    {"hooks": (ControlVariate(),)},
    {"hooks": (Prox(mu=0.7), ControlVariate())},
    {"optimizer": Sgd(learning_rate=0.1, momentum=0.9)},
    {"optimizer": Sgd(learning_rate=0.1, weight_decay=0.1)},
    {"optimizer": Sgd(learning_rate=0.1, momentum=0.9, weight_decay=0.1), "hooks": (Prox(mu=0.7),)},
]


@pytest.mark.parametrize("work", WORK, ids=str)
@pytest.mark.parametrize("rows", [False, True], ids=["one start", "a start each"])
@pytest.mark.parametrize("sizes", [(16, 9, 3), (3, 9, 16, 1)], ids=["sorted", "unsorted"])
def test_turned_first_weights_end_where_others_do(
    work: dict[str, Any], rows: bool, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    turned: list[bool] = []

    def watched(*arguments: Any) -> Any:
        found = turned_for(*arguments)
        turned.append(bool(found[1].names))
        return found

    monkeypatch.setattr(fused, "turned_for", watched)
    together, kept = trained(sizes=sizes, rows=rows, **work)
    monkeypatch.setattr(fused_turns, "_TURN_OUTPUTS", HIDDEN + 1)
    plain, kept_plain = trained(sizes=sizes, rows=rows, **work)
    assert turned == [True, False]
    np.testing.assert_allclose(together, plain, rtol=0, atol=2e-6 * np.abs(plain).max())
    for name, wanted in kept_plain.items():
        np.testing.assert_allclose(kept[name], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("work", WORK, ids=str)
def test_turned_first_weights_end_where_the_loop_does(work: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    together, _ = trained(sizes=(16, 9, 3), **work)
    monkeypatch.setattr(TorchTrainer, "batching", lambda *_: ("none", ""))
    alone, _ = trained(sizes=(16, 9, 3), **work)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize(("outputs", "steps", "turns"), [(64, 4, True), (63, 4, False), (64, 3, False)])
@pytest.mark.parametrize("bias", ["b", None])
def test_weights_are_turned_where_that_saves_more_than_it_costs(
    outputs: int, steps: int, turns: bool, bias: str | None
) -> None:
    branch = Branch("params", (Parameter("w", (outputs, 3)), Parameter("b", (outputs,))))
    layers, turned = turned_for((Shape(), Linear("w", bias)), branch, steps)
    assert turned.names == (("w",) if turns else ())
    assert layers[-1] == Linear("w", None if turns else bias, transposed=turns)
    vectors = numbers(1, 4, branch.size)
    np.testing.assert_array_equal(turned.turn_back(turned.turn(vectors)), vectors)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(turned.turn_back(turned.turn(vectors[order]), order), vectors)
    spread = np.broadcast_to(vectors[0], vectors.shape)
    assert turned.turn(spread).strides[0] == 0
    np.testing.assert_array_equal(turned.turn(spread)[2], turned.turn(np.ascontiguousarray(spread))[2])


def test_a_turned_layers_bias_is_a_row_of_its_weights_and_meets_a_column_of_ones() -> None:
    branch = Branch("params", (Parameter("w", (64, 6)), Parameter("b", (64,))))
    (layer,), turned = turned_for((Shape(), Linear("w", "b")), branch, 9)
    vectors, x = numbers(1, 2, branch.size), numbers(2, 2, 4, 2, 3)
    real = np.array([[True, True, True, False], [True] * 4])
    outputs, _ = layer.forward(views_of(turned.training, turned.turn(vectors)), turned.enter(x, real), None)
    wanted, _ = Linear("w", "b").forward(views_of(branch, vectors), x.reshape(2, 4, 6), None)
    np.testing.assert_allclose(outputs[real], wanted[real], rtol=1e-5, atol=1e-5)
    assert not outputs[~real].any()


@pytest.mark.parametrize(
    ("layers", "parameters"),
    [
        ((Activation("tanh"), Linear("w", "b")), ("w", "b")),
        ((Linear("w", "b"),), ("b", "w")),
    ],
    ids=["what comes before is not only a shape", "the bias does not follow"],
)
def test_a_turned_layer_keeps_its_bias_where_it_cannot_be_a_row(
    layers: tuple[Layer, ...], parameters: tuple[str, ...]
) -> None:
    shapes = {"w": (64, 6), "b": (64,)}
    branch = Branch("params", tuple(Parameter(name, shapes[name]) for name in parameters))
    trained_by, turned = turned_for(layers, branch, 9)
    assert trained_by[-1] == Linear("w", "b", transposed=True)
    assert turned.training == turned.turned
    assert not turned.ones


@pytest.mark.parametrize("layers", [(), (Shape(), Activation("relu")), (Embedding("w"), Linear("v"))])
def test_a_stack_whose_first_weights_are_no_dense_layers_is_not_turned(layers: tuple[Layer, ...]) -> None:
    branch = Branch("params", (Parameter("w", (99, 99)), Parameter("v", (99, 99))))
    found, turned = turned_for(layers, branch, 9)
    assert found == layers
    assert turned.names == ()
