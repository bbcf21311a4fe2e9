"""What a plan with secure sums cannot go with; each sentence says what to change.

See :mod:`hansa.algorithms.soundness`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

from hansa.algorithms.ring_plan import largest_cohort, largest_sum, largest_weight, ring_code
from hansa.algorithms.schedule import has_fixed_size, picking
from hansa.algorithms.travelling import travelling_branches, travelling_lanes
from hansa.core.errors import PlanError, Problem
from hansa.core.layout import Branch, Layout, Parameter
from hansa.core.registry import kind_of, nearest
from hansa.core.sections import Model
from hansa.core.secure_aggregation import SecureAggregation

Found = Iterator[Problem]


def sums_only(secure_aggregation: SecureAggregation | None, transforms: tuple[Any, ...], aggregator: Any) -> Found:
    """Under a secure sum the server sees the sum alone."""
    if secure_aggregation is None:
        return
    if not aggregator.needs_sum_only:
        yield Problem(
            "aggregator",
            f"{kind_of('aggregator', aggregator)} needs every update in the clear, which a secure sum hides; "
            "use mean or fixed-mean, or remove [secure_aggregation].",
        )
    for position, transform in enumerate(transforms):
        if not transform.linear:
            yield Problem(
                f"transforms.{position}",
                f"{kind_of('transform', transform)} must be undone row by row, but a secure sum shows the server no "
                "row; remove it.",
            )


def written_once(secure_aggregation: SecureAggregation | None, transforms: tuple[Any, ...]) -> Found:
    """Refuse integers before those that the section makes after the last transform."""
    for position, transform in enumerate(transforms if secure_aggregation is not None else ()):
        if transform.emits == "ring" or transform.noise_unit == "ring":
            yield Problem(
                f"transforms.{position}",
                f"{kind_of('transform', transform)} works on integers of the sum, which [secure_aggregation] makes "
                "after the last transform; remove it.",
            )


def one_version(secure_aggregation: SecureAggregation | None, schedule: Any) -> Found:
    """Refuse buffers: a sum is over clients with one model, and nobody can weigh a single update in it."""
    if schedule.synchronous or secure_aggregation is None:
        return
    own = " of a buffer for each version, which this version has not" if _one_upload(secure_aggregation) else ""
    yield Problem(
        "schedule",
        f"a secure sum{own} is over clients with one model version, whose updates the server cannot weigh one by one; "
        'use "sync", or remove [secure_aggregation].',
    )


def _one_upload(section: SecureAggregation) -> bool:
    return section.protocol == "oneshot-seeds"


def cohort_and_minimum(secure_aggregation: SecureAggregation | None, cohort: Any, schedule: Any) -> Found:
    """Refuse a cohort of a fixed size that is too small to hide its members."""
    if secure_aggregation is None or not has_fixed_size(cohort):
        return
    size, least = cohort.size, secure_aggregation.minimum_cohort
    if size < least:
        yield Problem(
            "cohort.size", f"{size} is less than secure_aggregation.minimum_cohort, {least}; raise it, or lower that."
        )
    goal = getattr(schedule, "report_goal", None)
    if goal is not None and goal < secure_aggregation.minimum_survivors:
        survivors = secure_aggregation.minimum_survivors
        yield Problem(
            "schedule.report_goal",
            f"{goal} is less than secure_aggregation.minimum_survivors, {survivors}; raise it, or remove it.",
        )


def known_branches(secure_aggregation: SecureAggregation | None, trainer: Any, model: Model) -> Found:
    """Integers are declared for branches that exist."""
    known = travelling_branches(trainer, model)
    for position, own in enumerate(secure_aggregation.branches if secure_aggregation is not None else ()):
        if own.name not in known:
            path = f"secure_aggregation.branches.{position}.name"
            yield Problem(path, f"no branch {own.name!r}; {nearest(own.name, known)}")


def no_overflow(  # noqa: PLR0913, PLR0917 - the sections on which the integers of a sum depend
    secure_aggregation: SecureAggregation | None,
    trainer: Any,
    model: Model,
    cohort: Any,
    schedule: Any,
    transforms: tuple[Any, ...],
) -> Found:
    """No sum may overflow, for the largest cohort, weight, value and lane: an overflow is silent and fatal."""
    if secure_aggregation is None or not schedule.synchronous:
        return
    found: list[Problem] = []
    for check in (
        lambda: largest_weight(secure_aggregation, transforms),
        lambda: largest_sum(secure_aggregation, cohort, schedule),
    ):
        try:
            check()
        except PlanError as error:
            found += error.problems
    yield from found
    if found:
        return
    weight, whole = largest_weight(secure_aggregation, transforms)
    clients = largest_sum(secure_aggregation, cohort, schedule)
    everyone = largest_cohort(secure_aggregation, cohort, schedule)
    names = travelling_branches(trainer, model)
    lanes = travelling_lanes(names, transforms, integers=True)
    layout = Layout(tuple(Branch(name, (Parameter(name, (1,)),)) for name in names), lanes)
    try:
        ring_code(secure_aggregation, layout, clients=clients, cohort=everyone, weight=weight, whole_weights=whole)
    except PlanError as error:
        yield from error.problems


def population_problems(plan: Any, population: int) -> Found:
    """Yield what cannot work with a population of that size."""
    section = plan.secure_aggregation
    if section is None:
        return
    least, most = section.minimum_cohort, largest_cohort(section, plan.cohort, plan.schedule)
    if population < least:
        yield Problem(
            "secure_aggregation.minimum_cohort",
            f"{least} clients are needed for a sum, but there are {population}; lower it (not below 3), or find more.",
        )
    if not has_fixed_size(plan.cohort) and population > most:
        yield Problem(
            "secure_aggregation.maximum_cohort",
            f"the integers are sized for {most} clients, but {population} may be picked; raise it to {population}.",
        )
    picked = picking(plan.schedule, plan.cohort).expected_size(population) if plan.schedule.synchronous else math.inf
    if not has_fixed_size(plan.cohort) and least <= population and picked < least:
        yield Problem("cohort", f"{picked:g} clients are expected, but a sum needs {least}; raise the rate.")
    measured = plan.evaluation.federated_clients
    if plan.evaluation.federated and measured is not None and measured < least:
        yield Problem(
            "evaluation.federated_clients",
            f"{measured} is less than secure_aggregation.minimum_cohort, {least}: an evaluation is a secure sum too; "
            "raise it.",
        )


CHECKS: Final[tuple[Callable[..., Found], ...]] = (
    sums_only,
    written_once,
    one_version,
    cohort_and_minimum,
    known_branches,
    no_overflow,
)
