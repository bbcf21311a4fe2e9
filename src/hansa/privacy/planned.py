"""What a plan costs, and the noise that a plan's budget asks for; folded from the plan's own parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

from hansa.algorithms.adaptive_clip import bit_deviation
from hansa.algorithms.plan import Plan
from hansa.algorithms.private_sums import mechanism_of
from hansa.algorithms.ring_plan import RingCode
from hansa.core.errors import HansaError, PlanError, Problem
from hansa.core.privacy import Privacy
from hansa.privacy.accounting import Cost, price
from hansa.privacy.calibration import noise_for
from hansa.privacy.event import FixedSizeGaussian, PoissonGaussian, Sampled
from hansa.privacy.release import Release
from hansa.privacy.release import Sampling as SamplingName

_SAMPLING: Final[Mapping[type, SamplingName]] = {PoissonGaussian: "poisson", FixedSizeGaussian: "fixed-size"}
_SLACK: Final = 1e-9
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


def planned_release(plan: Plan, code: RingCode, population: int) -> tuple[Release, int]:
    """Return what a plan releases, for the ledger, and how often; a whole run is one release where clients rest.

    ``code``: the integers of the model. A client that may take part in fewer rounds than the run has, or in whose
    noise later rounds have a part, is charged for the whole run at once.
    """
    privacy, section, mechanism = plan.privacy, plan.secure_aggregation, mechanism_of(plan)
    if privacy is None or code.norm is None:
        raise LookupError("a plan without [privacy] releases nothing that is charged")
    event = mechanism.event(plan, float(privacy.noise_multiplier or 0), code)
    matrix = mechanism.matrix_of_run(plan)
    sampled = isinstance(event, Sampled)
    release = Release(
        event=event,
        unit=privacy.unit,
        adjacency=privacy.adjacency,
        delta=privacy.delta,
        mechanism=privacy.mechanism,
        clip_norm=privacy.clip_norm,
        sensitivity=Fraction(code.norm),
        variance=Fraction(mechanism.variance(plan, code)),
        noise_party=privacy.noise_by,
        cohort_expected=float(getattr(plan.cohort, "size", 0)) or plan.cohort.expected_size(population),
        cohort_minimum=0 if section is None else section.minimum_survivors,
        sampling=_SAMPLING.get(type(event), "none"),
        sampling_evidence="the server's secret coins, and the plan's trusted_sampling" if sampled else "",
        modulus=None if section is None else 2 ** code.branches[0].bits,
        bits=None if section is None else code.branches[0].bits,
        matrix=matrix,
    )
    return release, 1 if matrix is not None else plan.rounds


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
