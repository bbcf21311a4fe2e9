"""Secure sums in a simulation: the protocol's own machines ("exact"), or the same integers without masks.

Whatever goes to the server goes through here: updates, the prologue's statistics, evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from hansa.algorithms.aggregators import FixedMean
from hansa.algorithms.fold import Collector, Fold, Rows, collector, partial_collector
from hansa.algorithms.plan import Plan
from hansa.algorithms.private_sums import central_noise
from hansa.algorithms.round_storage import update_bytes
from hansa.algorithms.secure_sums import Groups, Opening, RingFold, RingRows, lanes_code, training_code
from hansa.algorithms.travelling import CAPPED, SCALED_DOWN
from hansa.core.layout import Int64s, Layout
from hansa.core.nouns import Aggregate, Assignment, Batch
from hansa.core.ring import Ring, RingVector
from hansa.core.streams import Streams

MEANING: Final = {
    "exact": (
        "exact: the protocol's own machines ran for every client, with keys, shares and masks, in this one process; "
        "each sum is the one that they unmasked"
    ),
    "arithmetic": (
        "arithmetic: every sum is of the same integers that the protocol adds, so it is the same bit for bit; but no "
        "key was made and nothing was masked, so this run says nothing of the protocol itself"
    ),
}
"""What each mode of a simulation means, in the words of the summary and the report."""


def collector_of(
    plan: Plan, assignment: Assignment, streams: Streams, folder: Path | None, *, noise_key: bytes
) -> Collector:
    """Return what collects a round's updates: their sum, every row, or the secure sum of the plan."""
    opening = _opening(plan, assignment, streams)
    if opening is None:
        return collector(plan.aggregator, assignment.layout, len(assignment.cohort), folder)
    noise = central_noise(plan, assignment.round, noise_key)
    return _secure_collector(plan, assignment, replace(opening, noise=noise))


def partial_of(plan: Plan, assignment: Assignment, streams: Streams) -> Fold | Rows | RingFold | RingRows:
    """Return an empty collector of a part of a round, which goes into the round's own by ``merge``."""
    opening = _opening(plan, assignment, streams)
    if opening is None:
        return partial_collector(plan.aggregator, assignment.layout)
    return RingRows(opening) if _exact(plan) else RingFold(opening)


def bytes_each(plan: Plan, batch: Batch) -> float:
    """Return the size of one client's encoded update in bytes: as it travels where it is one of integers."""
    exact = plan.privacy is not None or plan.secure_aggregation is not None
    return float(update_bytes(plan, batch.layout)) if exact else batch.bytes_each


def cut_counts(plan: Plan, aggregate: Aggregate) -> dict[str, int]:
    """Return how many updates of a secure sum were scaled down or had their weight capped; nothing without one.

    Under privacy nobody is told.
    """
    lanes = {} if plan.privacy is not None else aggregate.layout.lane_index
    return {lane.name: int(aggregate.lane(lane.name)) for lane in (SCALED_DOWN, CAPPED) if lane.name in lanes}


def summary_of(plan: Plan, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what a run's summary tells of its secure sums, from the events of its rounds; None without any."""
    section = plan.secure_aggregation
    if section is None:
        return None
    told = {"protocol": section.protocol, "mode": section.mode, "meaning": MEANING[section.mode]}
    counted = ("cohort", SCALED_DOWN.name, CAPPED.name) if plan.privacy is None else ("cohort",)
    return told | {name: sum(event.get(name, 0) for event in rounds) for name in counted}


def cut_notes(told: Mapping[str, Any] | None) -> list[str]:
    """Return what the user should know of updates that did not fit the plan's integers."""
    if told is None or not told["cohort"]:
        return []
    sentences = {
        SCALED_DOWN.name: "had an entry beyond secure_aggregation.max_value and were scaled down",
        CAPPED.name: "had a weight beyond secure_aggregation.max_weight and counted as that much",
    }
    return [
        f"{told[name]} of {told['cohort']} updates {sentence}; raise it if that is not meant"
        for name, sentence in sentences.items()
        if told.get(name)
    ]


class LaneSum:
    """The sum of some clients' lanes, added as they come: secure where the plan says so."""

    def __init__(  # noqa: PLR0913 - a plan, what is summed, over whom and when
        self, plan: Plan, layout: Layout, clients: int, streams: Streams, *, number: int = 0, secure: bool = True
    ) -> None:
        """Begin the sum of so many clients in round ``number``."""
        self._layout = layout
        self._clients = clients
        self._collected: Collector = Fold(layout)
        code = lanes_code(plan, layout, clients) if secure else None
        if code is not None and plan.secure_aggregation is not None:
            nobody = np.zeros(0, dtype=np.float32)
            everyone = Assignment(number, layout, nobody, np.arange(clients), population=clients)
            opening = Opening(code, Groups(clients, plan.secure_aggregation.groups(clients)), number, streams)
            self._collected = _secure_collector(plan, everyone, opening)

    def add(self, lanes: Int64s, position: int) -> None:
        """Add the lanes of clients from a position on: int64 [n, lanes]."""
        self._collected.add(Batch(np.zeros((len(lanes), 0), dtype=np.uint16), lanes, self._layout), position)

    def total(self) -> Aggregate:
        """Return the sum, without values. Raises ValueError where a client is missing."""
        return self._collected.finish(FixedMean(divisor=1.0), self._clients)


def _opening(plan: Plan, assignment: Assignment, streams: Streams) -> Opening | None:
    code = training_code(plan, assignment.layout, assignment.clip_norm)
    return None if code is None else Opening.of(plan.secure_aggregation, code, assignment, streams)


def _exact(plan: Plan) -> bool:
    return plan.secure_aggregation is not None and plan.secure_aggregation.mode == "exact"


def _secure_collector(plan: Plan, assignment: Assignment, opening: Opening) -> Collector:
    section = plan.secure_aggregation
    if section is None or not _exact(plan):
        return RingFold(opening)

    def sum_of(ring: Ring, vectors: Sequence[RingVector], _place: slice) -> RingVector:
        from hansa.simulation import exact_sums  # noqa: PLC0415 - cryptography, where it is used

        return exact_sums.exact_sum(section, ring, vectors, number=assignment.round)

    return RingRows(opening, sum_of)
