"""What a plan with ``trainer.example_privacy`` cannot go with; each sentence says what to change.

See :mod:`hansa.algorithms.soundness`. Whatever leaves a client must follow from noised steps alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from hansa.core.errors import Problem
from hansa.core.example_privacy import ExamplePrivacy
from hansa.core.registry import kind_of
from hansa.core.sections import Evaluation, Features

Found = Iterator[Problem]
_PATH: Final = "trainer.example_privacy"


def example_privacy_of(trainer: Any) -> ExamplePrivacy | None:
    """Return a trainer's setting, or None where it protects no single examples."""
    found: ExamplePrivacy | None = getattr(trainer, "example_privacy", None)
    return found


def noised_steps(trainer: Any) -> Found:
    """Refuse steps that are not counted before the run, or not noised."""
    given = example_privacy_of(trainer)
    if given is None:
        return
    if not getattr(trainer, "protects_examples", False):
        yield Problem(_PATH, f"{kind_of('trainer', trainer)} has no gradient of each example; use torch or linear.")
        return
    if trainer.epochs is not None:
        yield Problem(
            "trainer.epochs", "how many steps an epoch has tells how many examples a client has; give steps instead."
        )
    if trainer.batch_size != "all" and trainer.batch_size > given.expected_examples:
        yield Problem(
            f"{_PATH}.expected_examples",
            f"{given.expected_examples} is less than batch_size {trainer.batch_size}, and no example takes part more "
            'than once in a step; lower batch_size, or use "all".',
        )


def told_sizes(trainer: Any, transforms: tuple[Any, ...]) -> Found:
    """Weights by size tell how many examples there are."""
    for position, transform in enumerate(transforms if example_privacy_of(trainer) is not None else ()):
        if kind_of("transform", transform) == "weigh-by-size":
            yield Problem(
                f"transforms.{position}",
                "weights tell how many examples a client has, which example_privacy hides; remove weigh-by-size.",
            )


def other_figures(trainer: Any, evaluation: Evaluation, features: Features | None) -> Found:
    """Whatever else is computed from examples and leaves the client, or binds them together, is not covered."""
    if example_privacy_of(trainer) is None:
        return
    if evaluation.federated:
        yield Problem(
            "evaluation.federated",
            "metrics over clients' examples are figures without noise, which the epsilon of example_privacy does not "
            "cover; set it to false. evaluation.central measures on the server's own examples.",
        )
    if features is not None and features.scaling == "federated":
        yield Problem(
            "features.scaling",
            "a client's sums for means and deviations have no noise, which the epsilon of example_privacy does not "
            'cover; use "declared" or "none".',
        )
    if features is not None and features.imputation != "center":
        yield Problem(
            "features.imputation",
            f"the {features.imputation} of a client's rows changes the gradients of all its examples with each one; "
            'use "center".',
        )


def counted_rounds(trainer: Any, schedule: Any) -> Found:
    """How often a client may train is known before the run."""
    if example_privacy_of(trainer) is not None and not schedule.synchronous:
        yield Problem(
            "schedule",
            f"{kind_of('schedule', schedule)} may ask one client any number of times, each of which costs; use sync.",
        )


CHECKS: Final[tuple[Callable[..., Found], ...]] = (noised_steps, told_sizes, other_figures, counted_rounds)
