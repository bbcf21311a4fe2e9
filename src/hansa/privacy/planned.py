"""What a plan costs, and the noise that a plan's budget asks for; folded from the plan's own parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hansa.algorithms.adaptive_clip import bit_deviation
from hansa.algorithms.plan import Plan
from hansa.algorithms.private_sums import mechanism_of
from hansa.algorithms.ring_plan import RingCode
from hansa.core.errors import HansaError, PlanError, Problem
from hansa.core.privacy import Privacy
from hansa.privacy.accounting import Cost, price
from hansa.privacy.calibration import noise_for

_SLACK = 1e-9
"""What rounding of floating-point numbers may add to an epsilon that was calibrated."""


def calibrated(plan: Plan) -> Privacy | None:
    """Return the section with its noise multiplier: the least whose charged epsilon is no more than the plan's.

    Raises PlanError where a given multiplier costs more, or none costs as little.
    """
    privacy = plan.privacy
    if privacy is None or privacy.epsilon is None or privacy.noise_multiplier is not None:
        _require_budget(plan)
        return privacy
    mechanism = mechanism_of(plan)
    try:
        multiplier = noise_for(
            privacy.epsilon,
            delta=privacy.delta,
            adjacency=privacy.adjacency,
            composition=lambda tried: mechanism.composition(plan, tried),
        )
    except HansaError as error:
        raise PlanError([Problem("privacy.epsilon", f"{error} [{error.code}]")]) from error
    _require_room_for_bits(plan, multiplier)
    return replace(privacy, noise_multiplier=multiplier)


def _require_budget(plan: Plan) -> None:
    privacy = plan.privacy
    if privacy is None or privacy.epsilon is None:
        return
    cost = cost_of(plan)
    if cost.epsilon_charged > privacy.epsilon * (1 + _SLACK):
        sentence = (
            f"noise_multiplier {privacy.noise_multiplier:g} costs a charged epsilon of {cost.epsilon_charged:.6g} "
            f"(reference {cost.epsilon_reference:.6g}), more than epsilon {privacy.epsilon:g}; raise the noise or "
            "the budget, or leave noise_multiplier out, and the least is found."
        )
        raise PlanError([Problem("privacy.noise_multiplier", sentence)])


def _require_room_for_bits(plan: Plan, multiplier: float) -> None:
    privacy: Any = plan.privacy
    aggregator: Any = plan.aggregator
    if privacy.adaptive_clip is None or multiplier < 2 * bit_deviation(float(aggregator.divisor)):
        return
    sentence = (
        f"epsilon {privacy.epsilon:g} asks a noise multiplier of {multiplier:g}, for which a round needs more than "
        f"{10 * multiplier:g} clients, and the divisor is {aggregator.divisor:g}; ask more clients, or fix the clip "
        "norm."
    )
    raise PlanError([Problem("privacy.adaptive_clip", sentence)])


def cost_of(plan: Plan, code: RingCode | None = None) -> Cost:
    """Return what the whole run costs. With the integers of the model, the sum of clients' shares of noise is priced.

    Raises LookupError for a plan without [privacy].
    """
    if plan.privacy is None:
        raise LookupError("a plan without [privacy] promises nothing")
    privacy, mechanism = plan.privacy, mechanism_of(plan)
    return price(
        mechanism.composition(plan, float(privacy.noise_multiplier or 0), code),
        delta=privacy.delta,
        adjacency=privacy.adjacency,
        unit=privacy.unit,
        trusted_sampling=privacy.trusted_sampling,
    )
