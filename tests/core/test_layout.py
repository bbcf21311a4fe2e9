"""Branches and lanes: where everything lies, and integers that are summed exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import HansaError
from hansa.core.layout import COUNT, NON_FINITE, TRAIN_LOSS, Branch, Lane, Layout, Parameter, require_room, views_of
from hansa.core.nouns import Aggregate, Batch, ClientBatch, Scaling, Signature
from hansa.testing import MemoryClients

LAYOUT = Layout(
    (
        Branch("params", (Parameter("weight", (2, 3)), Parameter("intercept", (3,)), Parameter("scalar", ()))),
        Branch("buffers", ()),
        Branch("control", (Parameter("weight", (2,)),)),
    ),
    (COUNT, NON_FINITE, TRAIN_LOSS),
)


def test_branches_lie_one_after_the_other():
    assert LAYOUT.size == 12
    assert LAYOUT.slices == {"params": slice(0, 10), "buffers": slice(10, 10), "control": slice(10, 12)}
    assert LAYOUT.branch("control").size == 2


@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
def test_views_are_the_parameters_in_place(lead):
    vectors = np.arange(np.prod([*lead, 12])).reshape(*lead, 12)
    views = LAYOUT.views(vectors, "params")
    assert {name: view.shape for name, view in views.items()} == {
        "weight": (*lead, 2, 3),
        "intercept": (*lead, 3),
        "scalar": lead,
    }
    np.testing.assert_array_equal(views["intercept"], vectors[..., 6:9])
    views["weight"][...] = -1
    assert (vectors[..., :6] == -1).all()
    assert vectors[..., 6:].min() > 0


def test_views_of_strided_vectors_are_views_too():
    vectors = np.zeros((3, 24))[:, ::2]
    views_of(LAYOUT.branches[0], vectors[:, :10])["weight"][...] = 1
    assert vectors.sum() == 18


def test_more_branches_and_lanes_go_to_the_end():
    more = LAYOUT.with_branches(Branch("more", (Parameter("p", (5,)),))).with_lanes(Lane("own", 0, 1))
    assert more.slices["more"] == slice(12, 17)
    assert more.lane_index == {"count": 0, "non_finite": 1, "train_loss": 2, "own": 3}
    assert LAYOUT.size == 12


# Lanes


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 2**30), st.integers(1, 5))
def test_a_lane_is_exact_to_half_its_resolution(value, count):
    encoded = TRAIN_LOSS.encode(np.full(count, value))
    assert encoded.dtype == np.int64
    assert abs(TRAIN_LOSS.decode(int(encoded.sum())) - count * value) <= count * TRAIN_LOSS.resolution * 0.51


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**24), min_size=1, max_size=200))
def test_counts_are_summed_exactly_where_floats_stop_counting(values):
    lane = Lane("n", 0.0, 2.0**24)
    layout = Layout((), (lane,))
    total = layout.encode_lanes({"n": np.array(values)}, len(values)).sum(axis=0)
    assert layout.decode_lane("n", total) == sum(values)


def test_a_million_clients_of_the_largest_weight_do_not_overflow():
    lane = Lane("w", 0.0, 2.0**24, 2.0**-8)
    one = int(lane.encode(np.array([2.0**24]))[0])
    assert one * 1_000_000 < 2**63


@pytest.mark.parametrize(("value", "kept"), [(-5.0, 0.0), (2.0**31, 2.0**30), (np.inf, 2.0**30), (-np.inf, 0.0)])
def test_what_a_lane_does_not_hold_is_clamped_and_never_wraps(value, kept):
    assert TRAIN_LOSS.decode(TRAIN_LOSS.encode(np.array([value])))[0] == kept


def test_room_is_asked_for_where_clamping_would_be_wrong():
    require_room(COUNT, 1.0, "It")
    with pytest.raises(HansaError, match="Lane 'count' holds values up to 1. It is larger."):
        require_room(COUNT, 1.5, "It")


def test_lanes_without_a_column_are_zero():
    assert LAYOUT.encode_lanes({"count": np.ones(2)}, 2).tolist() == [[1, 0, 0], [1, 0, 0]]
    assert LAYOUT.encode_lanes({}, 0).shape == (0, 3)


def test_a_batch_reads_and_replaces_lanes_in_their_unit():
    batch = Batch(np.zeros((2, 12), np.float32), LAYOUT.encode_lanes({}, 2), LAYOUT)
    after = batch.with_lanes({"train_loss": np.array([0.5, 1.25])})
    assert after.lane("train_loss").tolist() == [0.5, 1.25]
    assert not batch.lanes.any()
    assert after.bytes_each == 12 * 4 + 3 * 8


def test_an_aggregate_reads_summed_lanes_and_its_share():
    lanes = LAYOUT.encode_lanes({"train_loss": np.array([0.5, 1.25]), "count": np.ones(2)}, 2).sum(axis=0)
    total = Aggregate(np.zeros(12), {}, lanes, 2, 8, LAYOUT)
    assert total.lane("train_loss") == 1.75
    assert total.share == 0.25


# Clients and scaling


def test_gathering_everything_pads_to_the_largest_client():
    data = MemoryClients([np.arange(3.0)[:, None], np.arange(10.0, 11.0)[:, None]], [np.arange(3), np.arange(1)])
    clients = ClientBatch(np.array([1, 0]), data, Signature((1,), 3))
    x, y = clients.everything()
    assert x.shape == (2, 3, 1)
    assert x[1, :, 0].tolist() == [0, 1, 2]
    assert x[0, 0, 0] == 10
    assert y.shape == (2, 3)
    assert clients.sizes.tolist() == [1, 3]


def test_scaling_centres_and_puts_what_is_missing_at_the_centre():
    scaling = Scaling(np.array([1.0, 2.0], np.float32), np.array([2.0, 4.0], np.float32))
    given_x = np.array([[[3.0, np.nan], [1.0, 6.0]]], dtype=np.float32)
    before = given_x.copy()
    np.testing.assert_array_equal(scaling.apply(given_x), [[[1, 0], [0, 1]]])
    np.testing.assert_array_equal(given_x, before)
