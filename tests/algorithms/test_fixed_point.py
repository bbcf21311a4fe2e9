"""What the encoder guarantees: its bounds whatever the update, no bias, and a sum that decodes as integers say."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hansa.algorithms import fixed_point
from hansa.algorithms.aggregators import Mean
from hansa.algorithms.fixed_point import decode, encode, joined, vectors, whole_numbers
from hansa.algorithms.ring_plan import ring_code
from hansa.algorithms.secure_sums import Groups, Opening, RingFold, RingRows
from hansa.algorithms.travelling import CAPPED, SCALED_DOWN, travelling_lanes
from hansa.core.errors import HansaError, PlanError
from hansa.core.layout import NON_FINITE, Branch, Lane, Layout, Parameter, weight_lane
from hansa.core.nouns import Assignment, Batch, ClientBatch, ClientContext, Signature
from hansa.core.secure_aggregation import BranchIntegers, SecureAggregation
from hansa.core.streams import Streams
from hansa.testing import MemoryClients

FLOAT32_MAX = float(np.finfo(np.float32).max)
EXTREME = st.one_of(
    st.floats(-FLOAT32_MAX, FLOAT32_MAX, width=32, allow_subnormal=True),
    st.sampled_from([0.0, 1e-45, 0.5, 1.0, -1.0, FLOAT32_MAX, -FLOAT32_MAX, np.inf, np.nan]),
)
TAU = Lane("tau", 0.0, 2.0**20, 2.0**-8, purpose="statistic", weighted=True)
TWO = (BranchIntegers(name="control", max_value=8.0, value_bits=10),)


def layout(params=5, control=3):
    branches = (Branch("params", (Parameter("w", (params,)),)), Branch("control", (Parameter("w", (control,)),)))
    return Layout(branches, (*travelling_lanes(["params", "control"], [], integers=True), TAU))


def batch_of(values, weights, made=None):
    """Return updates [n, d] that carry weights [n]: values are times the weight already, as transforms leave them."""
    made = made or layout()
    columns = {weight_lane(branch.name): np.asarray(weights, dtype=np.float64) for branch in made.branches}
    ones = np.ones(len(values))
    columns |= {"count": ones, "tau": 3 * np.asarray(weights, dtype=np.float64)}
    return Batch(np.asarray(values, dtype=np.float32), made.encode_lanes(columns, len(values)), made)


def context_of(batch, seed=0, first=0):
    count = len(batch)
    data = MemoryClients([np.zeros((1, 1), np.float32)] * (first + count), [np.zeros(1)] * (first + count))
    ordinals = np.arange(first, first + count)
    assignment = Assignment(1, batch.layout, np.zeros(batch.layout.size, np.float32), ordinals, population=count)
    return ClientContext(assignment, ClientBatch(ordinals, data, Signature((1,), 0)), Streams(seed))


def code_of(section=None, made=None, **numbers):
    return ring_code(section or SecureAggregation(branches=TWO), made or layout(), **{"clients": 100} | numbers)


def signed(code, encoded):
    """Return each client's whole numbers: values [n, width], lanes [n, lanes]."""
    found = [whole_numbers(code, vector, 1) for vector in vectors(code, encoded)]
    return np.array([values for values, _ in found]), np.array([lanes for _, lanes in found])


@settings(max_examples=80, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.just(8)), elements=EXTREME),
    st.sampled_from([0.0, 0.004, 1.0, 7.0, 300.0, 2.0**23]),
    st.booleans(),
    st.sampled_from([1.0, 255.0, 1000.0]),
)
def test_no_vector_is_beyond_its_bounds_whatever_the_update(values, weight, rotation, largest):
    code = code_of(SecureAggregation(branches=TWO, rotation=rotation), weight=largest)
    batch = batch_of(values, [weight] * len(values))
    with np.errstate(all="ignore"):
        encoded = encode(code, batch, context_of(batch))
    found, lanes = signed(code, encoded)  # refuses what one client cannot give
    for branch in code.branches:
        assert np.abs(found[:, branch.part]).max() <= code.weight_steps * branch.limit
    spoilt = ~np.isfinite(values).all(axis=1)
    assert (encoded.lane(NON_FINITE.name) == spoilt).all()
    assert (found[spoilt] == 0).all()
    assert (lanes == encoded.lanes).all()


def test_an_update_within_its_range_is_right_on_average_and_never_off_by_a_step():
    code = code_of(SecureAggregation(value_bits=4))
    values = np.tile(np.linspace(-1, 1, 8, dtype=np.float32), (4000, 1))
    batch = batch_of(values, np.ones(4000))
    found, _ = signed(code, encode(code, batch, context_of(batch)))
    steps = np.array([code.branches[0].step] * 5 + [code.branches[1].step] * 3)
    assert np.abs(found * steps - values).max() < steps.max() * (1 + 1e-6)
    assert np.abs((found * steps).mean(axis=0) - values[0]).max() < 4 * steps.max() / 2 / np.sqrt(4000)


def test_an_update_beyond_its_range_is_scaled_down_as_a_whole_and_counted():
    code = code_of(SecureAggregation(value_bits=20))
    batch = batch_of([[4.0, 2.0, -1.0, 0, 0, 0.5, 0, 0], [0.5] * 8], [1.0, 1.0])
    encoded = encode(code, batch, context_of(batch))
    found, _ = signed(code, encoded)
    assert np.allclose(found[0] * code.branches[0].step, [1, 0.5, -0.25, 0, 0, 0.5, 0, 0], atol=1e-5)
    assert encoded.lane(SCALED_DOWN.name).tolist() == [1, 0]


@pytest.mark.parametrize("rotation", [False, True])
def test_the_largest_finite_update_keeps_its_direction(rotation):
    made = layout(params=8, control=1)
    code = code_of(SecureAggregation(rotation=rotation, value_bits=20), made)
    batch = batch_of([[FLOAT32_MAX] * 4 + [-FLOAT32_MAX] * 4 + [0.0]], [1.0], made)
    context = context_of(batch)
    whole, _ = whole_numbers(code, vectors(code, encode(code, batch, context))[0], 1)
    decoded = decode(code, whole, 1, context.streams)[:8]
    assert np.allclose(decoded, decoded[0] * np.array([1] * 4 + [-1] * 4), atol=1e-5)
    assert decoded[0] > 0.3


def test_weights_are_inside_the_vector_and_values_and_lanes_follow_them_exactly():
    code = code_of(SecureAggregation(value_bits=24, weight_bits=4), weight=1000.0)  # a unit of 128, 7 of them
    weights = np.array([100.0, 200.0, 896.0, 5000.0, 1.0, 0.0])
    batch = batch_of(np.outer(weights, np.full(8, 0.25)), weights)
    encoded = encode(code, batch, context_of(batch))
    used = encoded.lane(weight_lane("params"))
    assert used.tolist() == [128, 256, 896, 896, 128, 0]
    found, _ = signed(code, encoded)
    assert np.allclose(
        found[:, :5] * code.branches[0].step * code.weight_unit, np.outer(used, np.full(5, 0.25)), rtol=1e-5
    )
    assert encoded.lane("tau").tolist() == (3 * used).tolist()
    assert encoded.lane(CAPPED.name).tolist() == [0, 0, 0, 1, 0, 0]
    assert encoded.lane("count").tolist() == [1] * 6


@pytest.mark.parametrize("rotation", [False, True])
def test_a_sum_decodes_as_the_integers_say(rotation):
    made = layout(params=1000, control=33)
    code = code_of(SecureAggregation(rotation=rotation), made)
    values = np.random.default_rng(0).normal(0, 0.1, (20, 1033)).astype(np.float32)
    batch = batch_of(values, np.ones(20), made)
    context = context_of(batch)
    encoded = encode(code, batch, context)
    total = joined(code, encoded.values.sum(axis=0, dtype=code.dtype), encoded.lanes.sum(axis=0))
    whole, lanes = whole_numbers(code, total, 20)
    assert (whole == signed(code, encoded)[0].sum(axis=0)).all()
    assert (lanes == encoded.lanes.sum(axis=0)).all()
    decoded = decode(code, whole, 1, context.streams)
    assert np.abs(decoded - values.sum(axis=0)).max() < 20 * code.branches[0].step
    if not rotation:
        assert (decoded == whole * code.branches[0].step).all()


def test_a_rotation_keeps_a_single_large_entry_within_the_range():
    made = layout(params=1024, control=1)
    values = np.zeros((1, 1025), np.float32)
    values[0, 7] = 5.0
    batch = batch_of(values, [1.0], made)
    kept = {}
    for rotation in (False, True):
        code = code_of(SecureAggregation(rotation=rotation, max_value=0.2), made)
        kept[rotation] = encode(code, batch, context_of(batch)).lane(SCALED_DOWN.name)[0]
    assert kept == {False: 1.0, True: 0.0}


def test_what_a_client_rounds_depends_on_no_other_client(monkeypatch):
    code = code_of()
    values = np.random.default_rng(1).normal(0, 0.2, (6, 8)).astype(np.float32)
    batch = batch_of(values, np.ones(6))
    together = encode(code, batch, context_of(batch))
    monkeypatch.setattr(fixed_point, "_ENTRIES_AT_ONCE", 2 * code.width)
    assert (encode(code, batch, context_of(batch)).values == together.values).all(), "rounded two at a time"
    for position in range(6):
        alone = replace(batch, values=values[position : position + 1], lanes=batch.lanes[position : position + 1])
        found = encode(code, alone, context_of(alone, first=position))
        assert (found.values == together.values[position]).all()
        assert (found.lanes == together.lanes[position]).all()


def test_the_rounding_of_a_federation_is_each_clients_own():
    code = code_of()
    batch = batch_of(np.full((1, 8), 0.3), [1.0])
    context = context_of(batch)
    own = replace(context, streams=Streams(0, "federation", frozenset({"rounding"})))
    assert encode(code, batch, own).lanes.tolist() == encode(code, batch, context).lanes.tolist()
    with pytest.raises(HansaError, match="public purposes only"):
        encode(code, batch, replace(context, streams=Streams(0, "federation")))


def test_arrays_beside_the_values_are_refused():
    batch = batch_of(np.zeros((1, 8)), [1.0])
    with pytest.raises(PlanError, match="leave scales beside the values, which a secure sum cannot add"):
        encode(code_of(), replace(batch, side={"scales": np.ones(1)}), context_of(batch))


# A second implementation, in plain Python integers


def plain_vector(code, batch, position, coins):
    """Return the packed vector of one client as the page on fixed point describes it, without numpy's arithmetic."""
    layout, lanes = batch.layout, [int(each) for each in batch.lanes[position]]
    column = {lane.name: place for place, lane in enumerate(layout.lanes)}
    segments, new, scaled, capped = [], dict(enumerate(lanes)), False, False
    for branch in code.branches:
        place = column[weight_lane(branch.name)]
        weight = lanes[place] * layout.lanes[place].resolution
        units = min(max(round(weight / code.weight_unit), 1), code.weight_steps) if weight else 0
        capped |= weight > code.max_weight
        new[place] = round(units * code.weight_unit / layout.lanes[place].resolution)
        if branch.name == "params" and weight:
            tau = layout.lanes[column["tau"]]
            new[column["tau"]] = round(
                lanes[column["tau"]] * tau.resolution * (units * code.weight_unit / weight) / tau.resolution
            )
        entries = [float(x) for x in batch.values[position, layout.slices[branch.name]]]
        factor = units / (weight * branch.step) if weight else 0.0
        largest, most = max(abs(x) for x in entries) * factor, units * branch.limit
        scaled |= largest > most
        factor *= most / largest if largest > most else 1.0
        whole = [math.floor(x * factor + coins[branch.start + i] / 2**32) for i, x in enumerate(entries)]
        segments.append(([min(max(each, -most), most) for each in whole], branch.bits))
    new[column[SCALED_DOWN.name]], new[column[CAPPED.name]] = int(scaled), int(capped)
    segments += [([new[place] for place in range(run.start, run.stop)], run.bits) for run in code.lanes]
    packed = b""
    for entries, bits in segments:
        number = sum((entry % 2**bits) << (bits * place) for place, entry in enumerate(entries))
        packed += number.to_bytes(-(-len(entries) * bits // 8), "little")
    return packed


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 3), st.just(8)), elements=st.floats(-50, 50, width=32)),
    st.lists(st.integers(0, 400), min_size=3, max_size=3),
    st.sampled_from([1.0, 100.0, 300.0]),
)
def test_plain_python_makes_the_same_bytes(values, weights, largest):
    code = code_of(weight=largest)
    batch = batch_of(values, weights[: len(values)])
    context = context_of(batch)
    encoded = encode(code, batch, context)
    words = context.streams.of("rounding", 1).bits(context.clients.ordinals, -(-code.width // 2)).tolist()
    coins = [[half for word in row for half in (word % 2**32, word >> 32)] for row in words]
    for position, vector in enumerate(vectors(code, encoded)):
        assert code.ring.pack(vector) == plain_vector(code, batch, position, coins[position])


# Collectors


def encoded_cohort(count, section):
    made = layout()
    code = code_of(section, made, weight=50.0)
    rng = np.random.default_rng(2)
    weights = rng.integers(1, 60, count)
    batch = batch_of(rng.normal(0, 0.3, (count, 8)) * weights[:, None], weights, made)
    return code, encode(code, batch, context_of(batch))


def part(batch, start, stop):
    return replace(batch, values=batch.values[start:stop], lanes=batch.lanes[start:stop])


def add_up(ring, rows, _):
    total = ring.zeros()
    for row in rows:
        total = ring.reduce([mine + other for mine, other in zip(total, row, strict=True)])
    return total


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.sampled_from([None, 3, 7]), st.data())
def test_every_way_to_add_gives_the_same_sum_bit_for_bit(count, group_size, data):
    section = SecureAggregation(group_size=group_size, branches=TWO)
    code, encoded = encoded_cohort(count, section)
    opening = Opening(code, Groups(count, section.groups(count)), 1, Streams(0))
    cuts = sorted({0, count, *data.draw(st.lists(st.integers(0, count), max_size=5))})
    spans = data.draw(st.permutations(list(pairwise(cuts))))
    whole = RingFold(opening)
    whole.add(encoded, 0)
    parts, rows = RingFold(opening), RingRows(opening, add_up)
    for start, stop in spans:
        for collected, kind in ((parts, RingFold), (rows, RingRows)):
            partial = kind(opening)
            partial.add(part(encoded, start, stop), start)
            collected.merge(partial)
    expected = whole.finish(Mean(), 100)
    assert expected.count == count
    assert expected.weights["params"] == encoded.lane(weight_lane("params")).sum()
    for found in (parts.finish(Mean(), 100), rows.finish(Mean(), 100)):
        assert found.values.tobytes() == expected.values.tobytes()
        assert found.lanes.tobytes() == expected.lanes.tobytes()
        assert found.weights == expected.weights


@pytest.mark.parametrize("kind", [RingFold, RingRows])
@pytest.mark.parametrize("places", [[(0, 4)], [(0, 4), (3, 6)], [(1, 6)], [(0, 6), (0, 6)]])
def test_a_client_that_is_missing_or_comes_twice_is_noticed(kind, places):
    code, encoded = encoded_cohort(6, SecureAggregation())
    opening = Opening(code, Groups(6, 1), 1, Streams(0))
    collected = kind(opening) if kind is RingFold else kind(opening, add_up)
    for start, stop in places:
        collected.add(part(encoded, start, stop), start)
    with pytest.raises(ValueError, match="is missing, or came twice"):
        collected.finish(Mean(), 6)


def test_groups_cut_a_cohort_evenly_and_none_is_smaller_than_the_plan_says():
    section = SecureAggregation(group_size=4, minimum_cohort=4)
    for cohort in range(1, 60):
        groups = Groups(cohort, section.groups(cohort))
        sizes = [after - first for first, after in map(groups.bounds, range(groups.count))]
        assert sum(sizes) == cohort
        assert min(sizes) >= min(4, cohort)
        assert max(sizes) <= section.group_limit
        assert [place for number in range(groups.count) for place in groups.of(0, cohort) if place[0] == number] == [
            (number, *groups.bounds(number)) for number in range(groups.count)
        ]


def test_a_spoilt_vector_makes_the_whole_sum_void():
    code, encoded = encoded_cohort(6, SecureAggregation())
    lanes = encoded.lanes.copy()
    lanes[2, 0] = 1000
    collected = RingFold(Opening(code, Groups(6, 1), 1, Streams(0)))
    collected.add(replace(encoded, lanes=lanes), 0)
    with pytest.raises(HansaError, match="One of 'count' does not"):
        collected.finish(Mean(), 6)
