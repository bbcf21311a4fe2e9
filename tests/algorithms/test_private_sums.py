"""What leaves a client under privacy is bounded whatever it computed, and a sum is released with whole noise."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.algorithms.test_privacy_checks import ADAPTIVE, BASE, DISTRIBUTED, SECURE, private

from hansa.algorithms.fixed_point import encode, signed, squared_norms
from hansa.algorithms.plan import plan_from_mapping
from hansa.algorithms.private_sums import central_noise, private_code, protected, withheld
from hansa.algorithms.rounded_norm import BETA, rounded_norm
from hansa.algorithms.secure_sums import Groups, Opening, RingFold
from hansa.algorithms.travelling import BELOW_CLIP, travelling_lanes
from hansa.core.layout import COUNT, TRAIN_LOSS, Branch, Layout, Parameter
from hansa.core.nouns import Assignment, Batch, ClientBatch, ClientContext, Signature
from hansa.core.streams import Streams
from hansa.privacy.keystream import row_key
from hansa.privacy.matrices import BandedMatrix
from hansa.privacy.mechanisms import VALUES, variance_of
from hansa.privacy.noise import discrete_gaussian
from hansa.testing import MemoryClients

KEY = bytes(range(32))


def plan_of(*changes):
    tables = dict(BASE)
    for change in changes:
        tables |= change
    return plan_from_mapping(tables)


def batch_of(plan, rows):
    rows = np.asarray(rows, dtype=np.float32)
    adaptive = plan.privacy.adaptive_clip is not None
    lanes = travelling_lanes(["params"], [], integers=True, adaptive=adaptive)
    layout = Layout((Branch("params", (Parameter("w", (rows.shape[1],)),)),), lanes)
    columns = {COUNT.name: np.ones(len(rows)), "weight.params": np.ones(len(rows)), TRAIN_LOSS.name: np.ones(len(rows))}
    return Batch(rows, layout.encode_lanes(columns, len(rows)), layout)


def context_of(batch, seed=0):
    count = len(batch)
    data = MemoryClients([np.zeros((1, 1), np.float32)] * count, [np.zeros(1)] * count)
    cohort = np.arange(count)
    assignment = Assignment(1, batch.layout, np.zeros(batch.layout.size, np.float32), cohort, population=count)
    return ClientContext(assignment, ClientBatch(cohort, data, Signature((1,), 0)), Streams(seed))


def encoded(plan, rows, seed=0, clip_norm=1.0):
    """What leaves the clients, and the integers' plan."""
    batch = batch_of(plan, rows)
    code = private_code(plan, batch.layout, clip_norm)
    return code, withheld(encode(code, protected(plan, batch, clip_norm), context_of(batch, seed)))


def integers(code, batch):
    return np.concatenate([signed(batch.values[:, each.part], each.bits) for each in code.branches], axis=1)


def opened(plan, code, batch, noise=None, number=1):
    fold = RingFold(Opening(code, Groups(len(batch), 1), number, Streams(0), noise))
    fold.add(batch, 0)
    return fold.finish(plan.aggregator, len(batch))


# The bound on one client


@given(
    st.integers(1, 300), st.sampled_from([2, 4, 8, 16]), st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1e-3, 0.3, 1.0, 1e6, 1e30]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_no_client_is_longer_than_the_norm_that_noise_is_sized_for(dimension, value_bits, seed, scale):
    plan = plan_of({"secure_aggregation": SECURE | {"value_bits": value_bits}})
    rows = np.random.default_rng(seed).normal(size=(7, dimension)) * scale / math.sqrt(dimension)
    code, batch = encoded(plan, rows, seed)
    assert code.norm == rounded_norm(2 ** (value_bits - 1) - 1, 1.0, dimension)
    exact = [sum(int(entry) ** 2 for entry in row) for row in integers(code, batch)]
    assert max(exact) <= code.norm**2
    assert squared_norms(code, batch.values).tolist() == pytest.approx(exact, rel=1e-6, abs=2)


@pytest.mark.parametrize("row", [np.full(40, np.inf), np.full(40, np.nan), np.full(40, 3e38)])
def test_an_update_that_is_not_finite_is_bounded_too(row):
    plan = plan_of()
    code, batch = encoded(plan, np.stack([row, np.full(40, 0.01)]))
    assert (squared_norms(code, batch.values) <= code.norm**2).all()
    assert batch.lanes.tolist() == [[1], [1]]


def test_at_the_hardest_corner_updates_are_drawn_again_and_stay_right_in_the_mean():
    """Every fraction is a half: about one draw in six is too long."""
    plan = plan_of({"secure_aggregation": SECURE | {"value_bits": 4}})
    half = np.full(400, 0.5 / 7 * (1 - 1e-6))  # half a step of a clip norm of 7
    norm = float(np.linalg.norm(half))
    code, batch = encoded(plan, np.tile(half, (500, 1)) / norm, clip_norm=1.0)
    lengths = np.linalg.norm(integers(code, batch).astype(float), axis=1)
    assert lengths.max() <= code.norm
    assert len(np.unique(lengths)) > 10, "coins differ"


def test_rounding_is_right_in_the_mean():
    plan = plan_of({"secure_aggregation": SECURE | {"value_bits": 6, "maximum_cohort": 4000, "bits": 40}})
    row = np.linspace(-0.09, 0.09, 101)
    code, batch = encoded(plan, np.tile(row, (4000, 1)))
    mean = integers(code, batch).mean(axis=0) * code.branches[0].step
    assert np.abs(mean - row).max() < 5 * code.branches[0].step / 2 / math.sqrt(4000)


def test_the_rounding_bound_is_that_of_the_paper():
    """Both branches: many coarse steps, where the likely bound is the smaller, and one of few."""
    c, g, d = 2.0, 0.5, 64
    likely = c**2 + g**2 * d / 4 + math.sqrt(2 * math.log(1 / BETA)) * g * (c + g * math.sqrt(d) / 2)
    assert rounded_norm(c, g, d) ** 2 == pytest.approx(likely)
    assert rounded_norm(c, g, 1, beta=1e-9) ** 2 == pytest.approx((c + g) ** 2)


def test_the_bound_needs_no_more_than_a_few_draws():
    above = 0
    for number in range(500):
        drawn = np.random.default_rng(number).integers(0, 2, 1000)
        above += np.linalg.norm(drawn) > rounded_norm(float(np.linalg.norm(np.full(1000, 0.5))), 1.0, 1000)
    assert above / 500 <= BETA


# What leaves


@pytest.mark.parametrize("change", [{}, private(**ADAPTIVE)])
def test_lanes_tell_nothing_of_a_client_but_a_noised_bit(change):
    plan = plan_of(change)
    _, batch = encoded(plan, np.stack([np.full(9, 0.01), np.full(9, 50.0), np.full(9, np.nan)]))
    names = [lane.name for lane in batch.layout.lanes]
    assert names == (["count"] if not change else ["count", "below_clip"])
    assert batch.lane("count").tolist() == [1, 1, 1]
    if change:
        assert batch.lane(BELOW_CLIP.name).tolist() == [0.5, -0.5, -0.5]


# Noise


def test_a_sum_is_released_with_exactly_the_noise_of_its_round():
    plan = plan_of()
    rows = np.random.default_rng(1).normal(size=(20, 300))
    code, batch = encoded(plan, rows)
    plain = opened(plan, code, batch).values / code.branches[0].step
    noised = opened(plan, code, batch, central_noise(plan, 3, KEY), 3).values / code.branches[0].step
    variance = variance_of(plan.privacy.noise_multiplier, code)
    drawn = discrete_gaussian(Fraction(variance), 300, key=row_key(KEY, 3, VALUES))
    np.testing.assert_allclose(noised - plain, drawn, atol=1e-6)
    np.testing.assert_allclose(plain, np.rint(plain), atol=1e-6)
    assert variance >= (plan.privacy.noise_multiplier * code.norm) ** 2


def test_noise_is_sized_to_the_norm_whatever_the_bits():
    """In the update's unit the noise is the multiplier times the clip norm, and more where rounding is coarse."""
    found = {}
    for value_bits in (3, 8, 16):
        plan = plan_of({"secure_aggregation": SECURE | {"value_bits": value_bits}})
        code, batch = encoded(plan, np.zeros((2, 4000)))
        released = opened(plan, code, batch, central_noise(plan, 1, KEY)).values
        found[value_bits] = released.std() / plan.privacy.noise_multiplier
        assert released.std() / (code.norm * code.branches[0].step) == pytest.approx(
            plan.privacy.noise_multiplier, rel=0.05
        )
    assert found[16] == pytest.approx(1.0, rel=0.05)
    assert found[3] > 5 * found[16]


def test_shares_of_the_honest_ones_are_noise_enough_with_drop_outs():
    """Of 60 clients 40 are left, of whom 2 know their own noise: that of 38 is no less than what is claimed."""
    plan = plan_of(DISTRIBUTED | {"secure_aggregation": SECURE | {"assumed_colluding": 2}})
    code, batch = encoded(plan, np.zeros((60, 3000)))
    assert np.abs(integers(code, batch)).max() <= code.branches[0].tail
    sums = integers(code, batch)[:38].sum(axis=0)
    wanted = plan.privacy.noise_multiplier * code.norm
    assert sums.std() == pytest.approx(wanted, rel=5 / math.sqrt(2 * 3000))
    of_all = opened(plan, code, batch).values / code.branches[0].step
    assert of_all.std() == pytest.approx(wanted * math.sqrt(60 / 38), rel=5 / math.sqrt(2 * 3000))
    assert central_noise(plan, 1, KEY) is None, "the server adds none"


def test_every_client_has_its_own_noise():
    plan = plan_of(DISTRIBUTED)
    code, batch = encoded(plan, np.zeros((3, 2000)))
    rows = integers(code, batch)
    assert abs(np.corrcoef(rows)[np.triu_indices(3, 1)]).max() < 0.1
    assert not np.array_equal(rows, integers(code, encoded(plan, np.zeros((3, 2000)), seed=1)[1]))


@pytest.mark.parametrize("bits", [24, 32])
def test_bits_that_are_given_bound_the_bits_of_an_entry(bits):
    plan = plan_of(DISTRIBUTED | {"secure_aggregation": SECURE | {"bits": bits}})
    code, batch = encoded(plan, np.random.default_rng(0).normal(size=(100, 500)))
    (branch,) = code.branches
    assert branch.bits == bits
    assert 2 * code.most(branch, code.clients) < 2**bits
    assert np.isfinite(opened(plan, code, batch).values).all()


def test_correlated_rows_are_those_of_the_matrix_in_any_order():
    plan = plan_of(private(mechanism="banded-matrix"))
    code, batch = encoded(plan, np.zeros((4, 200)))
    of = {
        number: opened(plan, code, batch, central_noise(plan, number, KEY), number).values / code.branches[0].step
        for number in (1, 2, 3, 7, 2)
    }
    variance = Fraction(variance_of(plan.privacy.noise_multiplier, code))
    rows = list(BandedMatrix.optimal(40, 8).noise(variance, 200, run_key=KEY, group=VALUES))
    for number, released in of.items():
        np.testing.assert_allclose(released, rows[number - 1], atol=1e-5)


def test_the_bit_of_an_adaptive_clip_is_noised_and_the_updates_bear_more():
    plan = plan_of(private(**ADAPTIVE))
    code, batch = encoded(plan, np.zeros((50, 4000)))
    bits = [
        opened(plan, code, batch, central_noise(plan, number, KEY), number).lane(BELOW_CLIP.name) - 25
        for number in range(1, 200)
    ]
    assert np.std(bits) == pytest.approx(100 / 20, rel=0.25)
    released = opened(plan, code, batch, central_noise(plan, 1, KEY)).values
    multiplier = released.std() / (code.norm * code.branches[0].step)
    z = plan.privacy.noise_multiplier
    assert multiplier == pytest.approx((z**-2 - 10.0**-2) ** -0.5, rel=0.05)
    assert multiplier > z


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(1, 7))
def test_a_sum_that_is_written_down_and_gone_on_with_in_any_grouping_is_the_sum_of_all(data, count, size):
    plan = plan_of(private())
    coins = np.random.default_rng(data.draw(st.integers(0, 99)))
    code, batch = encoded(plan, coins.standard_normal((count, size)))
    order, left = data.draw(st.permutations(range(count))), []
    at_once = Opening(code, Groups(count, 1), 1, Streams(0), central_noise(plan, 1, KEY))
    whole = RingFold(at_once)
    whole.add(batch, 0)
    parts = RingFold(at_once)
    left = list(order)
    while left:
        taken = data.draw(st.integers(1, len(left)))
        following = RingFold(replace(at_once, groups=Groups(count - len(left) + taken, 1)))
        if len(left) < count:
            written = b"".join(parts.pieces())
            inside = replace(at_once, groups=Groups(count - len(left), 1))
            following.merge(RingFold.from_bytes(inside, written))
            with pytest.raises(ValueError, match="bytes"):
                RingFold.from_bytes(inside, written + b"0")
        for place, row in enumerate(left[:taken], count - len(left)):
            alone = Batch(batch.values[row : row + 1], batch.lanes[row : row + 1], batch.layout)
            following.add(alone, place)
        parts, left = following, left[taken:]
    parts = replace(parts, opening=at_once)
    ended = [fold.finish(plan.aggregator, 10) for fold in (whole, parts)]
    assert ended[0].values.tobytes() == ended[1].values.tobytes()
    assert ended[0].lanes.tolist() == ended[1].lanes.tolist()
