"""What local DP-SGD costs each example of a client, and the noise that its budget asks for.

The account is of one client: an example is in no other client's steps. Sampling amplifies it, as the coins are the
client's own, nobody else learns which examples a step had, and a step of none releases noise, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hansa.algorithms.example_checks import example_privacy_of
from hansa.algorithms.plan import Plan
from hansa.core.errors import HansaError, PlanError, Problem
from hansa.core.example_privacy import EXAMPLE, NEIGHBOURS, ExamplePrivacy
from hansa.core.pieces import Trainer
from hansa.privacy.accounting import Composition, Cost, price
from hansa.privacy.calibration import noise_for
from hansa.privacy.event import Gaussian, PoissonGaussian
from hansa.privacy.mechanisms import times

_PATH = "trainer.example_privacy"
_SLACK = 1e-9
"""What rounding of floating-point numbers may add to an epsilon that was calibrated."""


def calibrated_examples(plan: Plan) -> Trainer:
    """Return the trainer with its noise multiplier, and with how often a client trains at most.

    Raises PlanError where a given multiplier costs more than the given epsilon, none costs as little, or the cohort's
    sampler can ask a client more often than it may train.
    """
    given = _given(plan)
    asked = times(plan)
    most = asked if given.max_participations is None else given.max_participations
    if most < asked:
        sentence = (
            f"the cohort's sampler can ask one client {asked} times, more than {most}; raise it, or sample with "
            "min-separation and its max_participations."
        )
        raise PlanError([Problem(f"{_PATH}.max_participations", sentence)])
    given = replace(given, max_participations=most)
    trainer: Any = plan.trainer
    if given.noise_multiplier is None:
        given = replace(given, noise_multiplier=_least_noise(trainer, given))
    _require_budget(trainer, given)
    found: Trainer = replace(trainer, example_privacy=given)
    return found


def example_cost(plan: Plan) -> Cost:
    """Return what the whole run costs every client. Raises LookupError for a plan without example privacy."""
    return _cost(plan.trainer, _given(plan))


def share(trainer: Any) -> float:
    """Return with what probability one example is in a step."""
    given = example_privacy_of(trainer)
    if given is None or trainer.batch_size == "all":
        return 1.0
    return float(trainer.batch_size / given.expected_examples)


def steps(plan: Plan) -> int:
    """Return how many noised steps one client takes at most, over all rounds."""
    trainer: Any = plan.trainer
    return int(trainer.steps * (_given(plan).max_participations or 0))


def _cost(trainer: Any, given: ExamplePrivacy) -> Cost:
    return price(
        _composition(trainer, given, float(given.noise_multiplier or 0)),
        delta=given.delta,
        adjacency=NEIGHBOURS,
        unit=EXAMPLE,
        trusted_sampling=True,
    )


def _composition(trainer: Any, given: ExamplePrivacy, multiplier: float) -> Composition:
    probability, count = share(trainer), trainer.steps * (given.max_participations or 0)
    if probability == 1:
        return Composition.of((Gaussian(noise_multiplier=multiplier), count))
    return Composition.of((PoissonGaussian(probability=probability, noise_multiplier=multiplier), count))


def _least_noise(trainer: Any, given: ExamplePrivacy) -> float:
    try:
        return noise_for(
            float(given.epsilon or 0),
            delta=given.delta,
            adjacency=NEIGHBOURS,
            composition=lambda tried: _composition(trainer, given, tried),
        )
    except HansaError as error:
        raise PlanError([Problem(f"{_PATH}.epsilon", f"{error} [{error.code}]")]) from error


def _require_budget(trainer: Any, given: ExamplePrivacy) -> None:
    if given.epsilon is None:
        return
    cost = _cost(trainer, given)
    if cost.epsilon_charged > given.epsilon * (1 + _SLACK):
        sentence = (
            f"noise_multiplier {given.noise_multiplier:g} costs an example a charged epsilon of "
            f"{cost.epsilon_charged:.6g} (reference {cost.epsilon_reference:.6g}), more than epsilon "
            f"{given.epsilon:g}; raise the noise or the budget, or leave noise_multiplier out, and the least is found."
        )
        raise PlanError([Problem(f"{_PATH}.noise_multiplier", sentence)])


def _given(plan: Plan) -> ExamplePrivacy:
    given = example_privacy_of(plan.trainer)
    if given is None:
        raise LookupError("a plan without trainer.example_privacy promises nothing about single examples")
    return given
