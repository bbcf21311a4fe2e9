"""Local DP-SGD: a step is its definition, and nothing that one example does moves a sum by more than the clip norm."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hansa.algorithms.rounds import client_start
from hansa.core.errors import HansaError, ModelError
from hansa.core.example_privacy import ExamplePrivacy
from hansa.core.nouns import Assignment, ClientBatch, ClientContext, Signature
from hansa.core.sections import Model
from hansa.core.streams import Stream, Streams
from hansa.testing import MemoryClients
from hansa.training import noised_steps
from hansa.training.linear import LinearTrainer
from hansa.training.noised_steps import LIMIT, clipped_integers, drawn, rows_at_once
from hansa.training.optimizers import Sgd
from hansa.training.torch_trainer import TorchTrainer

torch = pytest.importorskip("torch")
pytest.importorskip("opacus")

SIGNATURE = Signature((6,), 3)
GIVEN = ExamplePrivacy(clip_norm=0.3, delta=1e-5, expected_examples=20, noise_multiplier=1.5, max_participations=1)
RNG = np.random.default_rng(7)
SIZES = (37, 20, 3, 0)


class WithAnEmptyOne(MemoryClients):
    """What stands in for the examples of the last client is padding."""

    def sizes(self, ordinals):
        return np.array(SIZES)[ordinals]


CLIENTS = WithAnEmptyOne(
    [RNG.standard_normal((max(size, 1), 6), dtype=np.float32) for size in SIZES],
    [RNG.integers(0, 3, max(size, 1)) for size in SIZES],
)
FACTORY = f"{__name__}:"


def layers() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


class Tied(torch.nn.Module):
    """A layer that is used twice, a scale of its own, and a parameter that no example reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.end = torch.nn.Linear(6, 6), torch.nn.Linear(6, 3)
        self.idle = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


def tied() -> torch.nn.Module:
    return Tied()


def batch_norm() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))


def dropout() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 3))


class Mixing(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x - x.mean(dim=0))


def mixing() -> torch.nn.Module:
    return Mixing()


class Around(torch.nn.Module):
    """It uses a layer's weight without the layer, which Opacus's hooks do not see."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + torch.nn.functional.linear(x, self.layer.weight)


def around() -> torch.nn.Module:
    return Around()


def trainer_of(kind, **changes):
    settings = {"optimizer": Sgd(learning_rate=0.5), "steps": 4, "batch_size": 5, "example_privacy": GIVEN} | changes
    return (LinearTrainer if kind == "linear" else TorchTrainer)(**settings)


def model_of(kind, factory="layers"):
    return Model(factory="hansa.training.linear:softmax" if kind == "linear" else FACTORY + factory)


def train(trainer, model, ordinals=(0, 1, 2, 3), streams=None, clients=CLIENTS):
    first = trainer.initial(model, SIGNATURE, Stream(3))
    plan = type("AnyPlan", (), {"trainer": trainer, "transforms": (), "model": model, "privacy": None,
                                "secure_aggregation": None})  # fmt: skip
    from hansa.algorithms.rounds import travelling_layout

    layout = travelling_layout(plan, first.layout)
    ordinals = np.array(ordinals)
    values = first.values + np.float32(0.1) * np.sin(np.arange(layout.size, dtype=np.float32))
    assignment = Assignment(2, layout, values, ordinals, len(SIZES))
    context = ClientContext(assignment, ClientBatch(ordinals, clients, SIGNATURE), streams or Streams(11))
    rows = {name: np.repeat(row[None], len(ordinals), 0) for name, row in client_start(plan, layout, SIGNATURE).items()}
    return trainer.train(model, context, rows)[0], values


def softmax_gradients(values, x, y):
    """Return each example's gradient of cross-entropy for x W + b, by the formula: [m, 21]."""
    weight, intercept = values[:18].reshape(6, 3), values[18:]
    scores = x @ weight + intercept
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    chances[np.arange(len(y)), y] -= 1
    return np.concatenate([(x[:, :, None] * chances[:, None, :]).reshape(len(y), 18), chances], axis=1)


def torch_gradients(values, x, y):
    """Return each example's gradient by one backward pass of its own: [m, size]."""
    module, found = layers(), []
    torch.nn.utils.vector_to_parameters(torch.from_numpy(values.astype(np.float32)), module.parameters())
    for one, label in zip(x, y, strict=True):
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(torch.from_numpy(one[None])), torch.tensor([label])).backward()
        found.append(torch.cat([parameter.grad.reshape(-1) for parameter in module.parameters()]).numpy())
    return np.array(found).reshape(len(y), len(values))


@pytest.mark.parametrize(("kind", "each"), [("linear", softmax_gradients), ("torch", torch_gradients)])
@pytest.mark.parametrize("batch_size", [5, "all"])
def test_steps_are_their_definition(monkeypatch, kind, each, batch_size):
    """Coins, gradients one by one, clip, sum, noise, divide, descend: written down again, in floats."""
    noise = 1000 * np.arange(-30, 70)
    monkeypatch.setattr(noised_steps, "resolve", lambda *_: lambda variance, count, key: np.resize(noise, count))
    trainer = trainer_of(kind, batch_size=batch_size)
    batch, start = train(trainer, model_of(kind))
    share, divisor = (1.0, 20) if batch_size == "all" else (0.25, 5)
    for client, size in enumerate(SIZES):
        x, y = CLIENTS.gather(np.array([client]), np.arange(size)[None])
        values = start.astype(np.float64)
        for number in range(1, 5):
            words = Streams(11).of("example-sampling", 2).draw(number).bits(np.array([client]), size)[0]
            joined = np.flatnonzero(words / 2.0**64 < share)
            total = np.zeros(len(values))
            for gradient in each(values, x[0, joined], y[0, joined].astype(int)):
                total += gradient * min(1.0, 0.3 / np.linalg.norm(gradient))
            values -= 0.5 * (total + np.resize(noise, len(values)) * 0.3 / LIMIT) / divisor
        np.testing.assert_allclose(batch.values[client], values - start, rtol=0, atol=2e-5)
        moved = np.abs(batch.values[client]).max()
        assert moved > (1e-2 if size > 3 else 1e-4), (client, moved)


@given(
    gradients=arrays.arrays(np.float32, (3, 40), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    clip_norm=st.floats(1e-6, 1e6),
)
@settings(max_examples=300, deadline=None)
def test_no_example_is_longer_than_the_clip_norm(gradients, clip_norm):
    found = clipped_integers(gradients, clip_norm)
    for row in found:
        assert all(float(entry).is_integer() for entry in row)
        assert sum(int(entry) ** 2 for entry in row) <= LIMIT**2


def test_clipping_uses_nearly_the_whole_norm_and_keeps_short_gradients():
    rows = np.array([[3.0, 4.0], [0.03, 0.04]], dtype=np.float32)
    found = clipped_integers(rows, 1.0) / LIMIT
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.03, 0.04]], atol=3e-6)


def test_coins_are_independent_and_as_likely_as_accounted():
    stream, size, share = Stream(5), 40_000, Fraction(1, 7)
    first, second = (drawn(stream.draw(number), np.array([4]), size, share) for number in (1, 2))
    spread = (size * (1 / 7) * (6 / 7)) ** 0.5
    assert abs(len(first) - size / 7) < 5 * spread
    both = len(np.intersect1d(first, second))
    assert abs(both - size / 49) < 5 * (size / 49) ** 0.5
    assert len(drawn(stream, np.array([4]), 10, Fraction(1))) == 10


@pytest.mark.parametrize("kind", ["linear", "torch"])
def test_a_client_without_examples_releases_noise_of_the_accounted_size(kind):
    """One step of nobody: the update is the noise, of z C / divisor times the learning rate."""
    trainer = trainer_of(kind, steps=1, optimizer=Sgd(learning_rate=1.0))
    drawn_noise = [train(trainer, model_of(kind), [3], Streams(seed))[0].values[0] for seed in range(150)]
    noise = np.concatenate(drawn_noise) / (1.5 * 0.3 / 5)
    assert abs(noise.mean()) < 5 / len(noise) ** 0.5
    assert abs(noise.var() - 1) < 5 * (2 / len(noise)) ** 0.5


def test_noise_and_coins_in_a_federation_are_the_clients_own():
    own = frozenset({"example-sampling", "example-noise"})
    trainer, model = trainer_of("linear"), model_of("linear")
    first, second = (train(trainer, model, [3], Streams(11, "federation", own))[0].values for _ in range(2))
    assert np.abs(first - second).min() > 0
    with pytest.raises(HansaError, match="serves public purposes only"):
        train(trainer, model, [3], Streams(11, "federation"))


@pytest.mark.parametrize(("kind", "factory"), [("linear", ""), ("torch", "layers"), ("torch", "tied")])
def test_a_client_alone_is_the_client_among_others(kind, factory):
    trainer, model = trainer_of(kind), model_of(kind, factory)
    together = train(trainer, model)[0].values
    for client in range(len(SIZES)):
        np.testing.assert_array_equal(train(trainer, model, [client])[0].values[0], together[client])


def test_one_example_moves_a_step_by_no_more_than_the_clip_norm():
    """Neighbours: the last example of client 0 is missing. The noise is the same, so what differs is the example."""
    trainer = trainer_of("torch", steps=1, batch_size="all", optimizer=Sgd(learning_rate=1.0))
    x, y = CLIENTS.gather(np.array([0]), np.arange(SIZES[0])[None])
    fewer = MemoryClients([x[0, :-1]], [y[0, :-1]])
    whole, less = (train(trainer, model_of("torch"), [0], clients=data)[0].values[0] for data in (CLIENTS, fewer))
    moved = np.linalg.norm(whole - less) * 20 / 0.3
    assert 0.9 < moved <= 1 + 1e-4


def test_gradients_of_an_example_do_not_depend_on_which_others_there_are():
    from hansa.training import per_example
    from hansa.training.torch_model import network_of

    network = network_of(model_of("torch"), SIGNATURE)
    clients = ClientBatch(np.array([0]), CLIENTS, SIGNATURE)
    gradients = next(per_example.sources(network, "cross-entropy", clients))
    values = np.linspace(-1, 1, network.branch.size, dtype=np.float32)
    alone = gradients(values, np.array([7]))[0]
    for others in ([7, 1], [2, 7], [9, 8, 7, 30, 12], [*range(7), *range(7, 32)]):
        found = gradients(values, np.array(others))[others.index(7)]
        np.testing.assert_array_equal(found, alone)
    assert rows_at_once(network.branch.size) == 32


def test_no_loss_is_told():
    batch, _ = train(trainer_of("torch"), model_of("torch"))
    assert batch.lane("train_loss").tolist() == [0.0] * len(SIZES)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("batch_norm", "BatchNorm mixes the examples"),
        ("dropout", "its dropout draws a mask for each place"),
        ("mixing", "depend on the others in its batch"),
        ("around", "Opacus finds other gradients"),
    ],
)
def test_models_whose_examples_are_not_apart_are_refused(factory, said):
    trainer = trainer_of("torch")
    with pytest.raises(ModelError, match=said):
        trainer.initial(model_of("torch", factory), SIGNATURE, Stream(3))
    plain = replace(trainer, example_privacy=None)
    plain.initial(model_of("torch", factory), SIGNATURE, Stream(3))


def test_a_network_is_left_as_it_was():
    """The same trainer without example privacy finds no trace of Opacus in the module that both use."""
    from hansa.training.torch_model import network_of

    train(trainer_of("torch"), model_of("torch"))
    network = network_of(model_of("torch"), SIGNATURE)
    for module in network.module.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not hasattr(module, "activations")
    plain = train(trainer_of("torch", example_privacy=None, steps=2), model_of("torch"))[0]
    assert np.isfinite(plain.values).all()


def test_the_first_step_of_a_known_client_stays_what_it_is():
    """A seeded run of another day repeats: the streams and their order are part of the format."""
    batch, _ = train(trainer_of("linear", steps=1, optimizer=Sgd(learning_rate=1.0)), model_of("linear"), [3])
    whole = np.rint(batch.values[0].astype(np.float64) * 5 / 0.3 * LIMIT / 64).astype("<i8")
    assert hashlib.sha256(whole.tobytes()).hexdigest()[:16] == "368ac0c37a9ceec7"
