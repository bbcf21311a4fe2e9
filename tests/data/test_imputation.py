"""A client's gaps are filled from its own training rows: nobody else's, and not from its test rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hansa.core.sections import Column, Features
from hansa.data.imputation import Imputation, segment_centres
from hansa.data.rows import ClientRows

values = st.one_of(st.just(np.nan), st.integers(-50, 50).map(float))
tables = arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=values)


@given(tables, st.data(), st.sampled_from(["median", "mean"]))
def test_filling_equals_a_loop_over_clients(x, data, method):
    numbers = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x))))
    trains = np.array(data.draw(st.lists(st.booleans(), min_size=len(x), max_size=len(x))))
    rows = ClientRows.from_numbers(numbers, 4)
    filled = Imputation(method).apply(x, rows.where(trains[rows.order]), rows)
    for client in range(4):
        for column in range(x.shape[1]):
            own = x[(numbers == client) & trains, column]
            own = own[~np.isnan(own)].astype(np.float64)
            centre = np.float32(getattr(np, method)(own)) if len(own) else np.nan
            before = x[numbers == client, column]
            wanted = np.where(np.isnan(before), centre, before)
            np.testing.assert_allclose(filled[numbers == client, column], wanted, rtol=1e-6)


@given(tables, arrays(np.float32, st.tuples(st.integers(1, 5), st.just(1)), elements=values))
def test_other_clients_never_matter(x, others):
    x = x[:, :1]
    alone = ClientRows.contiguous(np.array([len(x)]))
    beside = ClientRows.contiguous(np.array([len(x), len(others)]))
    first = Imputation("median").apply(x, alone, alone)
    both = Imputation("median").apply(np.concatenate([x, others]), beside, beside)
    assert np.array_equal(first, both[: len(x)], equal_nan=True)


def test_the_input_is_not_changed():
    x = np.array([[1.0], [np.nan]], dtype=np.float32)
    rows = ClientRows.contiguous(np.array([2]))
    assert Imputation("mean").apply(x, rows, rows)[1, 0] == 1
    assert np.isnan(x[1, 0])


def test_what_a_client_never_measured_is_left_to_scaling_or_gets_the_declared_centre():
    x = np.full((2, 1), np.nan, dtype=np.float32)
    rows = ClientRows.contiguous(np.array([2]))
    columns = (Column(name="a", center=7.0, scale=1.0),)
    for scaling, wanted in (("federated", np.nan), ("declared", np.nan), ("none", 7.0)):
        features = Features(label="y", columns=columns, scaling=scaling)
        assert np.array_equal(Imputation.of(features).apply(x, rows, rows), np.full((2, 1), wanted), equal_nan=True)


@pytest.mark.parametrize("method", ["median", "mean"])
def test_clients_without_a_value_have_no_centre(method):
    centres = segment_centres(np.array([np.nan, 4.0]), np.array([0, 2]), clients=3, method=method)
    assert np.array_equal(centres, [np.nan, np.nan, 4.0], equal_nan=True)
