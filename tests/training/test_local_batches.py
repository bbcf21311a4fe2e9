"""Which examples each local step sees, and what a round hands back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import PlanError
from hansa.core.layout import TRAIN_LOSS, Branch, Layout, Parameter
from hansa.core.nouns import Assignment, ClientBatch, ClientContext, Signature
from hansa.core.schema import build_piece
from hansa.core.streams import Streams
from hansa.testing import MemoryClients, QuadraticTrainer
from hansa.training.local import Outcome, hand_back, local_batches
from hansa.training.optimizers import Sgd

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=6)
BATCH = st.one_of(st.just("all"), st.integers(1, 45))


def work(**settings_):
    return QuadraticTrainer(optimizer=Sgd(learning_rate=0.1), **settings_)


def made(settings_, sizes, ordinals=None):
    sizes = np.array(sizes)
    ordinals = np.arange(len(sizes)) if ordinals is None else np.array(ordinals)
    return local_batches(work(**settings_), ordinals, sizes, Streams(1).of("order", 4))


def seen(row):
    return row[row >= 0].tolist()


@settings(max_examples=150, deadline=None)
@given(SIZES, BATCH, st.integers(1, 4))
def test_each_example_is_seen_exactly_once_an_epoch(sizes, batch_size, epochs):
    batches = made({"epochs": epochs, "batch_size": batch_size}, sizes)
    for i, size in enumerate(sizes):
        batch = size if batch_size == "all" else min(batch_size, size)
        per_epoch = -(-size // batch)
        assert batches.steps[i] == epochs * per_epoch
        for epoch in range(epochs):
            own = batches.positions[i, epoch * per_epoch : (epoch + 1) * per_epoch]
            assert sorted(seen(own)) == list(range(size))
            assert [len(seen(step)) for step in own[:-1]] == [batch] * (per_epoch - 1)
        assert not seen(batches.positions[i, epochs * per_epoch :])


@settings(max_examples=150, deadline=None)
@given(SIZES, BATCH, st.integers(1, 50))
def test_so_many_steps_are_the_same_for_every_client_and_go_through_epochs(sizes, batch_size, steps):
    batches = made({"steps": steps, "batch_size": batch_size}, sizes)
    assert batches.steps.tolist() == [steps] * len(sizes)
    assert batches.positions.shape[:2] == (len(sizes), steps)
    for i, size in enumerate(sizes):
        assert all(seen(step) for step in batches.positions[i])
        whole = seen(batches.positions[i])
        for start in range(0, len(whole) - size + 1, size):
            assert sorted(whole[start : start + size]) == list(range(size))
        rest = whole[len(whole) // size * size :]
        assert len(set(rest)) == len(rest)


@settings(max_examples=100, deadline=None)
@given(SIZES, BATCH, st.integers(1, 3), st.booleans())
def test_a_client_sees_the_same_examples_alone_and_in_a_batch(sizes, batch_size, number, by_epochs):
    settings_ = {"epochs" if by_epochs else "steps": number, "batch_size": batch_size}
    together = made(settings_, sizes)
    for i, size in enumerate(sizes):
        alone = made(settings_, [size], [i])
        assert alone.steps[0] == together.steps[i]
        for step in range(alone.steps[0]):
            assert seen(alone.positions[0, step]) == seen(together.positions[i, step])


def test_every_epoch_is_a_fresh_shuffle():
    batches = made({"epochs": 3, "batch_size": "all"}, [30])
    assert len({tuple(row.tolist()) for row in batches.positions[0]}) == 3


@pytest.mark.parametrize(
    ("settings_", "what"),
    [
        ({}, "give epochs or steps"),
        ({"epochs": 1, "steps": 1}, "give epochs or steps"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"epochs": 1, "batch_size": 0}, "batch_size must be at least 1"),
        ({"epochs": 1, "batch_size": "al"}, "'all'"),
        ({"epochs": 1, "batch_size": 2.5}, "integer"),
    ],
)
def test_wrong_local_work_is_refused(settings_, what):
    table = {"kind": "linear", "optimizer": {"kind": "sgd", "learning_rate": 0.1}, **settings_}
    _, problems = build_piece("trainer", table, "trainer")
    assert what in str(PlanError(problems))


def test_an_update_whose_loss_is_no_number_counts_as_not_finite():
    layout = Layout((Branch("params", (Parameter("w", (2,)),)),), (TRAIN_LOSS,))
    cohort = np.arange(3)
    assignment = Assignment(1, layout, np.zeros(2, dtype=np.float32), cohort, population=3)
    data = MemoryClients([np.zeros((1, 2))] * 3, [np.zeros(1)] * 3)
    context = ClientContext(assignment, ClientBatch(cohort, data, Signature((2,), 0)), Streams(1))
    delta, loss = np.ones((3, 2), dtype=np.float32), np.array([0.5, np.nan, np.inf])
    batch, _ = hand_back(work(steps=1), context, {}, Outcome(delta, np.ones(3, dtype=np.int64), loss))
    assert np.isfinite(batch.values).all(axis=1).tolist() == [True, False, True]
    assert batch.lane("train_loss").tolist() == [0.5, 0.0, TRAIN_LOSS.high]
