"""The linear trainer against finite differences, closed forms, and itself one client at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.algorithms.hooks import ControlVariate, Prox
from hansa.core.errors import ModelError
from hansa.core.layout import TRAIN_LOSS, Branch
from hansa.core.nouns import Assignment, ClientBatch, ClientContext, Scaling, Signature
from hansa.core.sections import Model
from hansa.core.streams import Streams
from hansa.testing import MemoryClients
from hansa.training.linear import LinearModel, LinearTrainer, logistic
from hansa.training.optimizers import Adam, AdamW, Sgd

FEATURES = 4
KINDS = {"logistic": 2, "softmax": 3, "regression": 0}


def model(kind, **arguments):
    return Model(factory=f"hansa.training.linear:{kind}", arguments=arguments)


def signature(kind):
    return Signature((FEATURES,), KINDS[kind])


def clients(kind, sizes, seed=0):
    random = np.random.default_rng(seed)
    x = [random.standard_normal((size, FEATURES)).astype(np.float32) for size in sizes]
    if KINDS[kind]:
        return MemoryClients(x, [random.integers(0, KINDS[kind], size) for size in sizes])
    return MemoryClients(x, [random.standard_normal(size).astype(np.float32) for size in sizes])


def start_values(size, seed=1):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def train(
    kind,
    trainer,
    data,
    *,
    ordinals=None,
    values=None,
    states=None,
    branches=(),
    scaling=None,
    intercept=True,
    round_number=2,
):
    section = model(kind, intercept=intercept)
    initial = trainer.initial(section, signature(kind), Streams(0).of("model"))
    layout = initial.layout.with_branches(*branches).with_lanes(TRAIN_LOSS)
    values = start_values(layout.size) if values is None else values
    ordinals = np.arange(len(data.x)) if ordinals is None else np.asarray(ordinals)
    assignment = Assignment(round_number, layout, values, ordinals, population=len(data.x))
    batch = ClientBatch(ordinals, data, signature(kind), scaling)
    return trainer.train(section, ClientContext(assignment, batch, Streams(5)), states or {}), values


def loss_of(kind, values, x, y, *, intercept=True):
    """The mean loss in float64, written independently."""
    outputs = max(KINDS[kind], 1) if kind == "softmax" else 1
    weight = values[: FEATURES * outputs].reshape(FEATURES, outputs).astype(float)
    scores = x.astype(float) @ weight + (values[FEATURES * outputs :].astype(float) if intercept else 0)
    if kind == "regression":
        return np.mean((scores[:, 0] - y) ** 2)
    if kind == "logistic":
        return np.mean(np.log1p(np.exp(-(2 * y - 1) * scores[:, 0])))
    return np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y])


def gradient_of(kind, values, x, y, *, intercept=True, step=1e-5):
    values = values.astype(float)
    gradient = np.zeros(len(values))
    for i in range(len(values)):
        up, down = values.copy(), values.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (
            loss_of(kind, up, x, y, intercept=intercept) - loss_of(kind, down, x, y, intercept=intercept)
        ) / (2 * step)
    return gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("intercept", [True, False])
def test_a_full_batch_step_is_the_negative_gradient(kind, intercept):
    data = clients(kind, (7, 1, 20))
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=1.0), steps=1, batch_size="all")
    (batch, following), values = train(kind, trainer, data, intercept=intercept)
    for i, (x, y) in enumerate(zip(data.x, data.y, strict=True)):
        expected = -gradient_of(kind, values, x, y, intercept=intercept)
        np.testing.assert_allclose(batch.values[i], expected, rtol=1e-4, atol=1e-5)
        assert batch.lane("train_loss")[i] == pytest.approx(loss_of(kind, values, x, y, intercept=intercept), abs=2e-5)
    assert following == {}
    np.testing.assert_array_equal(batch.side["steps"], [1, 1, 1])


def test_least_squares_ends_at_the_closed_form():
    data = clients("regression", (30, 50))
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.2), steps=500, batch_size="all")
    (batch, _), values = train("regression", trainer, data)
    for i, (x, y) in enumerate(zip(data.x, data.y, strict=True)):
        design = np.hstack([x, np.ones((len(x), 1))]).astype(float)
        expected = np.linalg.lstsq(design, y, rcond=None)[0]
        np.testing.assert_allclose(values + batch.values[i], expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "work", [{"epochs": 3, "batch_size": 4}, {"steps": 7, "batch_size": 4}, {"epochs": 2, "batch_size": "all"}]
)
@pytest.mark.parametrize("optimizer", [Sgd(learning_rate=0.1, momentum=0.9, weight_decay=0.01), Adam(), AdamW()])
def test_a_batch_of_ragged_clients_trains_like_each_alone(kind, work, optimizer):
    data = clients(kind, (9, 2, 31, 4))
    trainer = LinearTrainer(optimizer=optimizer, **work)
    (together, _), _ = train(kind, trainer, data)
    for i in range(4):
        (alone, _), _ = train(kind, trainer, data, ordinals=[i])
        np.testing.assert_allclose(together.values[i], alone.values[0], rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(together.lanes[i], alone.lanes[0], atol=200)
        assert together.side["steps"][i] == alone.side["steps"][0] or np.isnan(alone.side["steps"][0])


def test_the_order_of_clients_in_a_batch_does_not_matter():
    data = clients("logistic", (9, 2, 31, 4))
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), epochs=2, batch_size=3)
    (one, _), _ = train("logistic", trainer, data, ordinals=[0, 1, 2, 3])
    (other, _), _ = train("logistic", trainer, data, ordinals=[2, 0, 3, 1])
    np.testing.assert_allclose(one.values[[2, 0, 3, 1]], other.values, rtol=1e-4, atol=1e-6)


def test_one_client_gives_the_same_bits_again_and_others_in_another_round():
    data = clients("softmax", (9, 20))
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), epochs=2, batch_size=3)
    for ordinals in ([1], [0, 1]):
        (one, _), _ = train("softmax", trainer, data, ordinals=ordinals)
        (again, _), _ = train("softmax", trainer, data, ordinals=ordinals)
        np.testing.assert_array_equal(one.values, again.values)
    (later, _), _ = train("softmax", trainer, data, ordinals=[0, 1], round_number=3)
    assert not np.array_equal(later.values, again.values)


def test_minibatch_sgd_follows_the_published_shuffles_by_hand():
    data = clients("regression", (7,))
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.05), epochs=2, batch_size=3)
    (batch, _), values = train("regression", trainer, data)
    w = values.astype(float)
    for epoch in range(2):
        order = Streams(5).of("order", 2).permutations(np.array([0]), np.array([7]), draw=epoch)[0]
        for chosen in (order[:3], order[3:6], order[6:]):
            w = w - 0.05 * gradient_of("regression", w, data.x[0][chosen], data.y[0][chosen])
    np.testing.assert_allclose(values + batch.values[0], w, rtol=1e-4, atol=1e-5)


def test_local_steps_start_from_a_row_each_where_clients_go_their_own_way():
    data = clients("logistic", (5, 5))
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.5), steps=2, batch_size="all")
    rows = np.stack([start_values(5, 1), start_values(5, 2)])
    (together, _), _ = train("logistic", trainer, data, values=rows)
    for i in (0, 1):
        (alone, _), _ = train("logistic", trainer, data, ordinals=[i], values=rows[i])
        np.testing.assert_allclose(together.values[i], alone.values[0], rtol=1e-4, atol=1e-6)


def test_training_leaves_the_server_s_model_and_the_data_alone():
    data = clients("logistic", (5, 8))
    before = [x.copy() for x in data.x]
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.5), epochs=2, batch_size=2)
    values = start_values(5)
    train("logistic", trainer, data, values=values)
    np.testing.assert_array_equal(values, start_values(5))
    for old, new in zip(before, data.x, strict=True):
        np.testing.assert_array_equal(old, new)


# Hooks


def test_prox_adds_its_pull_to_every_parameter():
    data = clients("logistic", (6, 11))
    settings_ = {"optimizer": Sgd(learning_rate=0.3), "steps": 3, "batch_size": "all"}
    (batch, _), values = train("logistic", LinearTrainer(hooks=(Prox(mu=0.7),), **settings_), data)
    for i, (x, y) in enumerate(zip(data.x, data.y, strict=True)):
        w = values.astype(float)
        for _ in range(3):
            w = w - 0.3 * (gradient_of("logistic", w, x, y) + 0.7 * (w - values))
        np.testing.assert_allclose(values + batch.values[i], w, rtol=1e-4, atol=1e-5)


def test_control_variates_bend_steps_and_hand_back_their_change():
    data = clients("logistic", (6, 11))
    parameters = (
        LinearTrainer(optimizer=Sgd(learning_rate=1.0), steps=1)
        .initial(model("logistic"), signature("logistic"), Streams(0).of("model"))
        .layout.branch("params")
        .parameters
    )
    control, own = start_values(5, 3), np.stack([start_values(5, 4), start_values(5, 5)])
    values = np.concatenate([start_values(5), control])
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.3), steps=3, batch_size="all", hooks=(ControlVariate(),))
    (batch, following), _ = train(
        "logistic",
        trainer,
        data,
        values=values,
        states={"client_control": own},
        branches=[Branch("control", parameters)],
    )
    for i, (x, y) in enumerate(zip(data.x, data.y, strict=True)):
        w = values[:5].astype(float)
        for _ in range(3):
            w = w - 0.3 * (gradient_of("logistic", w, x, y) - own[i] + control)
        expected = own[i] - control + (values[:5] - w) / (3 * 0.3)
        np.testing.assert_allclose(values[:5] + batch.values[i, :5], w, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(following["client_control"][i], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(batch.values[i, 5:], expected - own[i], rtol=1e-4, atol=1e-4)


def test_hooks_of_ragged_clients_meet_their_own_state():
    """Clients are sorted by steps inside; their states must be sorted with them."""
    data = clients("logistic", (2, 30, 7))
    parameters = (
        LinearTrainer(optimizer=Sgd(learning_rate=1.0), steps=1)
        .initial(model("logistic"), signature("logistic"), Streams(0).of("model"))
        .layout.branch("params")
        .parameters
    )
    own = np.stack([start_values(5, seed) for seed in (4, 5, 6)])
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), epochs=2, batch_size=4, hooks=(ControlVariate(),))
    arguments = {
        "values": np.concatenate([start_values(5), start_values(5, 9)]),
        "branches": [Branch("control", parameters)],
    }
    (together, following), _ = train("logistic", trainer, data, states={"client_control": own}, **arguments)
    for i in range(3):
        (alone, kept), _ = train(
            "logistic", trainer, data, ordinals=[i], states={"client_control": own[i : i + 1]}, **arguments
        )
        np.testing.assert_allclose(together.values[i], alone.values[0], rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(following["client_control"][i], kept["client_control"][0], rtol=1e-3, atol=2e-5)


# Models, prediction, refusals


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_x_w_plus_b(kind):
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), steps=1)
    initial = trainer.initial(model(kind), signature(kind), Streams(0).of("model"))
    assert not initial.values.any()
    values = start_values(initial.layout.size)
    x = np.random.default_rng(0).standard_normal((6, FEATURES)).astype(np.float32)
    outputs = trainer.predict(model(kind), signature(kind), values, x, {})
    views = initial.layout.views(values, "params")
    assert outputs.shape == (6, 3 if kind == "softmax" else 1)
    np.testing.assert_allclose(outputs, x @ views["weight"] + views["intercept"], rtol=1e-5, atol=1e-6)


def test_examples_of_any_shape_are_flattened():
    data = MemoryClients([np.ones((3, 2, 2), np.float32)], [np.array([0, 1, 1])])
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), steps=1)
    shape = Signature((2, 2), 2)
    initial = trainer.initial(model("logistic"), shape, Streams(0).of("model"))
    layout = initial.layout.with_lanes(TRAIN_LOSS)
    assignment = Assignment(1, layout, initial.values, np.array([0]), 1)
    context = ClientContext(assignment, ClientBatch(np.array([0]), data, shape), Streams(0))
    batch, _ = trainer.train(model("logistic"), context, {})
    np.testing.assert_allclose(batch.values[0], np.full(5, 0.1 * 0.5 / 3), rtol=1e-5)
    assert trainer.predict(model("logistic"), shape, batch.values[0], data.x[0], {}).shape == (3, 1)


def test_scaled_features_are_what_the_model_sees():
    data = clients("regression", (9,))
    scaling = Scaling(np.full(FEATURES, 2.0, np.float32), np.full(FEATURES, 4.0, np.float32))
    scaled = MemoryClients([(data.x[0] - 2) / 4], data.y)
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), epochs=2, batch_size=4)
    (one, _), _ = train("regression", trainer, data, scaling=scaling)
    (other, _), _ = train("regression", trainer, scaled)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_scores_far_from_zero_do_not_overflow(kind):
    data = clients(kind, (6,))
    data.x[0][:] *= 1e4
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=1.0), epochs=3, batch_size=2)
    (batch, _), _ = train(kind, trainer, data)
    assert np.isfinite(batch.values).all()
    assert (batch.lane("train_loss") >= 0).all()


@pytest.mark.parametrize(
    ("kind", "data", "what"),
    [
        ("logistic", Signature((4,), 3), "3 classes"),
        ("logistic", Signature((4,), 0), "a real-valued label"),
        ("softmax", Signature((4,), 0), "a real-valued label"),
        ("regression", Signature((4,), 2), "2 classes"),
        ("softmax", Signature((4,), 5, integer_inputs=True, vocabulary=9), "tokens"),
    ],
)
def test_data_that_the_model_does_not_fit_are_refused(kind, data, what):
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), steps=1)
    with pytest.raises(ModelError, match=what) as error:
        trainer.initial(model(kind), data, Streams(0).of("model"))
    assert "logistic for two classes, softmax for more" in error.value.action


def test_a_factory_that_returns_something_else_is_refused():
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), steps=1)
    for name, words in (("lying", "returned dict"), ("leaving", "raised SystemExit: 0")):
        with pytest.raises(ModelError, match=words):
            trainer.initial(Model(factory=f"{__name__}:{name}"), Signature((4,), 2), Streams(0).of("model"))


def lying() -> LinearModel:
    return {}


def leaving() -> LinearModel:
    raise SystemExit(0)


def mine() -> LinearModel:
    return logistic(intercept=False)


def interrupted() -> LinearModel:
    raise KeyboardInterrupt


def unannotated():
    raise AssertionError("it was called")


class Called:
    def __init__(self):
        raise AssertionError("it was called")


table = {"a": 1}


@pytest.mark.parametrize(
    "factory",
    ["subprocess:Popen", "os:getcwd", "sys:exit", *(f"{__name__}:{n}" for n in ("unannotated", "Called", "table"))],
)
def test_what_does_not_say_that_it_returns_a_linear_model_is_not_called(factory):
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), steps=1)
    with pytest.raises(ModelError, match="was not called.*annotate your function"):
        trainer.initial(Model(factory=factory), Signature((4,), 2), Streams(0).of("model"))


def test_a_function_of_ones_own_that_says_so_is_called():
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), steps=1)
    for factory, arguments in (
        (f"{__name__}:mine", {}),
        ("hansa.training.linear:LinearModel", {"loss": "binary-cross-entropy"}),
    ):
        section = Model(factory=factory, arguments=arguments)
        assert trainer.initial(section, Signature((4,), 2), Streams(0).of("model")).values.size in {4, 5}


def test_an_interrupt_within_a_factory_passes():
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), steps=1)
    with pytest.raises(KeyboardInterrupt):
        trainer.initial(Model(factory=f"{__name__}:interrupted"), Signature((4,), 2), Streams(0).of("model"))


@pytest.mark.parametrize("arguments", [{"intercpt": True}, {"hidden": 3}])
def test_a_factory_that_refuses_its_arguments_is_told(arguments):
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), steps=1)
    with pytest.raises(ModelError, match=next(iter(arguments))):
        trainer.initial(model("logistic", **arguments), Signature((4,), 2), Streams(0).of("model"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 13), st.integers(1, 3), st.integers(0, 99))
def test_any_ragged_batch_trains_like_each_alone(sizes, batch_size, epochs, seed):
    data = clients("logistic", sizes, seed)
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), epochs=epochs, batch_size=batch_size)
    (together, _), _ = train("logistic", trainer, data)
    for i in range(len(sizes)):
        (alone, _), _ = train("logistic", trainer, data, ordinals=[i])
        np.testing.assert_allclose(together.values[i], alone.values[0], rtol=1e-3, atol=2e-5)
