"""What travels under a plan beside the model's own branches: the branches of hooks, and every lane."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from hansa.core.layout import COUNT, NON_FINITE, TRAIN_LOSS, Lane, weight_lane
from hansa.core.sections import Model

WEIGHT_RESOLUTION: Final = 2.0**-8
MOST_WEIGHT: Final = 2.0**24
SCALED_DOWN: Final = Lane("scaled_down", low=0.0, high=1.0, purpose="count")
"""1 for an update with an entry beyond ``secure_aggregation.max_value``, which was scaled down."""
CAPPED: Final = Lane("capped", low=0.0, high=1.0, purpose="count")
"""1 for an update with a weight beyond ``secure_aggregation.max_weight``, which counts as that much."""
BELOW_CLIP: Final = Lane("below_clip", low=-0.5, high=0.5, resolution=0.5, purpose="statistic")
"""1/2 for an update that was shorter than an adaptive clip norm, else -1/2. It is noised."""


def travelling_lanes(
    branches: Iterable[str], transforms: Iterable[Any], *, integers: bool, adaptive: bool = False
) -> tuple[Lane, ...]:
    """Return every lane of an update: counts, the loss, a weight for each branch, and those of the transforms.

    ``integers``: updates travel as integers, so what did not fit is counted; ``adaptive``: a clip norm adapts.
    """
    weights = [
        Lane(weight_lane(name), low=0.0, high=MOST_WEIGHT, resolution=WEIGHT_RESOLUTION, purpose="weight")
        for name in branches
    ]
    own = [lane for transform in transforms for lane in transform.lanes()]
    counted = (SCALED_DOWN, CAPPED) if integers else ()
    bit = (BELOW_CLIP,) if adaptive else ()
    return (COUNT, NON_FINITE, TRAIN_LOSS, *weights, *own, *counted, *bit)


def travelling_branches(trainer: Any, model: Model) -> tuple[str, ...]:
    """Return the names of the branches that travel under a plan."""
    buffers = ("buffers",) if model.buffers == "average" else ()
    return ("params", *buffers, *(branch for hook in trainer.hooks for branch in hook.branches))
