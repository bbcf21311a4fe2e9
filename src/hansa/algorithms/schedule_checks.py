"""What a plan's schedule cannot go with. Each sentence says what to change; see :mod:`hansa.algorithms.soundness`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from hansa.algorithms.schedule import has_fixed_size
from hansa.core.errors import Problem
from hansa.core.privacy import Privacy
from hansa.core.registry import kind_of

Found = Iterator[Problem]


def over_selection(cohort: Any, schedule: Any) -> Found:
    """Refuse to pick more, or to wait for a number, where no number is picked."""
    if not schedule.synchronous or has_fixed_size(cohort):
        return
    kind = kind_of("sampler", cohort)
    if schedule.over_selection:
        yield Problem(
            "schedule.over_selection",
            f"{kind} does not pick a number of clients, so none can be picked on top; use uniform, or remove it.",
        )
    for name in ("report_goal", "minimum_reports"):
        if getattr(schedule, name) is not None and kind == "poisson":
            yield Problem(
                f"schedule.{name}",
                "poisson tosses a coin for each client, so a cohort may fall short of any number; use uniform, or "
                "remove it.",
            )


def buffers_pick_by_themselves(cohort: Any, schedule: Any) -> Found:
    """Refuse a sampler of cohorts beside a schedule that picks one client after another."""
    kind = kind_of("sampler", cohort)
    if not schedule.synchronous and kind != "full":
        yield Problem(
            "cohort",
            f"{kind} draws a cohort for each round, but a buffered schedule picks one client after another from all "
            "that are free; remove [cohort] and set schedule.concurrency.",
        )


def buffers_and_rows(aggregator: Any, schedule: Any) -> Found:
    """Refuse rules over rows: updates of several versions, weighed by staleness, mean something in a sum only."""
    if not schedule.synchronous and not aggregator.needs_sum_only:
        yield Problem(
            "aggregator",
            f"{kind_of('aggregator', aggregator)} compares updates of one model, but a buffer holds those of several "
            'versions; use mean or fixed-mean, or schedule = "sync".',
        )


def buffers_and_hooks(trainer: Any, schedule: Any) -> Found:
    """Refuse hooks whose states or branches belong to one model version."""
    for position, hook in enumerate(() if schedule.synchronous else trainer.hooks):
        if hook.state or hook.branches:
            yield Problem(
                f"trainer.hooks.{position}",
                f"{kind_of('hook', hook)} corrects by what all clients of one round did, but a buffer holds updates of "
                'several versions; remove it, or use schedule = "sync".',
            )


def buffers_and_noise(transforms: tuple[Any, ...], schedule: Any) -> Found:
    """Refuse noise that travels in an update: a stale update is scaled down, and its noise would be too."""
    for position, transform in enumerate(() if schedule.synchronous else transforms):
        if transform.noise_unit is not None:
            kind = kind_of("transform", transform)
            yield Problem(
                f"transforms.{position}",
                f"{kind} adds noise to an update, which staleness would scale down below what protects people; "
                f'remove {kind}, or use schedule = "sync".',
            )


def buffers_and_privacy(privacy: Privacy | None, schedule: Any) -> Found:
    """Refuse what protects a round and does not hold for a buffer."""
    if not schedule.synchronous and privacy is not None:
        yield Problem(
            "schedule",
            "the privacy of a plan is counted over cohorts that its sampler draws, and buffers have none; "
            'use "sync", or remove [privacy].',
        )


CHECKS: Final[tuple[Callable[..., Found], ...]] = (
    over_selection,
    buffers_pick_by_themselves,
    buffers_and_rows,
    buffers_and_hooks,
    buffers_and_noise,
    buffers_and_privacy,
)
