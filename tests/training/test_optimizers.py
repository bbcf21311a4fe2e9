"""Client optimizers against formulas written independently, and torch's own where it is there."""

from __future__ import annotations

import numpy as np
import pytest

from hansa.training.optimizers import Adam, AdamW, Sgd

STEPS = 12


def gradient(w):
    """The gradient of a fixed non-quadratic function, so that steps depend on where they are."""
    return np.tanh(w) + 0.3 * w**3


def run(optimizer, start):
    parameter = start.copy()
    buffers = optimizer.start(parameter)
    for number in range(1, STEPS + 1):
        optimizer.step(parameter, gradient(parameter), buffers, number)
    return parameter


@pytest.fixture
def start():
    return np.random.default_rng(0).standard_normal((3, 4))


def test_sgd_is_the_rate_times_the_gradient(start):
    w = start.copy()
    for _ in range(STEPS):
        w = w - 0.1 * gradient(w)
    np.testing.assert_allclose(run(Sgd(learning_rate=0.1), start), w, rtol=1e-12)


def test_sgd_with_momentum_and_weight_decay(start):
    w, v = start.copy(), np.zeros_like(start)
    for _ in range(STEPS):
        v = 0.8 * v + gradient(w) + 0.05 * w
        w = w - 0.1 * v
    np.testing.assert_allclose(run(Sgd(learning_rate=0.1, momentum=0.8, weight_decay=0.05), start), w, rtol=1e-12)


def adam(start, rate, beta1, beta2, epsilon, penalty=0.0, decay=0.0):
    w, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t in range(1, STEPS + 1):
        g = gradient(w) + penalty * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w = w - rate * decay * w - rate * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
    return w


def test_adam_is_algorithm_1_of_its_paper(start):
    np.testing.assert_allclose(run(Adam(), start), adam(start, 1e-3, 0.9, 0.999, 1e-8), rtol=1e-12)
    other = Adam(learning_rate=0.1, beta1=0.5, beta2=0.7, epsilon=0.01, weight_decay=0.2)
    np.testing.assert_allclose(run(other, start), adam(start, 0.1, 0.5, 0.7, 0.01, penalty=0.2), rtol=1e-12)


def test_adamw_decays_weights_beside_the_step_and_not_through_the_moments(start):
    expected = adam(start, 1e-3, 0.9, 0.999, 1e-8, decay=0.01)
    np.testing.assert_allclose(run(AdamW(), start), expected, rtol=1e-12)
    expected = adam(start, 0.1, 0.9, 0.999, 1e-8, decay=0.3)
    np.testing.assert_allclose(run(AdamW(learning_rate=0.1, weight_decay=0.3), start), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("ours", "name", "theirs"),
    [
        (
            Sgd(learning_rate=0.1, momentum=0.9, weight_decay=0.1),
            "SGD",
            {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        ),
        (Adam(learning_rate=0.1, weight_decay=0.1), "Adam", {"lr": 0.1, "weight_decay": 0.1}),
        (AdamW(learning_rate=0.1, weight_decay=0.1), "AdamW", {"lr": 0.1, "weight_decay": 0.1}),
    ],
)
def test_optimizers_step_as_torchs_do(start, ours, name, theirs):
    torch = pytest.importorskip("torch")
    parameter = torch.tensor(start, requires_grad=True)
    optimizer = getattr(torch.optim, name)([parameter], **theirs)
    for _ in range(STEPS):
        parameter.grad = torch.tensor(gradient(parameter.detach().numpy()))
        optimizer.step()
    np.testing.assert_allclose(run(ours, start), parameter.detach().numpy(), rtol=1e-7)


@pytest.mark.parametrize("optimizer", [Sgd(learning_rate=0.1, momentum=0.5), Adam(), AdamW()])
def test_steps_are_taken_in_place_and_leave_the_gradient_alone(optimizer, start):
    parameter, slope = start.astype(np.float32), np.ones_like(start, dtype=np.float32)
    view, buffers = parameter[:2], optimizer.start(parameter)
    optimizer.step(view, slope[:2], {name: buffer[:2] for name, buffer in buffers.items()}, 1)
    assert parameter.dtype == np.float32
    assert not np.array_equal(parameter[:2], start[:2].astype(np.float32))
    np.testing.assert_array_equal(parameter[2], start[2].astype(np.float32))
    assert (slope == 1).all()


def test_only_sgd_without_momentum_is_plain():
    assert Sgd(learning_rate=0.1, weight_decay=0.1).plain_sgd
    assert not Sgd(learning_rate=0.1, momentum=0.1).plain_sgd
    assert not Adam().plain_sgd
    assert not AdamW().plain_sgd


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_effective_steps_are_the_weights_that_an_update_gives_its_gradients(momentum, steps):
    """With the gradients set to ones, the update itself is -eta times the sum of the weights."""
    optimizer = Sgd(learning_rate=0.5, momentum=momentum)
    parameter = np.zeros(1)
    buffers = optimizer.start(parameter)
    for number in range(1, steps + 1):
        optimizer.step(parameter, np.ones(1), buffers, number)
    effective = optimizer.effective_steps(np.array([steps]))
    assert effective.dtype == np.float64
    assert effective[0] == pytest.approx(-parameter[0] / 0.5, rel=1e-9)


def test_an_adam_update_has_no_effective_steps():
    assert np.isnan(Adam().effective_steps(np.array([3, 4]))).all()
