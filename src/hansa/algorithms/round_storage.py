"""What a server stores of an open round: every update until the round is closed, or a few and the sum of all others.

Sums of integers are exact in any order, so that updates can be added as they come. Sums of floats have an order that
the plan fixes (:mod:`hansa.algorithms.fold`), and rules over rows need every row: those updates wait for the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from hansa.algorithms.plan import Plan
from hansa.algorithms.private_sums import released
from hansa.algorithms.schedule import picking
from hansa.algorithms.secure_sums import training_code
from hansa.core.layout import Layout

_SUMS: Final = 2
"""Partial sums that there are for a moment: the one that counts, and the one that takes its place."""


def folded_early(plan: Plan) -> bool:
    """Return True where a server adds updates of training to a sum before their round is closed.

    Masked vectors of a secure sum are integers too, but belong to the protocol's machine.
    """
    return plan.privacy is not None and plan.secure_aggregation is None


@dataclass(frozen=True)
class RoundStorage:
    """What an open round of training takes, in bytes, without the few that seal it: updates, and partial sums.

    ``picked`` is how many clients are asked, or are expected to be where coins say it; ``waiting``: how many of their
    updates are kept.
    """

    picked: int
    waiting: int
    update: int
    sums: int

    @property
    def total(self) -> int:
        """Return the bytes of it all; what arrives while a sum is made comes on top."""
        return self.waiting * self.update + self.sums


def round_storage(plan: Plan, layout: Layout, clients: int, fold_every: int) -> RoundStorage | None:
    """Return what a round of a plan stores for a population; ``layout`` is that of what travels.

    None for buffered plans: updates to a model version are kept as long as anybody may train from it.
    """
    schedule: Any = plan.schedule
    if not schedule.synchronous:
        return None
    update, picked = update_bytes(plan, layout), math.ceil(picking(schedule, plan.cohort).expected_size(clients))
    if not folded_early(plan) or picked <= fold_every:
        return RoundStorage(picked, picked, update, 0)
    return RoundStorage(picked, fold_every, update, _SUMS * update)


def update_bytes(plan: Plan, layout: Layout) -> int:
    """Return the bytes of one client's numbers, where no transform compresses them."""
    code = training_code(plan, layout)
    if code is None:
        return 4 * layout.size + 8 * len(layout.lanes)
    if plan.secure_aggregation is not None:
        return code.ring.nbytes
    return code.width * code.dtype.itemsize + 8 * len(released(layout).lanes)
