"""Every published method against its closed form, or three rounds by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hansa import recipe
from hansa.core.nouns import Signature
from hansa.core.registry import PIECES
from hansa.testing import MemoryClients, Rehearsal, quadratic_clients, quadratic_signature
from hansa.training.linear import LinearTrainer
from hansa.training.optimizers import Sgd

HESSIANS = [
    np.array(h, dtype=float) for h in ([[2.0, 0.3], [0.3, 0.5]], [[0.4, 0.0], [0.0, 1.5]], [[1.0, -0.2], [-0.2, 1]])
]
OPTIMA = [np.array(a) for a in ([1.0, -2.0], [4.0, 0.5], [-3.0, 2.0])]
SIZES = [6, 2, 4]
SHARES = np.array(SIZES) / sum(SIZES)
RATE, STEPS = 0.1, 5
START = np.array([0.5, 0.25])


def rehearse(
    method, *, sizes=SIZES, hessians=HESSIANS, optima=OPTIMA, optimizer=None, cohort=None, chunk=64, **settings
):
    work = {key: settings.pop(key) for key in ("epochs", "steps", "batch_size") if key in settings} or {"steps": STEPS}
    plan = recipe(
        method,
        name="quadratics",
        rounds=3,
        model={"factory": "hansa.testing:QuadraticTrainer", "arguments": {"start": START.tolist()}},
        trainer={
            "kind": "hansa.testing:QuadraticTrainer",
            "optimizer": optimizer or {"kind": "sgd", "learning_rate": RATE},
            **({} if method == "fedsgd" else work),
        },
        cohort=cohort or {"kind": "full"},
        **settings,
    )
    return Rehearsal(plan, quadratic_clients(hessians, optima, sizes), quadratic_signature(2), chunk=chunk)


def power(hessian, steps, rate=RATE):
    return np.linalg.matrix_power(np.eye(2) - rate * hessian, steps)


def local_end(w, i, steps=STEPS, rate=RATE):
    """Where exact gradient descent on client i ends: a + (I - eta H)^K (w - a)."""
    return OPTIMA[i] + power(HESSIANS[i], steps, rate) @ (w - OPTIMA[i])


def mean_update(w, shares=SHARES, steps=(STEPS,) * 3):
    return sum(p * (local_end(w, i, k) - w) for i, (p, k) in enumerate(zip(shares, steps, strict=True)))


def root(matrices):
    """The w with sum_i A_i (w - a_i) = 0."""
    return np.linalg.solve(sum(matrices), sum(a @ b for a, b in zip(matrices, OPTIMA, strict=True)))


def weighted_optimum(shares=SHARES):
    return root([p * h for p, h in zip(shares, HESSIANS, strict=True)])


def test_every_registered_recipe_has_a_test_here():
    assert set(PIECES["recipe"]) == {
        "fedavg", "fedsgd", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "scaffold", "fednova",
        "fedbuff",  # in tests/simulation/test_timelines.py, against the published algorithm
    }  # fmt: skip


# FedAvg and FedSGD


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_fedavg_follows_its_closed_form_iteration(chunk):
    models = rehearse("fedavg", chunk=chunk).play(6)
    w = START
    for model in models:
        w = w + mean_update(w)
        np.testing.assert_allclose(model, w, rtol=2e-6, atol=2e-6)


def test_fedavg_stalls_at_its_biased_fixed_point_on_heterogeneous_quadratics():
    biased = root([p * (np.eye(2) - power(h, STEPS)) for p, h in zip(SHARES, HESSIANS, strict=True)])
    assert np.linalg.norm(biased - weighted_optimum()) > 0.05
    last = rehearse("fedavg").play(120)[-1]
    np.testing.assert_allclose(last, biased, atol=1e-5)


def test_fedavg_with_one_step_has_no_bias():
    last = rehearse("fedavg", steps=1).play(400)[-1]
    np.testing.assert_allclose(last, weighted_optimum(), atol=1e-5)


def test_fedavg_weighs_clients_by_their_examples_and_not_alike():
    first = rehearse("fedavg").play(1)[0]
    assert np.linalg.norm(first - (START + mean_update(START, np.full(3, 1 / 3)))) > 0.1


def test_fedavg_epochs_give_larger_clients_more_steps():
    model = rehearse("fedavg", epochs=2, batch_size=2).play(1)[0]
    np.testing.assert_allclose(model, START + mean_update(START, steps=(6, 2, 4)), rtol=2e-6)


def test_fedsgd_is_centralised_full_batch_gradient_descent_on_quadratics():
    models = rehearse("fedsgd").play(10)
    w = START
    for model in models:
        w = w - RATE * sum(p * h @ (w - a) for p, h, a in zip(SHARES, HESSIANS, OPTIMA, strict=True))
        np.testing.assert_allclose(model, w, rtol=2e-6, atol=2e-6)


def test_fedsgd_is_centralised_full_batch_gradient_descent_of_logistic_regression():
    random = np.random.default_rng(3)
    x = [random.standard_normal((n, 4)).astype(np.float32) for n in (9, 1, 30)]
    y = [random.integers(0, 2, len(rows)) for rows in x]
    plan = recipe(
        "fedsgd",
        name="pooled",
        rounds=20,
        model={"factory": "hansa.training.linear:logistic"},
        trainer={"kind": "linear", "optimizer": {"kind": "sgd", "learning_rate": 0.7}},
    )
    models = Rehearsal(plan, MemoryClients(x, y), Signature((4,), 2)).play()
    pooled, labels = np.concatenate(x).astype(float), np.concatenate(y)
    design = np.hstack([pooled, np.ones((len(pooled), 1))])
    w = np.zeros(5)
    for model in models:
        w = w - 0.7 * design.T @ (1 / (1 + np.exp(-design @ w)) - labels) / len(labels)
        np.testing.assert_allclose(model, w, rtol=1e-5, atol=1e-6)


# FedProx


def test_fedprox_pulls_every_local_step_towards_the_start():
    mu = 0.8
    model = rehearse("fedprox", mu=mu).play(1)[0]
    expected = np.zeros(2)
    for p, h, a in zip(SHARES, HESSIANS, OPTIMA, strict=True):
        bent = h + mu * np.eye(2)
        middle = np.linalg.solve(bent, h @ a + mu * START)
        expected += p * (middle + power(bent, STEPS) @ (START - middle))
    np.testing.assert_allclose(model, expected, rtol=2e-6)


def test_fedprox_with_one_step_or_without_pull_is_fedavg():
    assert np.array_equal(rehearse("fedprox", mu=0.8, steps=1).play(1), rehearse("fedavg", steps=1).play(1))
    assert np.array_equal(rehearse("fedprox", mu=0.0).play(3), rehearse("fedavg").play(3))


# SCAFFOLD


def test_scaffold_reaches_the_true_optimum_where_fedavg_stalls():
    equal = np.full(3, 1 / 3)
    rehearsal = rehearse("scaffold", chunk=2)
    last = rehearsal.play(400)[-1]
    np.testing.assert_allclose(last, weighted_optimum(equal), atol=1e-5)
    biased = root([np.eye(2) - power(h, STEPS) for h in HESSIANS])
    stalled = rehearse("fedavg", sizes=[1, 1, 1]).play(400)[-1]
    np.testing.assert_allclose(stalled, biased, atol=1e-5)
    assert np.linalg.norm(biased - weighted_optimum(equal)) > 0.05


def test_scaffold_control_variates_end_at_the_clients_gradients_in_the_optimum():
    rehearsal = rehearse("scaffold")
    rehearsal.play(400)
    at = weighted_optimum(np.full(3, 1 / 3))
    expected = [h @ (at - a) for h, a in zip(HESSIANS, OPTIMA, strict=True)]
    np.testing.assert_allclose(rehearsal.states["client_control"], expected, atol=1e-4)
    control = rehearsal.state.model[rehearsal.state.layout.slices["control"]]
    np.testing.assert_allclose(control, np.zeros(2), atol=1e-4)


def test_scaffold_under_partial_participation_is_algorithm_1_of_the_paper():
    rehearsal = rehearse("scaffold", cohort={"kind": "uniform", "size": 2}, learning_rate=0.9)
    x, c, own = START.copy(), np.zeros(2), np.zeros((3, 2))
    for number in range(1, 8):
        model = rehearsal.play(1)[0]
        cohort = np.flatnonzero(rehearsal.view.last == number)
        assert len(cohort) == 2
        moves, changes = [], []
        for i in cohort:
            y = x.copy()
            for _ in range(STEPS):
                y = y - RATE * (HESSIANS[i] @ (y - OPTIMA[i]) - own[i] + c)
            following = own[i] - c + (x - y) / (STEPS * RATE)
            moves.append(y - x)
            changes.append(following - own[i])
            own[i] = following
        x = x + 0.9 * np.mean(moves, axis=0)
        c = c + 2 / 3 * np.mean(changes, axis=0)
        np.testing.assert_allclose(model, x, rtol=1e-5, atol=1e-5)
        control = rehearsal.state.model[rehearsal.state.layout.slices["control"]]
        np.testing.assert_allclose(control, c, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(rehearsal.states["client_control"], own, rtol=1e-5, atol=1e-5)


def test_scaffold_under_partial_participation_still_reaches_the_optimum():
    last = rehearse("scaffold", cohort={"kind": "uniform", "size": 1}, steps=2).play(1500)[-1]
    np.testing.assert_allclose(last, weighted_optimum(np.full(3, 1 / 3)), atol=1e-4)


# FedNova


def fixed_point_of_normalised_averaging(steps, rate):
    return root([p / k * (np.eye(2) - power(h, k, rate)) for p, h, k in zip(SHARES, HESSIANS, steps, strict=True)])


def test_fednova_is_the_papers_update():
    model = rehearse("fednova", epochs=2, batch_size=2).play(1)[0]
    steps = (6, 2, 4)
    mean_steps = sum(p * k for p, k in zip(SHARES, steps, strict=True))
    directions = sum(
        p * (local_end(START, i, k) - START) / k for i, (p, k) in enumerate(zip(SHARES, steps, strict=True))
    )
    np.testing.assert_allclose(model, START + mean_steps * directions, rtol=3e-6)


def test_fednova_with_equal_steps_is_fedavg():
    np.testing.assert_allclose(rehearse("fednova").play(3), rehearse("fedavg").play(3), rtol=1e-6)


def test_fednova_removes_the_bias_of_unequal_steps():
    """Its fixed point tends to the weighted optimum as the rate falls; FedAvg's tends elsewhere."""
    work, steps = {"epochs": 4, "batch_size": 1}, (24, 8, 16)
    for rate, distance in ((0.01, 0.3), (0.0001, 0.003)):
        nova = fixed_point_of_normalised_averaging(steps, rate)
        assert np.linalg.norm(nova - weighted_optimum()) < distance
        rehearsal = rehearse("fednova", optimizer={"kind": "sgd", "learning_rate": rate}, **work)
        rehearsal.start_from(nova)
        np.testing.assert_allclose(rehearsal.play(3)[-1], nova, atol=3e-6)
    biased = root([p * k * h for p, k, h in zip(SHARES, steps, HESSIANS, strict=True)])
    assert np.linalg.norm(biased - weighted_optimum()) > 0.3


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_fednova_stays_at_the_weighted_optimum_with_momentums_effective_steps(momentum):
    """At a small rate an update is -eta |a_i|_1 grad_i, so normalised updates cancel in the optimum."""
    optimizer = {"kind": "sgd", "learning_rate": 1e-4, "momentum": momentum}
    moves = {}
    for method in ("fedavg", "fednova"):
        rehearsal = rehearse(method, optimizer=optimizer, epochs=4, batch_size=1)
        rehearsal.start_from(weighted_optimum())
        moves[method] = np.linalg.norm(rehearsal.play(1)[0] - weighted_optimum().astype(np.float32))
    assert moves["fednova"] < 0.02 * moves["fedavg"]


def test_fednova_leaves_a_fractional_number_of_effective_steps_exact_in_the_values():
    """The scale of the whole step may round (a lane), the direction must not."""
    optimizer = {"kind": "sgd", "learning_rate": RATE, "momentum": 0.7}
    model = rehearse("fednova", optimizer=optimizer, epochs=1, batch_size=2).play(1)[0]
    moves, weights = [], []
    for h, a, k in zip(HESSIANS, OPTIMA, (3, 1, 2), strict=True):
        w, v = START.copy(), np.zeros(2)
        for _ in range(k):
            v = 0.7 * v + h @ (w - a)
            w = w - RATE * v
        moves.append(w - START)
        weights.append(sum((1 - 0.7 ** (k - j)) / 0.3 for j in range(k)))
    direction = sum(p * m / t for p, m, t in zip(SHARES, moves, weights, strict=True))
    scale = sum(p * t for p, t in zip(SHARES, weights, strict=True))
    np.testing.assert_allclose(model, START + scale * direction, rtol=2e-3)
    ratio = (model - START) / direction
    np.testing.assert_allclose(ratio[0], ratio[1], rtol=2e-6)


# Server optimizers: three rounds by hand


def test_fedavgm_by_hand():
    models = rehearse("fedavgm", momentum=0.6, learning_rate=0.5).play(3)
    w, v = START, np.zeros(2)
    for model in models:
        v = 0.6 * v + mean_update(w)
        w = w + 0.5 * v
        np.testing.assert_allclose(model, w, rtol=3e-6)


def adaptive(rule, beta1, rate, tau):
    w, m, v = START, np.zeros(2), np.full(2, tau**2)
    for _ in range(3):
        delta = mean_update(w)
        m = beta1 * m + (1 - beta1) * delta
        v = rule(v, delta)
        w = w + rate * m / (np.sqrt(v) + tau)
        yield w


def yogi(v, delta):
    return v - 0.01 * delta**2 * np.sign(v - delta**2)


@pytest.mark.parametrize(
    ("method", "rule", "beta1"),
    [
        ("fedadagrad", lambda v, delta: v + delta**2, 0.0),
        ("fedadam", lambda v, delta: 0.99 * v + 0.01 * delta**2, 0.9),
        ("fedyogi", yogi, 0.9),
    ],
)
@pytest.mark.parametrize("tau", [1e-3, 0.5])
def test_adaptive_server_optimizers_by_hand(method, rule, beta1, tau):
    models = rehearse(method, learning_rate=0.3, tau=tau).play(3)
    for model, expected in zip(models, adaptive(rule, beta1, 0.3, tau), strict=True):
        np.testing.assert_allclose(model, expected, rtol=1e-5)


def test_yogi_lets_the_second_moment_fall_as_well_as_rise():
    """With a start far above delta^2 Yogi subtracts 0.01 delta^2, where Adam shrinks v by a hundredth."""
    rehearsal = rehearse("fedyogi", tau=100.0)
    rehearsal.play(1)
    second = rehearsal.state.slots["server_optimizer.params"]["second"]
    np.testing.assert_allclose(second, 1e4 - 0.01 * mean_update(START) ** 2, rtol=1e-9)


# Recipes as tables and as calls


def trainer_object(**settings):
    return LinearTrainer(optimizer=Sgd(learning_rate=0.1), **settings)


def built(method, **settings):
    return recipe(method, name="x", rounds=2, model={"factory": "hansa.training.linear:logistic"}, **settings)


def test_a_trainer_given_as_an_object_keeps_the_hooks_of_the_recipe():
    table = {"kind": "linear", "epochs": 1, "optimizer": {"kind": "sgd", "learning_rate": 0.1}}
    for method in ("fedprox", "scaffold"):
        plan = built(method, trainer=trainer_object(epochs=1))
        assert plan == built(method, trainer=table)
        assert plan.trainer.hooks


def test_a_trainer_given_as_an_object_keeps_the_whole_batch_of_fedsgd():
    plan = built("fedsgd", trainer=trainer_object(epochs=1))
    assert plan.trainer.batch_size == "all"


def test_a_section_of_a_recipe_given_as_none_is_absent():
    table = {"kind": "linear", "epochs": 1, "optimizer": {"kind": "sgd", "learning_rate": 0.1}}
    assert built("fedavg", trainer=table, data=None, features=None) == built("fedavg", trainer=table)
