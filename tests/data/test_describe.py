"""The numbers that `hansa data` shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa import data as room
from hansa.core.sections import Data
from hansa.data.describe import client_skews
from hansa.data.partitions import Dirichlet, Iid, Shards


def described(**settings):
    return room.describe(room.load(Data(**settings), None, 0))


def test_every_example_is_counted_once():
    found = described(source="heart", test_fraction=0.25, validation_fraction=0.1, held_out_clients=1)
    assert found.total == 920
    assert sum(int(sizes.sum()) for sizes in found.sizes.values()) == 920
    assert found.label_counts.sum(axis=0).tolist() == [411, 509]
    assert found.sizes["held_out"][:3].tolist() == [0, 0, 0]
    assert (found.size_quantiles[0.0], found.size_quantiles[1.0]) == (123, 304)


def test_skew_is_near_chance_for_iid_and_far_above_for_shards():
    iid = described(source="fashion-mnist-small", partition=Iid(clients=20))
    assert iid.skew == pytest.approx(iid.skew_by_chance, rel=0.15)
    assert iid.central == 2000
    shards = described(source="fashion-mnist-small", partition=Shards(clients=20, per_client=2))
    assert shards.skew > 0.7
    mixed = described(source="fashion-mnist-small", partition=Dirichlet(clients=20, alpha=5.0))
    assert iid.skew < mixed.skew < shards.skew


def test_real_valued_labels_are_counted_in_tenths(save):
    y = np.concatenate([np.linspace(0, 1, 50), np.linspace(2, 3, 50)])
    path = save(X=np.zeros((100, 2)), y=y, client=np.repeat([0, 1], 50))
    found = described(source="npz", path=path)
    assert len(found.label_names) == 10
    assert found.label_counts.sum() == 100
    assert found.skew == pytest.approx(0.5)


@given(st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=1, max_size=6))
def test_skews_are_distances(counts):
    skews = client_skews(np.array(counts))
    assert ((skews >= 0) & (skews <= 1)).all()
    if len(counts) == 1:
        assert skews[0] == 0
