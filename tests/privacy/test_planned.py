"""Events are folded from the plan's own parts: sampler, participations, multiplier, matrix, who adds the noise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tests.algorithms.test_privacy_checks import BASE, DISTRIBUTED, POISSON, SECURE, private

from hansa.algorithms.plan import plan_from_mapping
from hansa.algorithms.private_sums import private_code
from hansa.core.errors import HansaError
from hansa.core.layout import COUNT, Branch, Layout, Parameter
from hansa.privacy.accounting import Composition, charged
from hansa.privacy.event import FixedSizeGaussian, Gaussian, MatrixGaussian, PoissonGaussian, rho
from hansa.privacy.mechanisms import BANDED_MATRIX, INDEPENDENT, TREE, times
from hansa.privacy.planned import cost_of, planned_release

LAYOUT = Layout((Branch("params", (Parameter("w", (5000,)),)),), (COUNT,))


def plan_of(*changes):
    tables = dict(BASE)
    for change in changes:
        tables |= change
    return plan_from_mapping(tables)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, (Gaussian(noise_multiplier=2.0), 5)),
        ({"cohort": {"kind": "full"}}, (Gaussian(noise_multiplier=2.0), 40)),
        ({"cohort": {"kind": "uniform", "size": 100}}, (Gaussian(noise_multiplier=2.0), 40)),
        ({"cohort": {"kind": "min-separation", "size": 100, "rounds": 8}}, (Gaussian(noise_multiplier=2.0), 5)),
        ({"cohort": {"kind": "min-separation", "size": 100, "rounds": 7}}, (Gaussian(noise_multiplier=2.0), 6)),
        ({"cohort": {"kind": "poisson", "rate": 0.1}}, (Gaussian(noise_multiplier=2.0), 40)),
        (POISSON, (PoissonGaussian(probability=0.1, noise_multiplier=2.0), 40)),
    ],
)
def test_the_event_is_folded_from_the_plan(change, expected):
    plan = plan_of(change)
    assert INDEPENDENT.composition(plan, 2.0) == Composition.of(expected)


def test_over_selection_is_part_of_the_share_of_a_fixed_size():
    keys = {"trusted_sampling": True, "adjacency": "replace-one", "population": 1000}
    uniform = {"cohort": {"kind": "uniform", "size": 100}, "schedule": {"kind": "sync", "over_selection": 0.5}}
    plan = plan_of(private(**keys), uniform)
    assert INDEPENDENT.composition(plan, 3.0) == Composition.of(
        (FixedSizeGaussian(probability=0.15, noise_multiplier=3.0), 40)
    )


@pytest.mark.parametrize(("mechanism", "kind"), [(BANDED_MATRIX, "banded-matrix"), (TREE, "tree")])
def test_a_matrix_is_one_release_for_the_whole_run(mechanism, kind):
    plan = plan_of(private(mechanism=kind))
    assert mechanism.composition(plan, 2.0) == Composition.of(MatrixGaussian(noise_multiplier=2.0, participations=5))
    assert mechanism.matrix(plan).bands <= 8
    assert times(plan) == 5


def test_shares_of_noise_suffice_where_only_the_honest_ones_add_any():
    plan = plan_of(DISTRIBUTED | {"secure_aggregation": SECURE | {"assumed_colluding": 5}})
    code = private_code(plan, LAYOUT)
    wanted = plan.privacy.noise_multiplier * code.norm
    assert 35 * code.client_variance >= wanted**2 > 35 * (code.client_variance - 1)
    (event, count), = INDEPENDENT.composition(plan, plan.privacy.noise_multiplier, code).counts  # fmt: skip
    assert (event.parties, count) == (35, 5)
    assert event.noise_multiplier >= plan.privacy.noise_multiplier
    assert rho(event, "zero-out") <= rho(Gaussian(noise_multiplier=plan.privacy.noise_multiplier), "zero-out") * 1.001
    assert cost_of(plan, code).epsilon_charged <= plan.privacy.epsilon * (1 + 1e-9)


def test_the_charged_epsilon_is_that_of_the_accountant():
    cost = cost_of(plan_of())
    events = Composition.of((Gaussian(noise_multiplier=plan_of().privacy.noise_multiplier), 5))
    assert cost.epsilon_charged == charged(events, delta=1e-5, adjacency="zero-out")[0]
    assert cost.epsilon_charged <= 8.0 < cost.epsilon_charged * 1.001
    assert cost.epsilon_reference < cost.epsilon_charged
    assert (cost.unit, cost.adjacency, cost.delta) == ("client", "zero-out", 1e-5)


def test_replacing_costs_twice_the_noise():
    zero_out, replaced = (plan_of(private(adjacency=adjacency)) for adjacency in ("zero-out", "replace-one"))
    assert math.isclose(replaced.privacy.noise_multiplier, 2 * zero_out.privacy.noise_multiplier, abs_tol=2e-4)


def test_noise_that_no_row_holds_is_refused_before_a_run_is_charged_for_it():
    plan = plan_of(private(mechanism="banded-matrix", epsilon=0.05))
    code = private_code(plan, LAYOUT)
    assert planned_release(plan, code, 1000)[1] == 1
    with pytest.raises(HansaError, match="fits 32 bits"):
        planned_release(plan, replace(code, norm=1e3 * code.norm), 1000)
