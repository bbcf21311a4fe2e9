"""The planner's proof holds: the largest sums come back exactly, and what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.algorithms.fixed_point import modulo, weight_units, whole_numbers
from hansa.algorithms.ring_plan import bits_of, lane_limit, ring_code
from hansa.algorithms.travelling import travelling_lanes
from hansa.core.errors import HansaError, PlanError
from hansa.core.layout import Branch, Lane, Layout, Parameter
from hansa.core.secure_aggregation import BranchIntegers, SecureAggregation

LANES = travelling_lanes(["params", "control"], [], integers=True)


def layout(size=3, lanes=LANES):
    return Layout((Branch("params", (Parameter("w", (size,)),)), Branch("control", (Parameter("w", (size,)),))), lanes)


def summed(code, values, lanes, clients):
    """Return what is decoded of the sum of ``clients`` equal vectors, added in the ring's own types."""
    ring = code.ring
    parts = [np.full(branch.length, value, np.int64) for branch, value in zip(code.branches, values, strict=True)]
    runs = [np.array(lanes[run.start : run.stop], np.int64) for run in code.lanes]
    bits = [segment.bits for segment in ring.segments]
    vector = [modulo(part, width) for part, width in zip((*parts, *runs), bits, strict=True)]
    with np.errstate(over="ignore"):  # a uint64 that wraps is what is meant
        total = [(array * np.uint64(clients)).astype(segment.dtype)
                 for array, segment in zip(vector, ring.segments, strict=True)]  # fmt: skip
    return whole_numbers(code, ring.reduce(total), clients)


SECTIONS = st.builds(
    SecureAggregation,
    value_bits=st.integers(2, 24),
    weight_bits=st.integers(1, 12),
    rotation=st.booleans(),
    branches=st.sampled_from([(), (BranchIntegers(name="control", value_bits=5, max_value=9.0),)]),
)


@settings(max_examples=60, deadline=None)
@given(SECTIONS, st.integers(3, 5000), st.floats(0.5, 2.0**20), st.sampled_from([-1, 0, 1]))
def test_the_largest_sums_of_the_largest_cohort_come_back_exactly(section, clients, weight, sign):
    code = ring_code(section, layout(), clients=clients, weight=weight, whole_weights=weight >= 1)
    values = [sign * code.weight_steps * branch.limit for branch in code.branches]
    lanes = [sign * lane_limit(lane) for lane in LANES]
    found, found_lanes = summed(code, values, lanes, clients)
    for branch, value in zip(code.branches, values, strict=True):
        assert (found[branch.part] == clients * value).all()
    assert found_lanes.tolist() == [clients * lane for lane in lanes]


@settings(max_examples=60, deadline=None)
@given(SECTIONS, st.integers(3, 5000), st.floats(1, 2.0**20))
def test_one_bit_less_would_overflow_and_is_refused(section, clients, weight):
    code = ring_code(section, layout(), clients=clients, weight=weight)
    params = code.branches[0]
    most = code.most(params, clients)
    assert 2 * most + 1 <= 2**params.bits
    assert params.bits == 8 or 2 * most + 1 > 2 ** (params.bits - 1)
    if params.bits > 8:
        tight = SecureAggregation(value_bits=section.value_bits, weight_bits=section.weight_bits, bits=params.bits - 1)
        with pytest.raises(PlanError, match=f"need {params.bits} bits, and there are {params.bits - 1}"):
            ring_code(tight, layout(), clients=clients, weight=weight)


def test_the_boundary_of_the_ring_is_where_two_bounds_and_one_fill_it():
    assert bits_of(2**15 - 1) == 16
    assert bits_of(2**15) == 17, "-2^15 and 2^15 are the same modulo 2^16"
    assert bits_of(1) == 8, "a segment has at least 8 bits"
    assert bits_of(2**63 - 1) == 64


def test_noise_takes_its_part_of_the_room():
    section = SecureAggregation(bits=9, value_bits=4)  # 34 clients of at most 7: 2 x (238 + 17) + 1 = 511 of 512
    small = Layout(layout().branches[:1], ())
    code = ring_code(section, small, clients=34, noise_tails={"params": 17})
    assert code.most(code.branches[0], 34) == 255
    assert summed(code, [7], [], 34)[0].tolist() == [238] * 3
    with pytest.raises(PlanError, match="noise of up to 18, need 10 bits, and there are 9; use value_bits = 3"):
        ring_code(section, small, clients=34, noise_tails={"params": 18})


@pytest.mark.parametrize(
    ("clients", "weight", "bits", "found"), [(1000, 255, 32, 14), (4, 300, None, 16), (100, 1, 16, 9)]
)
def test_bits_that_are_given_are_filled_and_others_found(clients, weight, bits, found):
    code = ring_code(SecureAggregation(bits=bits), layout(), clients=clients, weight=weight)
    assert code.branches[0].limit == 2 ** (found - 1) - 1


def test_bits_too_few_for_any_value_are_refused():
    with pytest.raises(PlanError, match="there are 8"):
        ring_code(SecureAggregation(bits=8), layout(), clients=1000)


@pytest.mark.parametrize(
    ("weight", "bits", "whole", "unit", "steps"),
    [(255, 8, True, 1.0, 255), (256, 8, True, 2.0, 128), (1000, 8, True, 4.0, 250), (2.0**24, 8, True, 2.0**17, 128),
     (1, 8, True, 1.0, 1), (0.5, 8, False, 2.0**-8, 128), (300, 1, True, 512.0, 1)],
)  # fmt: skip
def test_weights_are_counted_in_a_unit_that_lanes_hold_exactly(weight, bits, whole, unit, steps):
    section = SecureAggregation(weight_bits=bits)
    code = ring_code(section, layout(), clients=10, weight=weight, whole_weights=whole)
    assert (code.weight_unit, code.weight_steps) == (unit, steps)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 16), st.integers(1, 2**20), st.data())
def test_a_weight_is_off_by_no_more_than_is_printed(bits, largest, data):
    weights = np.array(data.draw(st.lists(st.integers(1, largest), min_size=1, max_size=20)), dtype=np.float64)
    section = SecureAggregation(weight_bits=bits)
    code = ring_code(section, layout(), clients=10, weight=float(largest))
    within = weights[weights <= code.max_weight]
    rounded = weight_units(code, within) * code.weight_unit
    assert (weight_units(code, np.zeros(1)) == 0).all()
    assert (rounded >= code.weight_unit).all()
    for weight, used in zip(within, rounded, strict=True):
        assert abs(used - weight) / weight <= code.weight_error(weight) + 1e-12


def test_a_sum_out_of_its_range_is_refused():
    code = ring_code(SecureAggregation(bits=32, value_bits=8), layout(), clients=10)
    lanes = [0] * len(LANES)
    summed(code, [127, 127], lanes, 10)
    with pytest.raises(HansaError, match="HANSA-SUM-RANGE|within what its clients can give") as caught:
        summed(code, [128, 127], lanes, 10)
    assert caught.value.code == "HANSA-SUM-RANGE"
    lanes[0] = 2
    with pytest.raises(HansaError, match="One of 'count' does not"):
        summed(code, [0, 0], lanes, 10)


def test_a_sum_of_more_clients_than_it_is_sized_for_is_refused():
    code = ring_code(SecureAggregation(), layout(), clients=10)
    summed(code, [1, 1], [0] * len(LANES), 10)
    with pytest.raises(HansaError, match="sized for 10 clients"):
        summed(code, [1, 1], [0] * len(LANES), 11)


def test_lanes_that_need_equally_many_bits_share_a_segment():
    lanes = (Lane("a", 0, 1), Lane("b", 0, 1), Lane("c", -(2.0**30), 2.0**30), Lane("d", 0, 1))
    code = ring_code(SecureAggregation(), layout(lanes=lanes), clients=100)
    assert [(run.start, run.stop, run.bits) for run in code.lanes] == [(0, 2, 8), (2, 3, 38), (3, 4, 8)]
    assert [segment.name for segment in code.ring.segments] == ["params", "control", "lanes.0", "lanes.2", "lanes.3"]
