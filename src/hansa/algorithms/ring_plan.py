"""The plan of a secure sum's integers: how many bits each entry takes, and the proof that no sum overflows.

One client's entry of a branch is a whole number of steps, at most ``weight_steps * limit`` of them in size, and a lane
is one of at most high / resolution. A sum of n clients, with noise of at most ``tail``, lies in [-B, B], where B is n
times that, plus the tail; it is read back from its remainder modulo 2^b exactly when 2 B + 1 <= 2^b.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Final

import numpy as np

from hansa.algorithms.schedule import has_fixed_size, picking
from hansa.algorithms.travelling import MOST_WEIGHT, WEIGHT_RESOLUTION
from hansa.core.errors import PlanError, Problem
from hansa.core.layout import Int64s, Lane, Layout
from hansa.core.registry import kind_of
from hansa.core.ring import FEWEST_BITS, MOST_BITS, Ring, Segment
from hansa.core.secure_aggregation import SecureAggregation

VALUE_BITS: Final = 16
"""Bits of an entry before it is weighed, where the plan says nothing."""
_BLOCK: Final = 4096
"""Entries that are rotated together, at most."""


@dataclass(frozen=True)
class BranchCode:
    """How one branch becomes integers: ``length`` entries from ``start`` on, of which ``size`` are the branch's own.

    An entry x of an update of weight w is the integer x * (w / weight_unit) / step, rounded; ``limit`` is the largest
    one of weight_unit. ``block`` entries are rotated together (1: none).
    """

    name: str
    start: int
    size: int
    length: int
    block: int
    step: float
    limit: int
    bits: int
    tail: int = 0

    @property
    def part(self) -> slice:
        """Return where its integers are."""
        return slice(self.start, self.start + self.length)


@dataclass(frozen=True)
class LaneCode:
    """Consecutive lanes whose sums take equally many bits."""

    start: int
    stop: int
    bits: int


@dataclass(frozen=True)
class RingCode:
    """The integers of one layout, in sums of at most ``clients``: the same at the server and at every client.

    Under privacy ``norm`` bounds the L2 norm of one client's value integers, all branches together, and each client
    adds discrete Gaussian noise of ``client_variance`` to every one of them (0: none); both in steps.
    """

    layout: Layout
    clients: int
    branches: tuple[BranchCode, ...]
    lanes: tuple[LaneCode, ...]
    weight_unit: float = 1.0
    weight_steps: int = 1
    max_weight: float = 1.0
    norm: float | None = None
    client_variance: int = 0

    @cached_property
    def width(self) -> int:
        """Return the number of value integers of one client."""
        return sum(code.length for code in self.branches)

    @cached_property
    def ring(self) -> Ring:
        """Return the ring: a segment for each branch, then one for each run of lanes."""
        values = [Segment(code.name, code.length, code.bits) for code in self.branches]
        lanes = [Segment(f"lanes.{code.start}", code.stop - code.start, code.bits) for code in self.lanes]
        return Ring((*values, *lanes))

    @cached_property
    def lane_limits(self) -> Int64s:
        """Return the largest absolute integer of one client's lanes: int64 [lanes]."""
        return np.array([lane_limit(lane) for lane in self.layout.lanes], dtype=np.int64)

    @cached_property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Return the type in which values of all branches are held and added: it wraps modulo a multiple of 2^bits."""
        types = [segment.dtype for segment in self.ring.segments[: len(self.branches)]]
        return max(types, key=lambda each: each.itemsize, default=np.dtype(np.uint16))

    def most(self, code: BranchCode, clients: int) -> int:
        """Return the largest absolute entry of a sum of so many clients."""
        return clients * self.weight_steps * code.limit + code.tail

    def weight_error(self, weight: float) -> float:
        """Return the largest relative error of a weight of at least ``weight`` by its rounding; 0 where none rounds."""
        whole = self.weight_unit <= 1 and weight >= 1
        return 0.0 if whole else max(self.weight_unit / 2 / weight, self.weight_unit / weight - 1)


def ring_code(  # noqa: PLR0913 - the section, the layout, and what a plan's other sections say
    section: SecureAggregation,
    layout: Layout,
    *,
    clients: int,
    cohort: int = 0,
    weight: float = 1.0,
    whole_weights: bool = True,
    noise_tails: Mapping[str, int] | None = None,
) -> RingCode:
    """Return the integers of a layout for sums of at most ``clients``, whose weights are at most ``weight``.

    ``cohort`` is the most clients of all groups together, whose sums are added in 64 bits.
    ``noise_tails`` holds, for a branch, the largest absolute noise in its sum, in steps.
    Raises PlanError with the numbers where a sum could overflow.
    """
    unit, steps = _weight_steps(weight, section.weight_bits, whole=whole_weights)
    found: list[Problem] = []
    branches, start = [], 0
    for branch in layout.branches:
        tail = (noise_tails or {}).get(branch.name, 0)
        code = _branch_code(section, branch.name, (start, branch.size), (clients, steps, tail), found)
        if bits_of(max(clients, cohort) * steps * code.limit + tail) > MOST_BITS:
            found.append(_too_many(branch.name, max(clients, cohort), steps * code.limit))
        branches.append(code)
        start += code.length
    lanes = tuple(_lane_codes(layout.lanes, clients, max(clients, cohort), found))
    if found:
        raise PlanError(found)
    return RingCode(layout, clients, tuple(branches), lanes, unit, steps, min(weight, unit * steps))


def largest_sum(section: SecureAggregation, cohort: Any, schedule: Any) -> int:
    """Return the most clients of one sum. Raises PlanError where the plan does not say it."""
    most = largest_cohort(section, cohort, schedule)
    return most if section.group_limit is None else min(most, section.group_limit)


def largest_cohort(section: SecureAggregation, cohort: Any, schedule: Any) -> int:
    """Return the most clients of a cohort. Raises PlanError where the plan does not say it."""
    sampler: Any = picking(schedule, cohort) if schedule.synchronous else cohort
    fixed = int(sampler.size) if has_fixed_size(sampler) else None
    path = "secure_aggregation.maximum_cohort"
    if section.maximum_cohort is None and fixed is None:
        kind = kind_of("sampler", cohort)
        sentence = (
            f"is needed: {kind} may pick everyone, and the plan does not say how many that are; give the most clients "
            "that there will be, for which the integers of a sum are sized."
        )
        raise PlanError([Problem(path, sentence)])
    if section.maximum_cohort is not None and fixed is not None and fixed > section.maximum_cohort:
        raise PlanError(
            [Problem(path, f"{section.maximum_cohort} is less than the {fixed} that are picked; raise it.")]
        )
    return section.maximum_cohort or int(fixed or 0)


def largest_weight(section: SecureAggregation, transforms: Sequence[Any]) -> tuple[float, bool]:
    """Return the largest weight of a client, and whether weights are whole numbers. PlanError: the plan does not say.

    Weights of a transform of the user's own are cut to ``max_weight``, or 1, whatever it does: see the encoder.
    """
    weighing = next((each for each in transforms if kind_of("transform", each) == "weigh-by-size"), None)
    if section.max_weight is not None:
        return min(section.max_weight, MOST_WEIGHT), weighing is not None and section.max_weight >= 1
    if weighing is None:
        return 1.0, True
    if weighing.maximum is None:
        sentence = (
            "is needed: weigh-by-size weighs by the number of examples, which has no limit; give the number above "
            "which a client counts no more, here or as the transform's maximum."
        )
        raise PlanError([Problem("secure_aggregation.max_weight", sentence)])
    return float(weighing.maximum), True


def _weight_steps(weight: float, bits: int, *, whole: bool) -> tuple[float, int]:
    """Return the unit of weights, a power of two that lanes hold exactly, and the most units of a client."""
    least = 1.0 if whole else WEIGHT_RESOLUTION
    unit = max(least, 2.0 ** math.ceil(math.log2(weight / (2**bits - 1))))
    return unit, max(1, math.floor(weight / unit))


def _branch_code(
    section: SecureAggregation, name: str, place: tuple[int, int], sum_of: tuple[int, int, int], found: list[Problem]
) -> BranchCode:
    """Return the integers of one branch; what does not fit is added to the problems that were found."""
    (start, size), (clients, steps, tail) = place, sum_of
    own = next((each for each in section.branches if each.name == name), None)
    bits = (own.bits if own else None) or section.bits
    value_bits = (own.value_bits if own else None) or section.value_bits
    largest = (own.max_value if own else None) or section.max_value
    if value_bits is None:
        value_bits = VALUE_BITS if bits is None else _value_bits_that_fit(bits, clients * steps, tail)
    limit = 2 ** (value_bits - 1) - 1
    needed = bits_of(clients * steps * limit + tail)
    if needed > (bits or MOST_BITS) or limit < 1:
        found.append(_overflow(section, name, value_bits, needed, (clients, steps, tail), bits or MOST_BITS))
    block = min(_BLOCK, 1 << max(0, size - 1).bit_length()) if section.rotation else 1
    length = -(-size // block) * block
    step = largest / max(1, limit)
    return BranchCode(name, start, size, length, block, step, limit, min(bits or needed, MOST_BITS), tail)


def _value_bits_that_fit(bits: int, units: int, tail: int) -> int:
    """Return the most bits of an entry so that sums of so many units of weight, and noise, fit into ``bits``."""
    fitting = [each for each in range(2, 33) if bits_of(units * (2 ** (each - 1) - 1) + tail) <= bits]
    return max(fitting, default=2)


def bits_of(most: int) -> int:
    """Return the bits of an entry of a sum in [-most, most], at least 8."""
    return max(FEWEST_BITS, (2 * most).bit_length())


def _overflow(  # noqa: PLR0913, PLR0917 - the numbers of one sentence
    section: SecureAggregation, name: str, value_bits: int, needed: int, sum_of: tuple[int, int, int], bits: int
) -> Problem:
    clients, steps, tail = sum_of
    noise = f" and noise of up to {tail}" if tail else ""
    room = bits - needed + value_bits
    advice = f"use value_bits = {room}" if room >= 2 else "raise bits"
    own = any(each.name == name and each.bits for each in section.branches)
    path = "secure_aggregation.branches" if own else "secure_aggregation.bits"
    return Problem(
        path,
        f"the sum of {name} could overflow: {clients} clients, each up to {steps} units of weight times "
        f"{2 ** (value_bits - 1) - 1} steps ({value_bits} bits with the sign){noise}, need {needed} bits, and there "
        f"are {bits}; {advice}, or lower weight_bits, max_weight or the largest cohort.",
    )


def _lane_codes(lanes: Sequence[Lane], clients: int, cohort: int, found: list[Problem]) -> Iterator[LaneCode]:
    """Yield the runs of lanes that take equally many bits; what does not fit is added to the problems."""
    limits = [lane_limit(lane) for lane in lanes]
    found += [
        _too_many(f"lane {lane.name}", cohort, limit)
        for lane, limit in zip(lanes, limits, strict=True)
        if bits_of(cohort * limit) > MOST_BITS
    ]
    needed = [min(bits_of(clients * limit), MOST_BITS) for limit in limits]
    for bits, run in groupby(range(len(lanes)), key=needed.__getitem__):
        columns = list(run)
        yield LaneCode(columns[0], columns[-1] + 1, bits)


def _too_many(what: str, clients: int, most: int) -> Problem:
    return Problem(
        "secure_aggregation.maximum_cohort",
        f"the sum of {what} could overflow: {clients} clients, each up to {most}, need {bits_of(clients * most)} bits, "
        f"and there are {MOST_BITS}; lower the largest cohort.",
    )


def lane_limit(lane: Lane) -> int:
    """Return the largest absolute integer of one client's lane, rounded as :meth:`Lane.encode` does."""
    return max(abs(round(lane.low / lane.resolution)), abs(round(lane.high / lane.resolution)))
