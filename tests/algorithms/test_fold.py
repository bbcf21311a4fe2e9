"""Collecting updates: one sum whatever the order, and rules over rows."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hansa.algorithms.aggregators import FixedMean, Mean, Median, TrimmedMean
from hansa.algorithms.fold import BLOCK, COLUMNS, Fold, RowStore, collector
from hansa.core.layout import COUNT, NON_FINITE, Branch, Lane, Layout, Parameter, weight_lane
from hansa.core.nouns import Batch

SIZE = 5
LAYOUT = Layout(
    (Branch("params", (Parameter("w", (SIZE,)),)),),
    (COUNT, Lane(weight_lane("params"), 0.0, 2.0**24, 2.0**-8, purpose="weight")),
)


def rows_of(count, seed=0, layout=LAYOUT, spread=12):
    """Updates whose float sum depends on the order: magnitudes far apart."""
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.integers(-spread, spread + 1, (count, 1))
    values = (random.standard_normal((count, layout.size)) * scale).astype(np.float32)
    lanes = random.integers(1, 2**32, (count, len(layout.lanes)))
    return Batch(values, lanes, layout)


def part(batch, start, stop):
    return Batch(batch.values[start:stop], batch.lanes[start:stop], batch.layout)


def folded(batch, *, chunk=None):
    fold = Fold(batch.layout)
    for start in range(0, len(batch), chunk or max(1, len(batch))):
        fold.add(part(batch, start, start + (chunk or len(batch))), start)
    return fold.finish(Mean(), len(batch))


def same_bits(a, b):
    return np.array_equal(a.values, b.values) and np.array_equal(a.lanes, b.lanes) and a.count == b.count


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(1, 70), st.integers(0, 1000))
def test_any_split_into_chunks_gives_the_same_bits(count, chunk, seed):
    batch = rows_of(count, seed)
    assert same_bits(folded(batch, chunk=chunk), folded(batch))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 260), st.randoms(use_true_random=False), st.integers(0, 1000))
def test_any_order_of_blocks_gives_the_same_bits(count, random, seed):
    batch = rows_of(count, seed)
    blocks = list(range(0, count, BLOCK))
    random.shuffle(blocks)
    fold = Fold(LAYOUT)
    for start in blocks:
        fold.add(part(batch, start, start + BLOCK), start)
    assert same_bits(fold.finish(Mean(), count), folded(batch))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 330), st.integers(1, 5), st.randoms(use_true_random=False), st.integers(0, 1000))
def test_any_merge_of_the_folds_of_workers_gives_the_same_bits(count, workers, random, seed):
    """Each worker folds whole blocks; folds are merged pair by pair in any order and direction."""
    batch = rows_of(count, seed)
    folds = [Fold(LAYOUT) for _ in range(workers)]
    for start in range(0, count, BLOCK):
        random.choice(folds).add(part(batch, start, start + BLOCK), start)
    while len(folds) > 1:
        random.shuffle(folds)
        folds[0].merge(folds.pop())
    assert same_bits(folds[0].finish(Mean(), count), folded(batch))


def test_the_sum_is_that_of_float64_blocks_in_order():
    batch = rows_of(100)
    expected = np.zeros(SIZE)
    for start in range(0, 100, BLOCK):
        block = np.zeros(SIZE)
        for row in batch.values[start : start + BLOCK]:
            block += row
        expected += block
    np.testing.assert_array_equal(folded(batch).values, expected)


def test_lanes_are_summed_as_integers_beyond_what_a_float_counts():
    """2^24 + 1 is no float32 and 2^53 + 1 no float64."""
    lanes = np.array([[1, 2**53], [2**24, 1]])
    total = folded(Batch(np.zeros((2, SIZE), np.float32), lanes, LAYOUT))
    assert total.lanes.tolist() == [2**24 + 1, 2**53 + 1]
    assert total.lanes.dtype == np.int64


def test_memory_is_that_of_the_model_however_many_clients_come_in_order():
    fold, layout = Fold(LAYOUT), LAYOUT
    for start in range(0, 40 * BLOCK, BLOCK // 2):
        fold.add(rows_of(BLOCK // 2, start, layout), start)
        assert len(fold.waiting) <= 1


@pytest.mark.parametrize("missing", range(3))
def test_a_missing_block_is_refused(missing):
    batch, fold = rows_of(4 * BLOCK), Fold(LAYOUT)
    for number in range(4):
        if number != missing:
            fold.add(part(batch, number * BLOCK, (number + 1) * BLOCK), number * BLOCK)
    with pytest.raises(ValueError, match=f"block {missing} of the cohort is missing"):
        fold.finish(Mean(), 4 * BLOCK)


def test_a_block_that_is_short_before_others_is_refused():
    batch, fold = rows_of(2 * BLOCK), Fold(LAYOUT)
    fold.add(part(batch, 0, BLOCK - 1), 0)
    fold.add(part(batch, BLOCK, 2 * BLOCK), BLOCK)
    with pytest.raises(ValueError, match=f"position {BLOCK - 1}"):
        fold.finish(Mean(), 2 * BLOCK)


@pytest.mark.parametrize("positions", [(1,), (0, 2), (0, 1, 1), (0, 0)])
def test_positions_out_of_order_within_a_block_are_refused(positions):
    fold, batch = Fold(LAYOUT), rows_of(1)
    for position in positions[:-1]:
        fold.add(batch, position)
    with pytest.raises(ValueError, match="out of order"):
        fold.add(batch, positions[-1])


def test_an_update_of_a_block_that_is_already_merged_is_refused_and_not_counted():
    fold, batch = Fold(LAYOUT), rows_of(BLOCK)
    fold.add(batch, 0)
    with pytest.raises(ValueError, match="position 0"):
        fold.add(part(batch, 0, 1), 0)
    assert fold.count == BLOCK
    assert fold.finish(Mean(), BLOCK).count == BLOCK


@pytest.mark.parametrize("start", [0, BLOCK])
def test_two_folds_of_the_same_block_are_not_merged(start):
    batch = rows_of(BLOCK)
    one, other = Fold(LAYOUT), Fold(LAYOUT)
    one.add(batch, start)
    other.add(batch, start)
    with pytest.raises(ValueError, match="same block"):
        one.merge(other)
    assert one.count == BLOCK


def test_an_empty_cohort_folds_to_nothing():
    total = Fold(LAYOUT).finish(Mean(), 10)
    assert total.count == 0
    assert not total.values.any()
    assert total.weights == {"params": 0.0}


def test_a_fixed_mean_divides_by_its_number_whoever_came():
    assert Fold(LAYOUT).finish(FixedMean(divisor=7), 10).weights == {"params": 7.0}


# Rules over rows


def stored(values, aggregator, *, capacity=None, chunk=7):
    layout = Layout((Branch("params", (Parameter("w", (values.shape[1],)),)),), (COUNT,))
    store = collector(aggregator, layout, len(values) if capacity is None else capacity, None)
    assert isinstance(store, RowStore)
    for start in range(0, len(values), chunk):
        some = values[start : start + chunk]
        store.add(Batch(some, np.ones((len(some), 1), dtype=np.int64), layout), start)
    return store.finish(aggregator, 100)


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float32, st.tuples(st.integers(1, 30), st.integers(1, 9)), elements=st.floats(-(2.0**99), 2.0**99, width=32)
    )
)
def test_the_median_is_numpys(values):
    total = stored(values, Median())
    np.testing.assert_allclose(total.values, np.median(values.astype(np.float64), axis=0), rtol=1e-12)
    assert total.weights == {"params": 1.0}
    assert total.lanes.tolist() == [len(values)]


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 5)), elements=st.floats(-1e3, 1e3, width=32)),
    st.floats(0, 0.4999),
)
def test_the_trimmed_mean_is_the_mean_without_the_ends(values, fraction):
    total = stored(values, TrimmedMean(fraction=fraction))
    cut = int(fraction * len(values) + 1e-9)
    kept = np.sort(values.astype(np.float64), axis=0)[cut : len(values) - cut]
    np.testing.assert_allclose(total.values, kept.mean(axis=0), rtol=1e-6, atol=1e-6)


def row_store(capacity):
    return RowStore(LAYOUT, capacity)


def test_rows_come_in_any_order():
    batch, store = rows_of(5), row_store(5)
    for position in (3, 0, 4, 1, 2):
        store.add(part(batch, position, position + 1), position)
    np.testing.assert_allclose(store.finish(Median(), 5).values, np.median(batch.values.astype(float), axis=0))


def test_a_missing_row_is_refused():
    batch, store = rows_of(3), row_store(3)
    store.add(part(batch, 0, 1), 0)
    store.add(part(batch, 2, 3), 2)
    with pytest.raises(ValueError, match="position 1 of the cohort is missing"):
        store.finish(Median(), 3)


def test_a_row_that_comes_twice_is_refused():
    batch, store = rows_of(3), row_store(3)
    store.add(batch, 0)
    with pytest.raises(ValueError, match="position 1 of the cohort came twice"):
        store.add(part(batch, 1, 2), 1)
    store.finish(Median(), 3)


def test_fewer_rows_than_the_store_could_hold_are_fine():
    batch, store = rows_of(3), row_store(10)
    store.add(batch, 0)
    np.testing.assert_allclose(store.finish(Median(), 3).values, np.median(batch.values.astype(float), axis=0))


@pytest.mark.parametrize("size", [COLUMNS - 1, COLUMNS, 2 * COLUMNS + 17])
@pytest.mark.parametrize("count", [6, 7])
def test_rules_over_rows_read_any_number_of_columns(size, count):
    values = np.random.default_rng(0).standard_normal((count, size)).astype(np.float32)
    np.testing.assert_allclose(stored(values, Median()).values, np.median(values.astype(float), axis=0), rtol=1e-12)


def test_a_median_does_not_move_for_a_minority_of_attackers():
    values = np.ones((9, 3), dtype=np.float32)
    values[:4] = 1e30
    np.testing.assert_array_equal(stored(values, Median()).values, np.ones(3))
    np.testing.assert_array_equal(stored(values, TrimmedMean(fraction=0.45)).values, np.ones(3))


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(fraction=0.2)])
def test_rules_over_nobody_move_nothing(rule):
    total = stored(np.zeros((0, 4), dtype=np.float32), rule)
    assert total.weights == {"params": 0.0}
    assert not total.values.any()


def test_updates_that_were_emptied_take_no_part_in_a_rule_over_rows():
    layout = Layout((Branch("params", (Parameter("w", (1,)),)),), (COUNT, NON_FINITE))
    values = np.array([[5.0], [0.0], [7.0], [0.0], [0.0]], dtype=np.float32)
    for emptied, expected, weight in (([0, 1, 0, 1, 1], 6.0, 1.0), ([1, 1, 1, 1, 1], 0.0, 0.0)):
        store = RowStore(layout, 5)
        store.add(Batch(values, np.array([[1, flag] for flag in emptied]), layout), 0)
        total = store.finish(Median(), 5)
        assert total.values[0] == expected
        assert total.weights == {"params": weight}
        assert total.count == 5
        assert total.lanes.tolist() == [5, sum(emptied)]


@pytest.mark.parametrize(("fraction", "count", "cut"), [(0.1, 10, 1), (0.29, 100, 29), (0.3, 10, 3), (0.07, 100, 7)])
def test_a_share_that_is_a_whole_number_of_updates_is_cut_in_full(fraction, count, cut):
    values = np.arange(count, dtype=np.float32)[:, None] ** 3
    kept = (np.arange(count, dtype=float) ** 3)[cut : count - cut]
    assert stored(values, TrimmedMean(fraction=fraction)).values[0] == pytest.approx(kept.mean(), rel=1e-6)


def test_the_trimmed_mean_of_large_updates_keeps_double_precision():
    values = np.full((1000, 1), 1e8, dtype=np.float32)
    values[0] = 1.0
    assert stored(values, TrimmedMean(fraction=0.0)).values[0] == pytest.approx((999 * 1e8 + 1) / 1000, rel=1e-12)


@pytest.mark.parametrize("cohort", [*range(3, 30), 100, 2.1, 33.3, 12345.6])
def test_the_advice_for_a_fraction_that_cuts_nobody_cuts_somebody(cohort):
    ((key, text),) = TrimmedMean(fraction=1e-6).problems(cohort)
    assert key == "fraction"
    advised = float(text.split("at least ")[1].split(",")[0])
    assert TrimmedMean(fraction=advised).problems(cohort) == []


@pytest.mark.parametrize("cohort", [0, 1, 2])
def test_a_cohort_too_small_to_trim_is_told_to_take_the_mean(cohort):
    ((_, text),) = TrimmedMean(fraction=0.1).problems(cohort)
    assert "use the mean" in text
    assert "at least" not in text


def test_a_fraction_of_zero_is_the_mean_and_fine():
    assert TrimmedMean(fraction=0.0).problems(3) == []


LEAVES = """
import os, signal, sys
from pathlib import Path
from hansa.algorithms.fold import RowStore
from hansa.core.layout import Branch, Layout, Parameter
rows = RowStore(Layout((Branch("params", (Parameter("w", (5,)),)),)), 3, Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_rows_left_by_a_killed_process_are_removed_by_the_next_and_not_those_in_use(tmp_path):
    subprocess.run([sys.executable, "-c", LEAVES, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    used = RowStore(LAYOUT, 3, tmp_path)
    for folder in tmp_path.iterdir():
        os.utime(folder, (1, 1))
    RowStore(LAYOUT, 3, tmp_path)
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 1
    used.add(rows_of(3), 0)
    assert used.count == 3


@pytest.mark.parametrize("count", [1, 4, 6, 9])
def test_a_sum_by_columns_is_the_sum_by_rows_bit_for_bit(count):
    random = np.random.default_rng(count)
    layout = Layout((Branch("params", (Parameter("weight", (50,)),)),), (COUNT,))
    rows = (random.standard_normal((count, 50)) * 10.0 ** random.integers(-6, 6, (count, 50))).astype(np.float32)
    lanes = np.ones((count, 1), dtype=np.int64)
    by_rows, by_columns = Fold(layout), Fold(layout)
    for position in range(count):
        by_rows.add(Batch(rows[position : position + 1], lanes[position : position + 1], layout), position)
    for first in range(0, count, BLOCK):
        block = rows[first : first + BLOCK]
        for start in range(0, 50, 7):
            by_columns.add_columns(start, list(block[:, start : start + 7]))
        by_columns.add_lanes(lanes[first : first + BLOCK])
    one, other = (fold.finish(FixedMean(divisor=1.0), count) for fold in (by_rows, by_columns))
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.lanes, other.lanes)
    assert one.count == other.count == count
