"""What of a torch module travels and what stays, and modules of many kinds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hansa.core.layout import TRAIN_LOSS, Array, Floats, Int64s
from hansa.core.nouns import Assignment, Batch, ClientBatch, ClientContext, InitialModel, Signature
from hansa.core.sections import Model
from hansa.core.streams import Stream, Streams
from hansa.training.optimizers import Sgd
from hansa.training.torch_trainer import TorchTrainer


@dataclass(frozen=True)
class Clients:
    """Examples of a few clients of one size, in memory: x [clients, size, ...], y [clients, size]."""

    x: Array
    y: Array

    @property
    def names(self) -> Sequence[str]:
        return [str(i) for i in range(len(self.x))]

    def sizes(self, ordinals: Int64s) -> Int64s:
        return np.full(len(ordinals), self.x.shape[1])

    def gather(self, ordinals: Int64s, positions: Int64s) -> tuple[Array, Array]:
        return self.x[ordinals[:, None], positions], self.y[ordinals[:, None], positions]


SIGNATURE = Signature((4,), 3)
TRAINER = TorchTrainer(optimizer=Sgd(learning_rate=0.1), steps=1, batch_size="all")
RANDOM = np.random.default_rng(2)
X = RANDOM.standard_normal((2, 6, 4)).astype(np.float32)
Y = RANDOM.integers(0, 3, (2, 6))


def model_of(factory: Callable[..., Any], buffers: Any = "keep-local", **arguments: Any) -> Model:
    return Model(factory=f"{__name__}:{factory.__name__}", arguments=arguments, buffers=buffers)


def first(model: Model, signature: Signature = SIGNATURE, trainer: TorchTrainer = TRAINER) -> InitialModel:
    return trainer.initial(model, signature, Stream(1))


def train(
    model: Model,
    clients: Clients | None = None,
    *,
    signature: Signature = SIGNATURE,
    trainer: TorchTrainer = TRAINER,
    states: dict[str, Array] | None = None,
    values: Floats | None = None,
) -> tuple[Batch, dict[str, Array]]:
    """Train two clients for a round, from the model's first values if no others are given."""
    clients, start = clients or Clients(X, Y), first(model, signature, trainer)
    cohort = np.arange(len(clients.x))
    assignment = Assignment(
        round=1,
        layout=start.layout.with_lanes(TRAIN_LOSS),
        model=start.values if values is None else values,
        cohort=cohort,
        population=len(cohort),
    )
    context = ClientContext(assignment, ClientBatch(cohort, clients, signature), Streams(1))
    return trainer.train(model, context, states or {})


def load(module: nn.Module, start: InitialModel) -> nn.Module:
    """Return the module with the plan's first values."""
    views = start.layout.views(start.values, "params")
    module.load_state_dict({name: torch.tensor(view) for name, view in views.items()}, strict=False)
    return module.train()


def gradients_of(module: nn.Module, client: int, examples: int = 6) -> dict[str, Array]:
    """Return autograd's gradients of a client's first examples."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    loss = functional.cross_entropy(module(torch.tensor(X[client, :examples])), torch.tensor(Y[client, :examples]))
    gradients = torch.autograd.grad(loss, parameters)
    return {name: gradient.numpy() for name, gradient in zip(names, gradients, strict=True)}


def assert_one_step(start: InitialModel, update: Floats, gradients: dict[str, Array], tolerance: float = 1e-6) -> None:
    """Check that an update is minus the learning rate times the gradients."""
    views = start.layout.views(update, "params")
    assert views.keys() == gradients.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(views[name], -0.1 * gradient, atol=tolerance, err_msg=name)


def names_of(start: InitialModel, branch: str = "params") -> list[str]:
    return [parameter.name for parameter in start.layout.branch(branch).parameters]


# --- what travels


class Tied(nn.Module):
    """Projects up and down with one matrix: as one parameter, or as two that share memory."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        if how == "parameter":
            self.down.weight = self.up.weight
        elif how == "storage":
            self.down.weight = nn.Parameter(self.up.weight.detach())
        else:
            self.down.weight = nn.Parameter(self.up.weight.detach().T)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.down(torch.tanh(self.up(x)))))
        return out


@pytest.mark.parametrize("how", ["parameter", "storage"])
def test_tied_weights_travel_once_and_take_the_sum_of_their_gradients(how: str) -> None:
    model = model_of(Tied, how=how)
    start = first(model)
    assert names_of(start) == ["up.weight", "out.weight", "out.bias"]
    batch, _ = train(model)
    assert_one_step(start, batch.values[0], gradients_of(load(Tied("parameter"), start), 0))


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return module.requires_grad_(requires_grad=False).append(nn.Linear(3, 3))


def test_frozen_parameters_never_travel_and_are_the_same_for_everyone() -> None:
    model = model_of(frozen)
    start = first(model)
    assert names_of(start) == ["3.weight", "3.bias"]
    other = TRAINER.initial(model, SIGNATURE, Stream(2)).values
    assert not np.allclose(other, start.values)
    before = TRAINER.predict(model, SIGNATURE, start.values, X[0], {})
    batch, _ = train(model)
    assert batch.values.shape == (2, 12)
    np.testing.assert_array_equal(TRAINER.predict(model, SIGNATURE, start.values, X[0], {}), before)


class Precise(nn.Module):
    """Layers of two dtypes; the middle one is the first float32."""

    def __init__(self, inner: str = "float64") -> None:
        super().__init__()
        self.inner = getattr(torch, inner)
        self.before = nn.Linear(4, 4)
        self.middle = nn.Linear(4, 4, dtype=self.inner)
        self.after = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.middle(self.before(x).to(self.inner)).float())
        return out


def test_parameters_of_two_dtypes_travel_as_one_float32_vector() -> None:
    model = model_of(Precise)
    start, (batch, _) = first(model), train(model)
    assert {start.values.dtype, batch.values.dtype} == {np.dtype(np.float32)}
    assert [name.split(".")[0] for name in names_of(start)[::2]] == ["before", "after", "middle"]
    assert_one_step(start, batch.values[1], gradients_of(load(Precise(), start), 1))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("bfloat16", 5e-3)])
def test_a_model_of_another_dtype_takes_the_step_of_its_float32_twin(dtype: str, tolerance: float) -> None:
    twin, model = (
        Model(factory="torch.nn:Linear", arguments={"in_features": 4, "out_features": 3}),
        model_of(linear_of, dtype=dtype),
    )
    values = first(twin).values
    wanted, _ = train(twin, values=values)
    batch, _ = train(model, values=values)
    np.testing.assert_allclose(batch.values, wanted.values, atol=tolerance)
    predicted = TRAINER.predict(model, SIGNATURE, values, X[0], {})
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(
        predicted, TRAINER.predict(twin, SIGNATURE, values, X[0], {}), atol=max(tolerance * 10, 1e-6)
    )


def linear_of(dtype: str) -> nn.Module:
    return nn.Linear(4, 3, dtype=getattr(torch, dtype))


def test_half_precision_sends_what_training_changed_and_not_its_rounding() -> None:
    model = model_of(linear_of, dtype="bfloat16")
    values = np.full(15, 1.003, dtype=np.float32)
    still = TorchTrainer(optimizer=Sgd(learning_rate=1e-30), steps=1, batch_size="all")
    batch, _ = train(model, trainer=still, values=values)
    np.testing.assert_array_equal(batch.values, np.zeros((2, 15), dtype=np.float32))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(3))


def test_lazy_layers_take_their_shape_from_the_data() -> None:
    start = first(model_of(lazy))
    assert start.values.size == (4 * 6 + 6) + (6 * 3 + 3)
    np.testing.assert_array_equal(first(model_of(lazy)).values, start.values)
    assert train(model_of(lazy))[0].values.any()


# --- buffers


def normed(momentum: float = 0.1) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(4, momentum=momentum), nn.Linear(4, 3))


def test_batchnorm_statistics_stay_with_each_client() -> None:
    model = model_of(normed)
    start, row = first(model), TRAINER.client_rows(model, SIGNATURE)
    assert names_of(start) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    np.testing.assert_array_equal(row["buffers"], [0, 0, 0, 0, 1, 1, 1, 1])
    states = {"buffers": np.stack([row["buffers"], row["buffers"] + 1])}
    batch, following = train(model, states=states)
    assert batch.values.shape[1] == start.values.size
    seen = np.concatenate([X.mean(axis=1), X.var(axis=1, ddof=1)], axis=1)
    np.testing.assert_allclose(following["buffers"], 0.9 * states["buffers"] + 0.1 * seen, atol=1e-6)
    own = TRAINER.predict(model, SIGNATURE, start.values, X[0], {"buffers": following["buffers"][0]})
    as_built = TRAINER.predict(model, SIGNATURE, start.values, X[0], {})
    assert not np.allclose(own, as_built)


def test_averaged_batchnorm_statistics_travel_as_a_branch() -> None:
    model = model_of(normed, buffers="average")
    start = first(model)
    assert names_of(start, "buffers") == ["0.running_mean", "0.running_var"]
    assert TRAINER.client_rows(model, SIGNATURE) == {}
    batch, following = train(model)
    assert "buffers" not in following
    seen = np.concatenate([X.mean(axis=1), X.var(axis=1, ddof=1)], axis=1)
    sent = start.values[start.layout.slices["buffers"]]
    np.testing.assert_allclose(batch.values[:, start.layout.slices["buffers"]], 0.1 * (seen - sent), atol=1e-6)
    shifted = start.values.copy()
    shifted[start.layout.slices["buffers"]] += 1
    first_predicted, shifted_predicted = (
        TRAINER.predict(model, SIGNATURE, values, X[0], {}) for values in (start.values, shifted)
    )
    assert not np.allclose(first_predicted, shifted_predicted)


class Counting(nn.Module):
    """Keeps an integer, a temporary and a lasting buffer; replaces the last two rather than write to them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.steps: Tensor
        self.scratch: Tensor
        self.mean: Tensor
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) * (1 + self.steps) + self.scratch
        if self.training:
            self.steps += 1
            self.scratch = self.scratch + 1
            self.mean = 0.5 * (self.mean + x.mean(dim=0))
        return out


def test_integer_and_temporary_buffers_neither_travel_nor_last() -> None:
    model = model_of(Counting)
    two_steps = TorchTrainer(optimizer=Sgd(learning_rate=0.1), steps=2, batch_size="all")
    twins = Clients(np.stack([X[0], X[0]]), np.stack([Y[0], Y[0]]))
    batch, following = train(model, twins, trainer=two_steps)
    np.testing.assert_allclose(batch.values[0], batch.values[1], atol=1e-6)
    np.testing.assert_allclose(following["buffers"], np.tile(0.75 * X[0].mean(axis=0), (2, 1)), atol=1e-6)
    start = first(model)
    predicted = TRAINER.predict(model, SIGNATURE, start.values, X[0], {})
    weight, bias = start.values[:12].reshape(3, 4), start.values[12:]
    np.testing.assert_allclose(predicted, X[0] @ weight.T + bias, atol=1e-6)


def test_a_step_of_one_example_uses_the_running_statistics_of_batchnorm() -> None:
    model = model_of(normed)
    row = TRAINER.client_rows(model, SIGNATURE)["buffers"]
    batch, following = train(model, Clients(X[:, :1], Y[:, :1]), states={"buffers": np.stack([row, row])})
    np.testing.assert_array_equal(following["buffers"], np.stack([row, row]))
    start = first(model)
    assert_one_step(start, batch.values[0], gradients_of(load(normed(), start).eval(), 0, examples=1))


# --- modules of many kinds


def recurrent() -> nn.Module:
    return _Last(nn.GRU(2, 5, batch_first=True), nn.Linear(5, 3))


class _Last(nn.Module):
    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        states = self.body(x)
        out: Tensor = self.head((states[0] if isinstance(states, tuple) else states)[:, -1])
        return out


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return _Last(nn.Sequential(nn.Embedding(11, 8), layer), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("factory", "signature"),
    [(recurrent, Signature((4, 2), 3)), (attention, Signature((7,), 3, integer_inputs=True, vocabulary=11))],
)
def test_recurrent_and_attention_modules_take_the_step_that_autograd_gives(
    factory: Callable[[], nn.Module], signature: Signature
) -> None:
    random = np.random.default_rng(3)
    x: Array = random.standard_normal((2, 6, *signature.shape)).astype(np.float32)
    if signature.integer_inputs:
        x = random.integers(0, signature.vocabulary, x.shape)
    model, clients = model_of(factory), Clients(x, Y)
    start = first(model, signature)
    batch, _ = train(model, clients, signature=signature)
    module = load(factory(), start)
    loss = functional.cross_entropy(module(torch.tensor(x[1])), torch.tensor(Y[1]))
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    names = [name for name, _ in module.named_parameters()]
    named = {name: gradient.numpy() for name, gradient in zip(names, gradients, strict=True)}
    assert_one_step(start, batch.values[1], named, tolerance=2e-6)
    assert TRAINER.predict(model, signature, start.values, x[0], {}).shape == (6, 3)


class Squeezed(nn.Linear):
    """Squeezes every axis of one entry, also that of a batch of one example."""

    def __init__(self) -> None:
        super().__init__(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


@pytest.mark.parametrize("examples", [1, 6])
def test_one_output_needs_no_axis_of_its_own(examples: int) -> None:
    signature = Signature((4,), 2)
    plain = Model(factory="torch.nn:Linear", arguments={"in_features": 4, "out_features": 1})
    clients = Clients(X[:, :examples], Y[:, :examples] % 2)
    wanted, _ = train(plain, clients, signature=signature)
    batch, _ = train(model_of(Squeezed), clients, signature=signature)
    np.testing.assert_allclose(batch.values, wanted.values, atol=1e-6)
    values = first(plain, signature).values
    assert TRAINER.predict(model_of(Squeezed), signature, values, X[0, :examples], {}).shape == (examples, 1)


class Caching(nn.Module):
    """Caches a tensor at its first forward pass, in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = torch.linspace(1, 2, 4)
        out: Tensor = self.inner(x * self.scale)
        return out


def test_a_tensor_cached_while_predicting_can_take_part_in_training() -> None:
    model = model_of(Caching)
    TRAINER.predict(model, SIGNATURE, first(model).values, X[0], {})
    assert train(model)[0].values.any()


def test_a_module_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_torch_models.py").write_text(
        "from torch import nn\ndef build(width):\n    return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    model = Model(factory="my_torch_models:build", arguments={"width": 5})
    assert first(model).values.size == 25 + 18
    assert train(model)[0].values.any()
