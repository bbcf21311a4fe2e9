"""The torch trainer against closed forms, torch's own optimizers, and its numpy sibling."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hansa.algorithms.hooks import ControlVariate, Prox
from hansa.core.errors import HansaError, ModelError
from hansa.core.layout import TRAIN_LOSS, Array, Branch, Floats, Int64s
from hansa.core.nouns import Assignment, Batch, ClientBatch, ClientContext, InitialModel, Scaling, Signature
from hansa.core.registry import resolve
from hansa.core.sections import Model
from hansa.core.streams import Stream, Streams
from hansa.training.linear import LinearTrainer
from hansa.training.local import local_batches
from hansa.training.optimizers import Adam, AdamW, Sgd
from hansa.training.torch_trainer import TorchTrainer


@dataclass(frozen=True)
class Clients:
    """Examples of a few clients, in memory."""

    x: Sequence[Array]
    y: Sequence[Array]

    @property
    def names(self) -> Sequence[str]:
        return [f"client-{i}" for i in range(len(self.x))]

    def sizes(self, ordinals: Int64s) -> Int64s:
        return np.array([len(self.x[i]) for i in ordinals], dtype=np.int64)

    def gather(self, ordinals: Int64s, positions: Int64s) -> tuple[Array, Array]:
        rows = list(zip(ordinals, np.maximum(positions, 0), strict=True))
        return np.stack([_some(self.x[i])[at] for i, at in rows]), np.stack([_some(self.y[i])[at] for i, at in rows])


def _some(examples: Array) -> Array:
    return examples if len(examples) else np.zeros((1, *examples.shape[1:]), examples.dtype)


FEATURES, CLASSES = 5, 3
SIGNATURE = Signature((FEATURES,), CLASSES)
LINEAR = Model(factory="torch.nn:Linear", arguments={"in_features": FEATURES, "out_features": CLASSES})
SGD = Sgd(learning_rate=0.1)


def some_clients(sizes: Sequence[int] = (7, 4, 12, 1), signature: Signature = SIGNATURE) -> Clients:
    random = np.random.default_rng(5)
    if signature.integer_inputs:
        x = [random.integers(0, signature.vocabulary, (size, *signature.shape)) for size in sizes]
    else:
        x = [random.standard_normal((size, *signature.shape)).astype(np.float32) for size in sizes]
    if signature.classes:
        return Clients(x, [random.integers(0, signature.classes, size) for size in sizes])
    return Clients(x, [random.standard_normal(size).astype(np.float32) for size in sizes])


def context_of(
    initial: InitialModel,
    clients: Clients,
    *,
    trainer: Any = None,
    signature: Signature = SIGNATURE,
    ordinals: Sequence[int] | None = None,
    round_number: int = 3,
    scaling: Scaling | None = None,
    control: Floats | None = None,
) -> ClientContext:
    """Return what the engine would hand to the trainer."""
    layout, model = initial.layout.with_lanes(TRAIN_LOSS), initial.values
    for hook in trainer.hooks if trainer else ():
        for name in hook.branches:
            layout = layout.with_branches(Branch(name, layout.branch("params").parameters))
            assert control is not None
            model = np.concatenate([model, control])
    cohort = np.arange(len(clients.x)) if ordinals is None else np.array(ordinals)
    assignment = Assignment(round=round_number, layout=layout, model=model, cohort=cohort, population=len(clients.x))
    return ClientContext(assignment, ClientBatch(cohort, clients, signature, scaling), Streams(11))


def trained(
    trainer: Any, model: Model, clients: Clients, signature: Signature = SIGNATURE, **more: Any
) -> tuple[Batch, dict[str, Array], InitialModel]:
    """Return the updates and next states of clients that start from the trainer's initial model."""
    initial = trainer.initial(model, signature, Stream(1))
    states = more.pop("states", {})
    context = context_of(initial, clients, trainer=trainer, signature=signature, **more)
    batch, following = trainer.train(model, context, states)
    return batch, following, initial


def parameters_of(initial: InitialModel, values: Floats | None = None) -> dict[str, Tensor]:
    """Return a model's parameters as separate tensors."""
    views = initial.layout.views(initial.values if values is None else values, "params")
    return {name: torch.tensor(view) for name, view in views.items()}


def test_the_registry_finds_the_trainer() -> None:
    assert resolve("trainer", "torch") is TorchTrainer


def test_without_torch_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("hansa.training.torch_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("hansa.training.torch_loop", raising=False)
    monkeypatch.delattr("hansa.training.torch_model", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(HansaError, match=r"pip install -e .\.\[torch\]") as caught:
        TorchTrainer(optimizer=SGD, epochs=1).initial(LINEAR, SIGNATURE, Stream(1))
    assert caught.value.code == "HANSA-EXTRA-MISSING"


# --- one client's steps


def test_one_full_batch_step_of_sgd_is_minus_the_rate_times_the_gradient() -> None:
    clients = some_clients([6])
    batch, _, initial = trained(TorchTrainer(optimizer=SGD, steps=1, batch_size="all"), LINEAR, clients)
    weight, bias = initial.values[:15].reshape(3, 5), initial.values[15:]
    scores = clients.x[0] @ weight.T + bias
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    residual = (shares - np.eye(CLASSES)[clients.y[0]]) / 6
    expected = -0.1 * np.concatenate([(residual.T @ clients.x[0]).ravel(), residual.sum(axis=0)])
    np.testing.assert_allclose(batch.values[0], expected, atol=1e-6)
    loss = -np.log(shares[np.arange(6), clients.y[0]]).mean()
    assert batch.lane("train_loss")[0] == pytest.approx(loss, abs=1e-5)
    assert batch.side["steps"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("classes", "outputs", "factory"),
    [(3, 3, "softmax"), (2, 1, "logistic"), (0, 1, "regression")],
)
def test_a_linear_module_equals_the_numpy_trainer_on_ragged_clients(classes: int, outputs: int, factory: str) -> None:
    signature = Signature((FEATURES,), classes)
    clients = some_clients((7, 4, 12, 1), signature)
    settings: dict[str, Any] = {
        "optimizer": Sgd(learning_rate=0.05, momentum=0.5, weight_decay=0.01),
        "epochs": 3,
        "batch_size": 4,
        "hooks": (Prox(mu=0.3),),
    }
    zeros = Model(factory=f"{__name__}:zero_linear", arguments={"inputs": FEATURES, "outputs": outputs})
    batch, _, initial = trained(TorchTrainer(**settings), zeros, clients, signature)
    linear = Model(factory=f"hansa.training.linear:{factory}")
    wanted, _, sibling = trained(LinearTrainer(**settings), linear, clients, signature)
    weights = sibling.layout.views(wanted.values, "params")
    ours = initial.layout.views(batch.values, "params")
    np.testing.assert_allclose(ours["weight"], np.swapaxes(weights["weight"], 1, 2), atol=2e-6)
    np.testing.assert_allclose(ours["bias"], weights["intercept"], atol=2e-6)
    np.testing.assert_allclose(batch.lanes, wanted.lanes, atol=2**24 * 1e-5)
    np.testing.assert_array_equal(batch.side["steps"], wanted.side["steps"])


def test_prox_and_control_variate_bend_gradients_as_an_explicit_loop_does() -> None:
    clients, size = some_clients([6, 6]), 18
    random = np.random.default_rng(3)
    control = random.standard_normal(size).astype(np.float32)
    own = random.standard_normal((2, size)).astype(np.float32)
    trainer = TorchTrainer(optimizer=SGD, steps=4, batch_size="all", hooks=(Prox(mu=0.7), ControlVariate()))
    states = {"client_control": own}
    batch, following, initial = trained(trainer, LINEAR, clients, control=control, states=states)
    start = torch.tensor(initial.values)
    for i in range(2):
        flat = start.clone().requires_grad_()
        x, y = torch.tensor(clients.x[i]), torch.tensor(clients.y[i])
        for _ in range(4):
            loss = functional.cross_entropy(functional.linear(x, flat[:15].view(3, 5), flat[15:]), y)
            loss = loss + 0.7 / 2 * ((flat - start) ** 2).sum() + flat @ torch.tensor(control - own[i])
            (gradient,) = torch.autograd.grad(loss, flat)
            flat = (flat - 0.1 * gradient).detach().requires_grad_()
        change = (flat - start).detach().numpy()
        np.testing.assert_allclose(batch.values[i, :size], change, atol=1e-5)
        following_control = own[i] - control - change / (4 * 0.1)
        np.testing.assert_allclose(following["client_control"][i], following_control, atol=1e-4)
        np.testing.assert_allclose(batch.values[i, size:], following_control - own[i], atol=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Sgd(learning_rate=0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
        (
            Sgd(learning_rate=0.05, momentum=0.9, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
        ),
        (Adam(learning_rate=0.01, weight_decay=0.1), lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1)),
        (AdamW(learning_rate=0.01), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01)),
    ],
    ids=["sgd", "momentum", "adam", "adamw"],
)
def test_optimizers_equal_those_of_torch(ours: Any, theirs: Any) -> None:
    clients = some_clients([11])
    model = Model(factory="hansa.training.networks:mlp", arguments={"inputs": 5, "hidden": [4], "classes": 3})
    trainer = TorchTrainer(optimizer=ours, epochs=5, batch_size=4)
    batch, _, initial = trained(trainer, model, clients)
    module = nn.Sequential(nn.Flatten(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    module.load_state_dict(parameters_of(initial))
    optimizer = theirs(module.parameters())
    plan = local_batches(trainer, np.array([0]), np.array([11]), Streams(11).of("order", 3))
    x, y = torch.tensor(clients.x[0]), torch.tensor(clients.y[0])
    for positions in plan.positions[0]:
        chosen = torch.tensor(positions[positions >= 0])
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(x[chosen]), y[chosen])
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        optimizer.step()
    end = torch.cat([parameter.detach().ravel() for parameter in module.parameters()]).numpy()
    np.testing.assert_allclose(batch.values[0], end - initial.values, atol=3e-6)


def test_each_client_starts_from_its_own_row_where_the_model_has_one() -> None:
    clients = some_clients([6, 5])
    trainer = TorchTrainer(optimizer=SGD, epochs=2, batch_size=3)
    initial = trainer.initial(LINEAR, SIGNATURE, Stream(1))
    rows = np.stack([initial.values, initial.values + 1])
    together = context_of(initial, clients)
    together = replace(together, assignment=replace(together.assignment, model=rows))
    batch, _ = trainer.train(LINEAR, together, {})
    for i in range(2):
        alone = context_of(InitialModel(initial.layout, rows[i]), clients, ordinals=[i])
        np.testing.assert_allclose(trainer.train(LINEAR, alone, {})[0].values[0], batch.values[i], atol=1e-6)


def test_a_client_without_examples_and_a_plain_step_hands_back_zero() -> None:
    batch, _, _ = trained(TorchTrainer(optimizer=SGD, epochs=2), LINEAR, some_clients([0, 4]))
    assert not batch.values[0].any()
    assert batch.values[1].any()


def test_scaling_with_a_row_for_each_client_follows_it_into_every_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hansa.training.torch_loop.GATHER_BYTES", 1)
    clients = some_clients([6, 5, 4])
    center = np.arange(15, dtype=np.float32).reshape(3, 1, 5)
    trainer = TorchTrainer(optimizer=SGD, epochs=1)
    scaled = Clients([x - c for x, c in zip(clients.x, center, strict=True)], clients.y)
    wanted, _, _ = trained(trainer, LINEAR, scaled)
    batch, _, _ = trained(trainer, LINEAR, clients, scaling=Scaling(center, np.ones_like(center)))
    np.testing.assert_array_equal(batch.values, wanted.values)


# --- the same numbers, whoever else trains


def test_a_client_trains_the_same_alone_as_among_others() -> None:
    clients, model = some_clients(), Model(factory=f"{__name__}:everything", arguments={})
    trainer = TorchTrainer(optimizer=Adam(learning_rate=0.01), epochs=2, batch_size=4, hooks=(Prox(mu=0.1),))
    rows = np.repeat(trainer.client_rows(model, SIGNATURE)["buffers"][None], 4, axis=0)
    batch, following, _ = trained(trainer, model, clients, states={"buffers": rows})
    again, _, _ = trained(trainer, model, clients, states={"buffers": rows})
    np.testing.assert_array_equal(again.values, batch.values)
    for i in (3, 1, 0, 2):
        alone, kept, _ = trained(trainer, model, clients, states={"buffers": rows[:1]}, ordinals=[i])
        np.testing.assert_array_equal(alone.values[0], batch.values[i])
        np.testing.assert_array_equal(alone.lanes[0], batch.lanes[i])
        np.testing.assert_array_equal(kept["buffers"][0], following["buffers"][i])


def test_gathers_of_any_size_give_the_same_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, clients = TorchTrainer(optimizer=SGD, epochs=1, batch_size=4), some_clients()
    whole, _, _ = trained(trainer, LINEAR, clients)
    monkeypatch.setattr("hansa.training.torch_loop.GATHER_BYTES", 8 * FEATURES * 12)
    split, _, _ = trained(trainer, LINEAR, clients)
    np.testing.assert_array_equal(split.values, whole.values)


def test_dropout_is_a_function_of_client_and_round() -> None:
    same = some_clients([8])
    clients = Clients([same.x[0]] * 2, [same.y[0]] * 2)
    model = Model(factory=f"{__name__}:dropped", arguments={})
    trainer = TorchTrainer(optimizer=SGD, steps=1, batch_size="all")
    batch, _, _ = trained(trainer, model, clients)
    later, _, _ = trained(trainer, model, clients, round_number=4)
    assert not np.allclose(batch.values[0], batch.values[1])
    assert not np.allclose(batch.values[0], later.values[0])
    plain, _, initial = trained(trainer, replace(model, arguments={"share": 0.0}), clients)
    np.testing.assert_allclose(plain.values[0], plain.values[1], atol=1e-7)
    x = same.x[0]
    once, again = (trainer.predict(model, SIGNATURE, initial.values, x, {}) for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_threads_that_train_at_once_do_not_meet() -> None:
    clients, model = some_clients([40] * 4), Model(factory=f"{__name__}:dropped", arguments={})
    trainer = TorchTrainer(optimizer=SGD, epochs=5, batch_size=4)

    def alone(i: int) -> Array:
        values: Array = trained(trainer, model, clients, ordinals=[i])[0].values[0]
        return values

    wanted = [alone(i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(alone, range(4))), wanted)


def test_torchs_own_random_numbers_go_on_as_if_nothing_had_been() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    model = Model(factory=f"{__name__}:dropped", arguments={})
    trainer = TorchTrainer(optimizer=SGD, epochs=1)
    _, _, initial = trained(trainer, model, some_clients())
    trainer.predict(model, SIGNATURE, initial.values, some_clients().x[0], {})
    torch.testing.assert_close(torch.rand(3), wanted, rtol=0, atol=0)


def test_first_values_are_a_function_of_the_stream() -> None:
    trainer = TorchTrainer(optimizer=SGD, epochs=1)
    one, same, other = (trainer.initial(LINEAR, SIGNATURE, Stream(key)).values for key in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_training_works_where_the_caller_has_turned_gradients_off() -> None:
    with torch.no_grad():
        batch, _, _ = trained(TorchTrainer(optimizer=SGD, epochs=1), LINEAR, some_clients())
    assert batch.values.any()


# --- prediction, divergence


def test_predictions_are_those_of_the_module_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, x = TorchTrainer(optimizer=SGD, epochs=1), some_clients([11]).x[0]
    initial = trainer.initial(LINEAR, SIGNATURE, Stream(1))
    values = np.concatenate([initial.values, np.ones(4, dtype=np.float32)])
    whole = trainer.predict(LINEAR, SIGNATURE, values, x, {})
    np.testing.assert_allclose(whole, x @ values[:15].reshape(3, 5).T + values[15:18], atol=1e-6)
    assert whole.dtype == np.float32
    monkeypatch.setattr("hansa.training.torch_loop.PREDICT_ROWS", 4)
    np.testing.assert_allclose(trainer.predict(LINEAR, SIGNATURE, values, x, {}), whole, atol=1e-6)
    assert trainer.predict(LINEAR, SIGNATURE, values, x[:0], {}).shape == (0, 3)


def test_a_diverged_client_hands_back_what_is_not_finite_and_spoils_no_other() -> None:
    clients = some_clients([6, 6])
    wanted, _, _ = trained(TorchTrainer(optimizer=SGD, epochs=2), LINEAR, clients, ordinals=[1])
    clients.x[0][:] = np.inf
    batch, _, _ = trained(TorchTrainer(optimizer=SGD, epochs=2), LINEAR, clients)
    assert not np.isfinite(batch.values[0]).all()
    np.testing.assert_allclose(batch.values[1], wanted.values[0], atol=1e-6)


def test_a_module_that_fails_in_training_is_named() -> None:
    model = Model(factory=f"{__name__}:Trapped", arguments={})
    with pytest.raises(ModelError, match=r"Training '\S+:Trapped' raised ValueError: no mask") as caught:
        trained(TorchTrainer(optimizer=SGD, epochs=1), model, some_clients())
    assert caught.value.code == "HANSA-MODEL-UNSUITABLE"


# --- modules that the plans above name


def zero_linear(inputs: int, outputs: int) -> nn.Module:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def dropped(share: float = 0.5) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Dropout(share), nn.Linear(16, CLASSES))


def everything() -> nn.Module:
    """Return a module with dropout and BatchNorm."""
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES))


class Trapped(nn.Linear):
    """Works in eval mode only."""

    def __init__(self) -> None:
        super().__init__(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("no mask")
        return super().forward(x)
