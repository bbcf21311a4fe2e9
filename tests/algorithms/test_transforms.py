"""What each transform guarantees, as properties over random and extreme updates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hansa import Plan
from hansa.algorithms import rounds
from hansa.algorithms.aggregators import FixedMean, Mean
from hansa.algorithms.compressors import Int8Rotation
from hansa.algorithms.fold import Fold
from hansa.algorithms.transforms import Clip, NormaliseBySteps, WeighBySize
from hansa.core.errors import HansaError
from hansa.core.layout import COUNT, NON_FINITE, TRAIN_LOSS, Branch, Lane, Layout, Parameter, weight_lane
from hansa.core.nouns import Assignment, Batch, ClientBatch, ClientContext, ServerState, Signature
from hansa.core.streams import Streams
from hansa.testing import FixedPoint, MemoryClients

FLOAT32_MAX = float(np.finfo(np.float32).max)
EXTREME = st.one_of(
    st.floats(-FLOAT32_MAX, FLOAT32_MAX, width=32, allow_subnormal=True),
    st.sampled_from([0.0, 1e-45, -1e-40, 1.0, FLOAT32_MAX, -FLOAT32_MAX, 1e38]),
)
UPDATES = arrays(np.float32, st.tuples(st.integers(1, 4), st.just(6)), elements=EXTREME)


def layout_of(*branches, lanes=()):
    made = tuple(Branch(name, (Parameter("w", (size,)),)) for name, size in branches)
    weights = [Lane(weight_lane(name), 0.0, 2.0**24, 2.0**-8, purpose="weight") for name, _ in branches]
    return Layout(made, (COUNT, NON_FINITE, TRAIN_LOSS, *weights, *lanes))


def batch_of(values, layout, **side):
    values = np.asarray(values, dtype=np.float32)
    ones = {weight_lane(branch.name): np.ones(len(values)) for branch in layout.branches}
    return Batch(values, layout.encode_lanes(ones, len(values)), layout, side)


def context_of(layout, sizes, round_number=1, seed=0, ordinals=None):
    data = MemoryClients([np.zeros((size, 1), np.float32) for size in sizes], [np.zeros(size) for size in sizes])
    ordinals = np.arange(len(sizes)) if ordinals is None else np.asarray(ordinals)
    model = np.zeros(layout.size, dtype=np.float32)
    assignment = Assignment(round_number, layout, model, ordinals, population=len(sizes))
    return ClientContext(assignment, ClientBatch(ordinals, data, Signature((1,), 0)), Streams(seed))


def state_of(layout):
    return ServerState(0, layout, np.zeros(layout.size, dtype=np.float32))


def norm(values):
    return np.sqrt(np.square(values, dtype=np.float64).sum(axis=-1))


# Clip


@settings(max_examples=300, deadline=None)
@given(UPDATES, st.floats(1e-6, 1e6))
def test_a_clipped_update_is_within_its_norm_whatever_came_in(values, limit):
    layout = layout_of(("params", 6), lanes=Clip(clip_norm=1.0).lanes())
    clipped = Clip(clip_norm=limit).encode(batch_of(values, layout), context_of(layout, [1] * len(values)), {})
    assert (norm(clipped.values) <= limit).all()


def test_a_clip_of_a_huge_update_to_a_small_norm_does_not_lose_its_precision():
    """The factor is a denormal float32 here, and rounding it would break the bound."""
    layout = layout_of(("params", 6), lanes=Clip(clip_norm=1.0).lanes())
    random = np.random.default_rng(0)
    values = random.uniform(1e38, 3e38, (500, 6)).astype(np.float32)
    for limit in (1e-3, 3e-4, 1e-6):
        clipped = Clip(clip_norm=limit).encode(batch_of(values, layout), context_of(layout, [1] * 500), {})
        assert (norm(clipped.values) <= limit).all()
        np.testing.assert_allclose(norm(clipped.values), limit, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(UPDATES, st.integers(1, 2**24))
def test_a_bound_times_the_largest_weight_holds_after_weighing(values, maximum):
    layout = layout_of(("params", 6), lanes=Clip(clip_norm=1.0).lanes())
    context = context_of(layout, [1] * len(values))
    object.__setattr__(context, "clients", replace(context.clients, data=_Sizes(maximum + 5)))
    batch = Clip(clip_norm=0.2).encode(batch_of(values, layout), context, {})
    weigh = WeighBySize(maximum=maximum)
    weighed = weigh.encode(batch, context, {})
    bound = weigh.bound(Clip(clip_norm=0.2).bound({"params": None}, layout), layout)["params"]
    assert (norm(weighed.values) <= bound).all()


class _Sizes:
    def __init__(self, size):
        self.size = size

    def sizes(self, ordinals):
        return np.full(len(ordinals), self.size)


def test_an_update_on_the_edge_of_the_clip_keeps_the_bound_after_weighing():
    random = np.random.default_rng(1)
    layout = layout_of(("params", 6), lanes=Clip(clip_norm=1.0).lanes())
    values = random.standard_normal((2000, 6))
    values = (0.2 * values / norm(values)[:, None]).astype(np.float32)
    context = context_of(layout, [3] * 2000)
    clipped = Clip(clip_norm=0.2).encode(batch_of(values, layout), context, {})
    weighed = WeighBySize(maximum=3).encode(clipped, context, {})
    assert (norm(weighed.values) <= 3 * 0.2).all()


def test_an_update_within_the_norm_is_left_alone_and_counted():
    layout = layout_of(("params", 2), lanes=Clip(clip_norm=1.0).lanes())
    values = np.array([[0.3, 0.4], [3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
    clipped = Clip(clip_norm=1.0).encode(batch_of(values, layout), context_of(layout, [1] * 3), {})
    np.testing.assert_array_equal(clipped.values[[0, 2]], values[[0, 2]])
    np.testing.assert_allclose(clipped.values[1], [0.6, 0.8], rtol=2e-6)
    np.testing.assert_array_equal(clipped.lane("below_clip"), [1, 0, 1])
    np.testing.assert_array_equal(values[1], [3.0, 4.0])


def test_an_update_that_is_not_finite_is_emptied_by_a_clip():
    layout = layout_of(("params", 2), lanes=Clip(clip_norm=1.0).lanes())
    values = [[np.inf, 0.0], [np.nan, 1.0], [0.5, 0.5]]
    clipped = Clip(clip_norm=1.0).encode(batch_of(values, layout), context_of(layout, [1] * 3), {})
    np.testing.assert_array_equal(clipped.values, [[0, 0], [0, 0], [0.5, 0.5]])


def test_a_joint_clip_scales_all_its_branches_by_one_factor():
    layout = layout_of(("params", 2), ("control", 2), lanes=Clip(clip_norm=1.0).lanes())
    values = [[3.0, 0.0, 0.0, 4.0]]
    for branches in ((), ("params", "control")):
        clip = Clip(clip_norm=1.0, branches=branches)
        clipped = clip.encode(batch_of(values, layout), context_of(layout, [1]), {}).values
        np.testing.assert_allclose(clipped, [[0.6, 0.0, 0.0, 0.8]], rtol=2e-6)
        assert clip.bound({"params": None, "control": None}, layout) == {"params": 1.0, "control": 1.0}


def test_a_clip_leaves_branches_that_it_does_not_name():
    layout = layout_of(("params", 2), ("control", 2), lanes=Clip(clip_norm=1.0).lanes())
    clip = Clip(clip_norm=1.0, branches=("control",))
    clipped = clip.encode(batch_of([[30.0, 40.0, 3.0, 4.0]], layout), context_of(layout, [1]), {}).values
    np.testing.assert_allclose(clipped, [[30.0, 40.0, 0.6, 0.8]], rtol=2e-6)
    assert clip.bound({"params": None, "control": None}, layout) == {"params": None, "control": 1.0}


def test_a_clip_may_name_buffers_that_the_model_turns_out_not_to_have():
    layout = layout_of(("params", 2), lanes=Clip(clip_norm=1.0).lanes())
    for branches, expected in ((("params", "buffers"), [[0.6, 0.8]]), (("buffers",), [[3.0, 4.0]])):
        clip = Clip(clip_norm=1.0, branches=branches)
        clipped = clip.encode(batch_of([[3.0, 4.0]], layout), context_of(layout, [1]), {}).values
        np.testing.assert_allclose(clipped, expected, rtol=2e-6)


# Weighing, and the mean


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.booleans())
def test_weigh_then_mean_is_the_weighted_average(count, seed, fixed):
    random = np.random.default_rng(seed)
    layout = layout_of(("params", 5))
    sizes = random.integers(1, 1000, count).tolist()
    values = random.standard_normal((count, 5))
    weighed = WeighBySize().encode(batch_of(values, layout), context_of(layout, sizes), {})
    fold = Fold(layout)
    fold.add(weighed, 0)
    aggregator = FixedMean(divisor=sum(sizes)) if fixed else Mean()
    total = fold.finish(aggregator, count)
    assert total.weights["params"] == sum(sizes)
    average = np.average(values, axis=0, weights=sizes)
    np.testing.assert_allclose(total.values / total.weights["params"], average, rtol=1e-4, atol=1e-5)


def test_a_maximum_weight_caps_large_clients():
    layout = layout_of(("params", 1))
    weighed = WeighBySize(maximum=3).encode(batch_of([[1.0], [1.0]], layout), context_of(layout, [2, 10]), {})
    np.testing.assert_array_equal(weighed.values, [[2.0], [3.0]])
    np.testing.assert_array_equal(weighed.lane("weight.params"), [2, 3])


def test_an_update_that_weighs_nothing_still_does_after_weighing():
    layout = layout_of(("params", 1))
    batch = batch_of([[0.0], [1.0]], layout).with_lanes({"weight.params": np.array([0.0, 1.0])})
    weighed = WeighBySize().encode(batch, context_of(layout, [7, 2]), {})
    np.testing.assert_array_equal(weighed.lane("weight.params"), [0, 2])


def test_a_client_with_more_examples_than_the_lane_holds_is_refused():
    layout = layout_of(("params", 1))
    context = context_of(layout, [1])
    object.__setattr__(context, "clients", replace(context.clients, data=_Sizes(2**24 + 1)))
    with pytest.raises(HansaError, match="Split the client's data") as error:
        WeighBySize().encode(batch_of([[1.0]], layout), context, {})
    assert error.value.code == "HANSA-DATA-INVALID"


# FedNova's normalisation


def normalised(values, steps, sizes, layout):
    batch = batch_of(values, layout, steps=np.asarray(steps, dtype=float))
    context = context_of(layout, sizes)
    batch = NormaliseBySteps().encode(batch, context, {})
    fold = Fold(layout)
    fold.add(WeighBySize().encode(batch, context, {}), 0)
    return NormaliseBySteps().decode_sum(fold.finish(Mean(), len(values)), state_of(layout))


def test_normalised_updates_are_multiplied_by_their_weighted_mean_of_steps():
    layout = layout_of(("params", 2), lanes=NormaliseBySteps().lanes())
    total = normalised([[4.0, 2.0], [1.0, 5.0]], [4, 1], [1, 3], layout)
    np.testing.assert_allclose(total.values / total.weights["params"], (1 * 4 + 3 * 1) / 4 * np.array([1.0, 3.875]))


def test_normalisation_leaves_averaged_buffers_their_plain_mean():
    layout = layout_of(("params", 1), ("buffers", 1), lanes=NormaliseBySteps().lanes())
    total = normalised([[4.0, 8.0], [1.0, 0.0]], [4, 1], [1, 3], layout)
    assert total.values[1] / total.weights["buffers"] == pytest.approx(2.0)


# int8 with rotation


def through_int8(values, *, block=64, ordinals=None, round_number=1, seed=0):
    values = np.asarray(values, dtype=np.float32)
    layout = layout_of(("params", values.shape[1]))
    int8 = Int8Rotation(block=block)
    context = context_of(layout, [1] * len(values), round_number, seed, ordinals)
    sent = int8.encode(batch_of(values, layout), context, {})
    return sent, int8.decode_rows(sent, context.assignment, Streams(seed))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([64, 256, 1024]),
    st.integers(1, 700),
    st.integers(1, 3),
    st.floats(-20, 20),
    st.integers(0, 2**32 - 1),
)
def test_the_error_of_int8_is_bounded_by_its_scale(block, size, count, magnitude, seed):
    random = np.random.default_rng(seed)
    values = (random.standard_t(2, (count, size)) * 10.0**magnitude).astype(np.float32)
    sent, back = through_int8(values, block=block, round_number=3, seed=seed)
    blocks = -(-size // block)
    assert sent.values.dtype == np.int8
    assert sent.values.shape == (count, blocks * block)
    assert sent.side["scales"].shape == (count, blocks)
    assert back.values.shape == values.shape
    assert "scales" not in back.side
    padded = np.zeros((count, blocks * block))
    padded[:, :size] = back.values.astype(float) - values
    errors = norm(padded.reshape(count, blocks, block)[:, :, :])
    slack = 1e-4 * np.abs(values).max() * np.sqrt(block)
    assert (errors <= sent.side["scales"] * np.sqrt(block) + slack).all()


def test_int8_is_unbiased():
    random = np.random.default_rng(0)
    row = random.standard_normal(100).astype(np.float32)
    count = 20_000
    sent, back = through_int8(np.repeat(row[None], count, axis=0))
    error = back.values.astype(float) - row
    spread = error.std(axis=0) / np.sqrt(count)
    assert (np.abs(error.mean(axis=0)) < 5 * spread + 1e-6).all()
    assert error.std() < sent.side["scales"].max()


def test_int8_is_deterministic_and_the_same_alone_and_in_a_batch():
    values = np.random.default_rng(1).standard_normal((5, 100)).astype(np.float32)
    sent, back = through_int8(values)
    again, _ = through_int8(values)
    np.testing.assert_array_equal(sent.values, again.values)
    for i in range(5):
        one, other = through_int8(values[i : i + 1], ordinals=[i])
        np.testing.assert_array_equal(one.values, sent.values[i : i + 1])
        np.testing.assert_array_equal(other.values, back.values[i : i + 1])
    assert not np.array_equal(through_int8(values, round_number=2)[0].values, sent.values)
    assert not np.array_equal(through_int8(values, seed=2)[0].values, sent.values)


def test_int8_rounds_equal_updates_of_two_clients_differently():
    sent, _ = through_int8(np.ones((2, 100)) * np.arange(100))
    assert not np.array_equal(sent.values[0], sent.values[1])


@pytest.mark.parametrize("values", [np.zeros((2, 70)), np.eye(2, 70)])
def test_int8_of_zeros_and_of_a_single_entry(values):
    sent, back = through_int8(values)
    tolerance = sent.side["scales"].max() * 8
    np.testing.assert_allclose(back.values, values, atol=max(tolerance, 1e-12))


def test_int8_is_a_quarter_of_the_bytes():
    layout = layout_of(("params", 4096))
    plain = batch_of(np.ones((1, 4096)), layout)
    sent, _ = through_int8(np.ones((1, 4096)), block=4096)
    assert sent.values.nbytes + sent.side["scales"].nbytes == plain.values.nbytes // 4 + 4


def test_the_rotation_is_orthonormal_and_its_own_inverse():
    from hansa.algorithms.rotation import hadamard

    values = np.random.default_rng(0).standard_normal((2, 3, 256)).astype(np.float32)
    turned = hadamard(values)
    np.testing.assert_allclose(norm(turned), norm(values), rtol=1e-5)
    np.testing.assert_allclose(hadamard(turned), values, atol=1e-5)
    unit = hadamard(np.eye(1, 64, dtype=np.float32))
    np.testing.assert_allclose(unit, np.full((1, 64), 1 / 8), rtol=1e-6)


# The order of a plan: encoded in order, decoded in reverse


def test_transforms_are_encoded_in_order_and_decoded_in_reverse():
    plan = Plan(
        name="x",
        rounds=1,
        model={"factory": "a:b"},
        trainer={
            "kind": "hansa.testing:QuadraticTrainer",
            "epochs": 2,
            "batch_size": 1,
            "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        },
        transforms=["normalise-by-steps", {"kind": "clip", "clip_norm": 0.1}, "weigh-by-size", FixedPoint(bits=20)],
    )
    from hansa.testing import Rehearsal, quadratic_clients, quadratic_signature

    optima, sizes = [np.array([1.0, 2.0]), np.array([-3.0, 0.1])], [3, 1]
    rehearsal = Rehearsal(plan, quadratic_clients([np.eye(2)] * 2, optima, sizes), quadratic_signature(2))
    model = rehearsal.play(1)[0]
    steps = [6, 2]
    units = [(1 - 0.9**k) * a / k for a, k in zip(optima, steps, strict=True)]
    units = [u * min(1, 0.1 * (1 - 1e-6) / np.linalg.norm(u)) for u in units]
    expected = (3 * units[0] + units[1]) / 4 * (3 * 6 + 2) / 4
    np.testing.assert_allclose(model, expected, rtol=1e-4)


def test_side_arrays_that_only_the_client_needs_do_not_travel():
    layout = layout_of(("params", 2))
    assignment = context_of(layout, [1]).assignment
    plan = Plan(
        name="x",
        rounds=1,
        model={"factory": "a:b"},
        trainer={
            "kind": "hansa.testing:QuadraticTrainer",
            "steps": 1,
            "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        },
    )
    from hansa.testing import quadratic_clients, quadratic_signature

    clients = ClientBatch(np.array([0]), quadratic_clients([np.eye(2)], [np.ones(2)]), quadratic_signature(2))
    batch, _ = rounds.client_update(plan, assignment, clients, {}, Streams(0))
    assert "steps" not in batch.side
    np.testing.assert_allclose(batch.values, [[0.1, 0.1]], rtol=1e-6)
