"""Clients that train together end where each ends alone, in the loop, whatever the module, hook or optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hansa.algorithms.hooks import ControlVariate, Prox
from hansa.core.layout import TRAIN_LOSS, Branch, Floats
from hansa.core.nouns import Assignment, Batch, ClientBatch, ClientContext, Signature
from hansa.core.sections import Model
from hansa.core.streams import Stream, Streams
from hansa.testing import MemoryClients
from hansa.training import torch_loop, vmapped
from hansa.training.optimizers import Adam, AdamW, Sgd
from hansa.training.torch_trainer import TorchTrainer

TOKENS = Signature((6,), 3, integer_inputs=True, vocabulary=9)
FEATURES = Signature((5,), 3)
IMAGES = Signature((1, 8, 8), 3)


class Tokens(nn.Module):
    """An embedding, a body [b, length, width] -> [b, length, width], the mean over the length, a dense layer."""

    def __init__(self, body: nn.Module, width: int = 8, outputs: int = 3) -> None:
        super().__init__()
        self.embedding, self.body, self.output = nn.Embedding(9, 8), body, nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        states = self.body(self.embedding(x))
        states = states[0] if isinstance(states, tuple) else states
        logits: Tensor = self.output(states.mean(dim=1))
        return logits


class TimeFirst(nn.Module):
    """Runs a body that keeps the examples in the second axis."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x.transpose(0, 1)).transpose(0, 1)
        return out


class Tied(nn.Module):
    """Uses one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.second(self.first(x).tanh()).tanh())
        return out


class Scaled(nn.Module):
    """Multiplies by a buffer that a client keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 5))
        self.dense = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense(x * self.scale)
        return out


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    module[0].requires_grad_(requires_grad=False)
    return module


def image_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Dropout2d(0.3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def network(kind: str) -> nn.Module:
    encoder = partial(nn.TransformerEncoderLayer, 8, 2, 16, dropout=0.3)
    makers: dict[str, Any] = {
        "mlp": lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)),
        "wide": lambda: nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 3)),
        "dropout": lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.4), nn.Linear(8, 3)),
        "alpha": lambda: nn.Sequential(nn.Linear(5, 8), nn.SELU(), nn.AlphaDropout(0.2), nn.Linear(8, 3)),
        "cnn": image_network,
        "embedding": lambda: Tokens(nn.Identity()),
        "transformer": lambda: Tokens(encoder(batch_first=True)),
        "transformer, time first": lambda: Tokens(TimeFirst(encoder())),
        "lstm": lambda: Tokens(nn.LSTM(8, 8, batch_first=True)),
        "lstm, two layers": lambda: Tokens(nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True, dropout=0.3)),
        "gru": lambda: Tokens(nn.GRU(8, 8, batch_first=True)),
        "gru, two layers": lambda: Tokens(nn.GRU(8, 8, 2, batch_first=True, dropout=0.5)),
        "rnn": lambda: Tokens(nn.RNN(8, 8, batch_first=True)),
        "tied": Tied,
        "frozen": frozen,
        "buffers": Scaled,
    }
    module: nn.Module = makers[kind]()
    return module


class Vmapped(TorchTrainer):
    """Trains several clients under vmap even where a faster path is sound, so that each path is held for itself."""

    def batching(self, model: Model, signature: Signature) -> tuple[str, str]:
        return "vmap", "it is what is tested"


KINDS = {
    **dict.fromkeys(("mlp", "dropout", "alpha", "tied", "frozen", "buffers"), FEATURES),
    "cnn": IMAGES,
    **dict.fromkeys(("embedding", "transformer", "transformer, time first"), TOKENS),
    **dict.fromkeys(("lstm", "lstm, two layers", "gru", "gru, two layers", "rnn"), TOKENS),
}
SGD = Sgd(learning_rate=0.1)


def model_of(kind: str) -> Model:
    return Model(factory=f"{__name__}:network", arguments={"kind": kind})


def some_clients(sizes: Sequence[int], signature: Signature) -> MemoryClients:
    random = np.random.default_rng(5)
    x = [random.standard_normal((size, *signature.shape)).astype(np.float32) for size in sizes]
    if signature.integer_inputs:
        x = [random.integers(0, signature.vocabulary, (size, *signature.shape)) for size in sizes]
    return MemoryClients(x, [random.integers(0, signature.classes, size) for size in sizes])


@pytest.fixture(autouse=True)
def no_retreat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test fail where clients that should train together were left to the loop, which would equal itself."""
    loop = torch_loop.train_clients

    def only_alone(work: Any, network: Any, loss: Any, context: ClientContext, states: Any) -> Any:
        assert len(context.clients) == 1
        return loop(work, network, loss, context, states)

    monkeypatch.setattr(torch_loop, "train_clients", only_alone)


def trained(
    trainer: TorchTrainer, model: Model, clients: MemoryClients, signature: Signature, ordinals: Sequence[int]
) -> tuple[Batch, dict[str, Floats]]:
    """Return what the trainer hands back for some of the clients, in a chunk of their own."""
    initial = trainer.initial(model, signature, Stream(1))
    layout, values = initial.layout.with_lanes(TRAIN_LOSS), initial.values
    size, random = layout.branch("params").size, np.random.default_rng(7)
    states: dict[str, Floats] = {}
    for hook in trainer.hooks:
        for name in hook.branches:
            layout = layout.with_branches(Branch(name, layout.branch("params").parameters))
            values = np.concatenate([values, random.standard_normal(size).astype(np.float32) * 0.1])
        for name in hook.state:
            states[name] = random.standard_normal((len(clients.x), size)).astype(np.float32)[list(ordinals)] * 0.1
    if first := trainer.client_rows(model, signature):
        scales = 1 + np.arange(len(clients.x), dtype=np.float32)[list(ordinals), None] / 10
        states["buffers"] = first["buffers"][None] * scales
    cohort = np.array(ordinals)
    assignment = Assignment(3, layout, values, cohort, population=len(clients.x))
    context = ClientContext(assignment, ClientBatch(cohort, clients, signature), Streams(11))
    return trainer.train(model, context, states)


def check_parity(
    trainer: TorchTrainer, kind: str, *, sizes: Sequence[int] = (7, 1, 12, 3), tolerance: float = 2e-5
) -> None:
    """Compare clients that train together with each of them alone, which is the loop."""
    model, signature = model_of(kind), KINDS[kind]
    clients = some_clients(sizes, signature)
    plain = TorchTrainer(optimizer=trainer.optimizer, epochs=1)
    assert plain.batching(model, signature)[0] != "none", plain.batching(model, signature)
    together, following = trained(trainer, model, clients, signature, range(len(sizes)))
    for i in range(len(sizes)):
        alone, own = trained(trainer, model, clients, signature, [i])
        np.testing.assert_allclose(together.values[i], alone.values[0], rtol=1e-4, atol=tolerance)
        np.testing.assert_allclose(together.lane("train_loss")[i], alone.lane("train_loss")[0], rtol=1e-4, atol=1e-4)
        assert together.side["steps"][i] == alone.side["steps"][0] or np.isnan(alone.side["steps"][0])
        for name, rows in own.items():
            np.testing.assert_allclose(following[name][i], rows[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_together_equals_alone_for_every_kind_of_module(kind: str) -> None:
    check_parity(Vmapped(optimizer=SGD, epochs=2, batch_size=4), kind)


@pytest.mark.parametrize("kind", ["mlp", "dropout"])
@pytest.mark.parametrize("hooks", [(Prox(mu=0.7),), (ControlVariate(),), (Prox(mu=0.7), ControlVariate())])
def test_together_equals_alone_under_every_hook(kind: str, hooks: Any) -> None:
    check_parity(Vmapped(optimizer=SGD, epochs=2, batch_size=4, hooks=hooks), kind)


OPTIMIZERS = [
    Sgd(learning_rate=0.05, momentum=0.9, weight_decay=0.1),
    Adam(learning_rate=0.01, weight_decay=0.1),
    AdamW(learning_rate=0.01),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
def test_together_equals_alone_with_every_optimizer(optimizer: Any) -> None:
    check_parity(Vmapped(optimizer=optimizer, epochs=2, batch_size=4), "dropout", tolerance=1e-4)


@pytest.mark.parametrize(
    "work",
    [{"epochs": 1, "batch_size": 10}, {"steps": 7, "batch_size": 4}, {"epochs": 3, "batch_size": "all"}],
    ids=["epochs", "steps", "all"],
)
@pytest.mark.parametrize("kind", ["dropout", "transformer"])
def test_together_equals_alone_for_ragged_clients(work: dict[str, Any], kind: str) -> None:
    check_parity(Vmapped(optimizer=SGD, **work), kind, sizes=(1, 3, 40))


def test_a_client_without_examples_stays_where_it_is_among_others() -> None:
    clients = some_clients((4, 1, 6), FEATURES)

    class WithNone(MemoryClients):
        def sizes(self, ordinals: Any) -> Any:
            return np.where(ordinals == 1, 0, super().sizes(ordinals))

        def gather(self, ordinals: Any, positions: Any) -> Any:
            return super().gather(ordinals, np.where((ordinals == 1)[:, None], 0, positions))

    batch, _ = trained(
        Vmapped(optimizer=SGD, epochs=2, batch_size=4),
        model_of("mlp"),
        WithNone(clients.x, clients.y),
        FEATURES,
        range(3),
    )
    assert not batch.values[1].any()
    assert batch.lane("train_loss")[1] == 0
    assert batch.values[0].any()


class Padded(MemoryClients):
    """Gives a value of one's choice as padding. A client of one example has none, when it is asked."""

    value = 0.0

    def sizes(self, ordinals: Any) -> Any:
        sizes = super().sizes(ordinals)
        return np.where(sizes == 1, 0, sizes)

    def gather(self, ordinals: Any, positions: Any) -> Any:
        x, y = super().gather(ordinals, np.maximum(positions, 0))
        x[positions < 0] = self.value
        return x, y


class Spoilt(Padded):
    value = np.nan


@pytest.mark.parametrize("trainer", [Vmapped, TorchTrainer], ids=["vmap", "fused"])
@pytest.mark.parametrize("kind", ["mlp", "wide", "dropout"])
@pytest.mark.parametrize("sizes", [(7, 2, 12, 3), (7, 1, 12)], ids=["ragged", "one without examples"])
def test_padding_that_is_no_number_never_reaches_a_result(trainer: Any, kind: str, sizes: tuple[int, ...]) -> None:
    work, clients = trainer(optimizer=SGD, epochs=2, batch_size=4), some_clients(sizes, FEATURES)
    spoilt, wanted = (
        trained(work, model_of(kind), data(clients.x, clients.y), FEATURES, range(len(sizes)))[0]
        for data in (Spoilt, Padded)
    )
    assert np.isfinite(spoilt.values).all()
    assert np.isfinite(spoilt.lane("train_loss")).all()
    np.testing.assert_allclose(spoilt.values, wanted.values, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(spoilt.lane("train_loss"), wanted.lane("train_loss"))


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 14), min_size=2, max_size=6), seed=st.integers(0, 5))
def test_a_clients_result_does_not_depend_on_the_others_of_its_chunk(sizes: list[int], seed: int) -> None:
    trainer, model = Vmapped(optimizer=SGD, epochs=2, batch_size=4), model_of("dropout")
    clients = some_clients(sizes, FEATURES)
    whole, _ = trained(trainer, model, clients, FEATURES, range(len(sizes)))
    some = np.random.default_rng(seed).permutation(len(sizes))[: max(2, len(sizes) // 2)].tolist()
    part, _ = trained(trainer, model, clients, FEATURES, some)
    np.testing.assert_allclose(part.values, whole.values[some], rtol=1e-4, atol=1e-5)


def test_a_client_that_diverges_does_not_reach_the_others() -> None:
    clients = some_clients((6, 6, 6), FEATURES)
    clients.x[1][2] = np.inf
    batch, _ = trained(Vmapped(optimizer=SGD, epochs=2, batch_size=4), model_of("mlp"), clients, FEATURES, range(3))
    assert np.isfinite(batch.values).all(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize("kind", ["dropout", "transformer", "lstm", "cnn"])
@pytest.mark.parametrize("ordinals", [[0, 1, 2, 3], [2]], ids=["together", "alone"])
def test_each_path_repeats_itself_bit_for_bit(kind: str, ordinals: list[int]) -> None:
    clients = some_clients((7, 1, 12, 3), KINDS[kind])
    trainer = Vmapped(optimizer=SGD, epochs=2, batch_size=4)
    once, again = (trained(trainer, model_of(kind), clients, KINDS[kind], ordinals)[0] for _ in range(2))
    np.testing.assert_array_equal(once.values, again.values)
    np.testing.assert_array_equal(once.lanes, again.lanes)


def test_the_module_is_given_back_as_it_was() -> None:
    clients, model = some_clients((5, 4), TOKENS), model_of("lstm")
    trainer = Vmapped(optimizer=SGD, epochs=1, batch_size=4)
    module = trainer._network(model, TOKENS).module
    before, flat = dict(module.named_parameters()), list(module.body._flat_weights)
    trained(trainer, model, clients, TOKENS, [0, 1])
    assert all(before[name] is value for name, value in module.named_parameters())
    assert all(a is b for a, b in zip(flat, module.body._flat_weights, strict=True))


def test_what_vmap_cannot_take_on_the_data_is_left_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    clients, trainer = some_clients((5, 4), FEATURES), Vmapped(optimizer=SGD, epochs=1, batch_size=4)
    wanted, _ = trained(trainer, model_of("mlp"), clients, FEATURES, [0, 1])

    def broken(*_: Any) -> Any:
        raise RuntimeError("no batching rule")

    monkeypatch.undo()
    monkeypatch.setattr(vmapped.Stacked, "step", broken)
    found, _ = trained(trainer, model_of("mlp"), clients, FEATURES, [0, 1])
    np.testing.assert_allclose(found.values, wanted.values, atol=1e-6)
