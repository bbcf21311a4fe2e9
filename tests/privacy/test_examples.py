"""What single examples cost: folded from the plan, priced as dp-accounting does, and told in sentences."""

from __future__ import annotations

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from tests.algorithms.test_example_checks import CLIENTS, examples, plan_of, training

from hansa.privacy.examples import example_cost, share, steps
from hansa.reporting.example_sentences import example_sentences, told_examples
from hansa.reporting.privacy_sentences import sentences


def test_the_price_is_that_of_dp_accounting():
    """A tenth of the examples in each of 5 steps of 6 rounds, at noise 1.1: the event written down by hand."""
    cost = example_cost(plan_of(examples(epsilon=None, noise_multiplier=1.1)))
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.1)), 30
    )
    charged, reference = (
        accountant.compose(event).get_epsilon(1e-5) for accountant in (rdp.RdpAccountant(), pld.PLDAccountant())
    )
    assert cost.epsilon_charged == pytest.approx(charged, rel=5e-3)
    assert cost.epsilon_reference == pytest.approx(reference, rel=1e-3)
    assert cost.epsilon_charged >= reference
    assert (cost.unit, cost.adjacency, cost.amplified) == ("example of one client", "add-or-remove-one", True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, (30, 0.1)),
        (training(steps=8), (48, 0.1)),
        (training(batch_size="all"), (30, 1.0)),
        (training(batch_size=200), (30, 1.0)),
        (examples(max_participations=10), (50, 0.1)),
        ({"cohort": {"kind": "uniform", "size": 10}}, (150, 0.1)),
        ({"cohort": {"kind": "poisson", "rate": 0.1}}, (150, 0.1)),
    ],
)
def test_steps_and_coins_are_folded_from_the_plan(change, expected):
    plan = plan_of(change)
    assert (steps(plan), share(plan.trainer)) == expected


def test_the_least_noise_for_a_budget_is_found():
    plan = plan_of()
    cost = example_cost(plan)
    assert 3.9 < cost.epsilon_charged <= 4.0
    less = plan.trainer.example_privacy.noise_multiplier - 0.0002
    assert example_cost(plan_of(examples(epsilon=None, noise_multiplier=less))).epsilon_charged > 4.0


def test_every_example_in_every_step_gains_nothing_by_sampling():
    cost = example_cost(plan_of(training(batch_size="all")))
    assert not cost.amplified
    assert cost.reference_method == "exact Gaussian curve"


def test_both_units_are_said_apart():
    plan = plan_of(CLIENTS)
    clients, single = sentences(plan), list(example_sentences(plan))
    assert clients[0].about == "privacy unit"
    assert clients[0].text.startswith("client: ")
    assert single[0].about == "example privacy"
    assert "unit: example of one client" in single[0].text
    told = " ".join(text for _, text in single)
    for said in ("the server included", "at most", "its agent counts", "nothing about a client as a whole",
                 "coin of probability 0.1", "in 30 steps", "not the guarantee"):  # fmt: skip
        assert said in told, said
    numbers = told_examples(plan)
    assert numbers is not None
    assert numbers["epsilon_charged"] <= 4.0
    assert (numbers["participations"], numbers["steps"]) == (6, 30)


def test_a_plan_without_says_nothing():
    plan = plan_of(training(example_privacy=None))
    assert list(example_sentences(plan)) == []
    assert told_examples(plan) is None
