"""Sums under ``[privacy]``: clipped updates as integers of bounded norm, and integer noise on their sum.

Updates are clipped and rounded on the client, with a secure sum or without one; what is released of a sum is whole
numbers plus whole noise, and only then floats. The noise is sized to the norm *after* rounding, so that a noise
multiplier means what it says whatever the dimension and the bits. What mechanisms know of noise is in
``hansa.privacy``, found through the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hansa.algorithms.adaptive_clip import bits
from hansa.algorithms.ring_plan import RingCode, largest_cohort, largest_sum, ring_code
from hansa.algorithms.rounded_norm import rounded_norm
from hansa.algorithms.schedule import has_fixed_size
from hansa.algorithms.transforms import clipped
from hansa.algorithms.travelling import BELOW_CLIP
from hansa.core.errors import PlanError
from hansa.core.layout import COUNT, Int64s, Layout
from hansa.core.nouns import Batch
from hansa.core.registry import resolve
from hansa.core.secure_aggregation import SecureAggregation
from hansa.core.streams import Streams

if TYPE_CHECKING:
    from hansa.algorithms.plan import Plan

VALUE_BITS: Final = 16
"""Bits of an entry where the plan says nothing: a clip norm is then 32,767 steps, and rounding costs little."""

MOST_CLIENTS: Final = 10**6
"""For how many clients the integers are sized where neither a secure sum nor the sampler says it."""

_RELEASED: Final = (COUNT.name, BELOW_CLIP.name)

NoiseOf = Callable[[RingCode], tuple[Int64s, Int64s]]
"""What is added to a sum of whole numbers: values int64 [width] and lanes int64 [lanes]."""


def private_code(plan: Plan, layout: Layout, clip_norm: float | None = None) -> RingCode:
    """Return the integers of a plan's updates under privacy. PlanError: a sum could overflow.

    ``clip_norm`` is that of the round, where it is adaptive; steps are in proportion to it, and all else stays.
    """
    section, given, layout = _section(plan, clip_norm), plan.secure_aggregation, released(layout)
    if given is None or given.bits is None or given.value_bits is not None:
        return _sized(plan, layout, section, section.value_bits or VALUE_BITS)
    for value_bits in range(given.bits, 2, -1):
        try:
            return _sized(plan, layout, section, value_bits)
        except PlanError:
            continue
    return _sized(plan, layout, section, 2)


def _section(plan: Plan, clip_norm: float | None) -> SecureAggregation:
    """Return the section that the integers follow: the plan's own, or that of plain sums."""
    privacy: Any = plan.privacy
    most = None if plan.secure_aggregation is not None or has_fixed_size(plan.cohort) else MOST_CLIENTS
    section = plan.secure_aggregation or SecureAggregation(maximum_cohort=most)
    return replace(section, max_value=clip_norm or privacy.clip_norm, max_weight=1.0, branches=())


def _sized(plan: Plan, layout: Layout, section: SecureAggregation, value_bits: int) -> RingCode:
    """Return the integers for entries of so many bits; with noise by clients there is room for all of it."""
    privacy: Any = plan.privacy
    section = replace(section, value_bits=value_bits)
    sizes: dict[str, Any] = {
        "clients": largest_sum(section, plan.cohort, plan.schedule),
        "cohort": largest_cohort(section, plan.cohort, plan.schedule),
    }
    code = ring_code(section, layout, **sizes)
    norm = rounded_norm(float(2 ** (value_bits - 1) - 1), 1.0, code.width)
    if privacy.noise_by == "server":
        return replace(code, norm=norm)
    mechanism = mechanism_of(plan)
    variance = mechanism.client_variance(plan, norm)
    tail = sizes["clients"] * mechanism.reach(variance)
    code = ring_code(section, layout, **sizes, noise_tails={branch.name: tail for branch in layout.branches})
    return replace(code, norm=norm, client_variance=variance)


def honest_parties(section: SecureAggregation) -> int:
    """Return how many of those whose sum is shown add noise that the server does not know, at least."""
    return section.minimum_survivors - section.assumed_colluding


def mechanism_of(plan: Plan) -> Any:
    """Return what knows the noise of a plan."""
    return resolve("mechanism", plan.privacy.mechanism)  # type: ignore[union-attr]  # asked under privacy only


def protected(plan: Plan, batch: Batch, clip_norm: float) -> Batch:
    """Return updates cut to the clip norm, jointly over all branches, with the bits of an adaptive clip."""
    privacy: Any = plan.privacy
    values, norms = clipped(batch.values, list(batch.layout.slices.values()), clip_norm)
    batch = replace(batch, values=values)
    return batch if privacy.adaptive_clip is None else batch.with_lanes({BELOW_CLIP.name: bits(norms, clip_norm)})


def released(layout: Layout) -> Layout:
    """Return what of a layout leaves the clients under privacy: the count, which is 1, and an adaptive clip's bit.

    Losses, weights and the counts of what was cut stay on the client; the bit is noised as the branches are.
    """
    return replace(layout, lanes=tuple(lane for lane in layout.lanes if lane.name in _RELEASED))


def withheld(batch: Batch) -> Batch:
    """Return updates with the lanes that leave the clients."""
    layout = released(batch.layout)
    columns = [batch.layout.lane_index[lane.name] for lane in layout.lanes]
    return replace(batch, lanes=np.ascontiguousarray(batch.lanes[:, columns]), layout=layout)


def central_noise(plan: Plan, number: int, key: bytes) -> NoiseOf | None:
    """Return the noise that the server adds to the sum of a round, or None where it adds none.

    ``key`` is 32 secret bytes: of the run, where noise is correlated, else any. The same key and round give the same.
    """
    if plan.privacy is None or plan.privacy.noise_by != "server":
        return None
    return lambda code: mechanism_of(plan).noise(plan, code, number, key)


def simulated_key(streams: Streams) -> bytes:
    """Return the key of a simulation's noise, which everybody who knows the seed can draw: it protects nobody."""
    return streams.of("noise").coins().words(4).astype("<u8").tobytes()


def lanes_of_noise(code: RingCode, columns: Mapping[str, int]) -> Int64s:
    """Return noise of lanes by their names as a vector: int64 [lanes]."""
    noise = np.zeros(len(code.layout.lanes), dtype=np.int64)
    for name, value in columns.items():
        noise[code.layout.lane_index[name]] = value
    return noise
