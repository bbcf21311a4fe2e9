"""How much one client may weigh, and how large its update may be: what the plan claims of every honest one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from hansa.algorithms.plan import Plan
from hansa.core.layout import COUNT, Lane, Layout
from hansa.core.registry import kind_of

_SLACK: Final = 1.001
"""What rounding may add to a norm."""


def limited_lanes(plan: Plan, layout: Layout, largest: float) -> Layout:
    """Return the layout of an honest client's update of training: it counts one client, and weighs what the plan says.

    Weights that the plan's transforms do not bound, those of other people's code among them, end at ``largest``.
    """
    stated = _most_weight(plan.transforms)
    most = largest if stated is None else stated

    def limited(lane: Lane) -> Lane:
        if lane.name == COUNT.name:
            return replace(lane, low=lane.high)
        return replace(lane, high=min(lane.high, most)) if lane.purpose == "weight" else lane

    return replace(layout, lanes=tuple(limited(lane) for lane in layout.lanes))


def limited_statistics(layout: Layout, largest: float) -> Layout:
    """Return the lanes of the statistics of a client with at most so many examples, of which each adds at most 1."""
    lanes = (replace(lane, low=max(lane.low, -largest), high=min(lane.high, largest)) for lane in layout.lanes)
    return replace(layout, lanes=tuple(lanes))


def norm_limits(plan: Plan, layout: Layout, largest: float) -> dict[str, float]:
    """Return the largest L2 norm of each branch of an update of weight 1: what transforms claim, or ``largest``."""
    bounds: Mapping[str, float | None] = {branch.name: None for branch in layout.branches}
    for transform in plan.transforms:
        if kind_of("transform", transform) != "weigh-by-size":  # a limit grows with the weight that is reported
            bounds = transform.bound(bounds, layout)
    limits = {branch.name: bounds.get(branch.name) for branch in layout.branches}
    return {name: _SLACK * (largest if limit is None else limit) for name, limit in limits.items()}


def _most_weight(transforms: tuple[Any, ...]) -> float | None:
    """Return the largest weight of an honest client; None where it is not known."""
    if not all(type(transform).__module__.startswith("hansa.algorithms.") for transform in transforms):
        return None
    weighing = [transform for transform in transforms if kind_of("transform", transform) == "weigh-by-size"]
    return weighing[0].maximum if weighing else 1.0
