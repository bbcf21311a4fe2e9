"""A population that is made from numbers: pure, bounded, learnable, as different as it says."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa import data as room
from hansa.core.errors import PlanError
from hansa.core.sections import Data
from hansa.data.made import Numbered, normal_quantiles
from hansa.data.partitions import Iid

MILLION = 10**6


def load(seed=0, test_fraction=0.0, validation_fraction=0.0, held_out_clients=0, **arguments):
    fractions = {"test_fraction": test_fraction, "validation_fraction": validation_fraction}
    data = Data(source="synthetic", arguments=arguments, held_out_clients=held_out_clients, **fractions)
    return room.load(data, None, seed)


def everything(part, client):
    size = int(part.sizes(np.array([client]))[0])
    x, y = part.gather(np.array([client]), np.arange(size)[None, :])
    return x[0], y[0]


KINDS = {
    "features": {"features": 7},
    "regression": {"classes": 0},
    "image": {"shape": [1, 28, 28]},
    "tokens": {"shape": [9], "vocabulary": 50},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@settings(max_examples=20, deadline=None)
@given(ordinals=st.lists(st.integers(0, MILLION - 1), min_size=1, max_size=9), seed=st.integers(0, 9))
def test_an_example_is_the_same_whoever_is_asked_for_beside_it(kind, ordinals, seed):
    part = load(seed, clients=MILLION, mean_size=6, size_sigma=0.8, **kind).train
    ordinals = np.array(ordinals)
    sizes = part.sizes(ordinals)
    positions = np.arange(sizes.max())[None, :].repeat(len(ordinals), axis=0)
    x, y = part.gather(ordinals, np.where(positions < sizes[:, None], positions, -1))
    for row, ordinal in enumerate(ordinals.tolist()):
        for position in range(sizes[row]):
            alone, label = part.gather(np.array([ordinal]), np.array([[position]]))
            np.testing.assert_array_equal(alone[0, 0], x[row, position])
            assert label[0, 0] == y[row, position]


def test_another_process_makes_the_same_examples():
    code = """
import hashlib, numpy as np
from hansa.core.sections import Data
from hansa.data import load
data = load(Data(source="synthetic", arguments={"clients": 99, "size_sigma": 0.5}, test_fraction=0.2), None, 5)
found = hashlib.sha256()
for part in (data.train, data.test):
    for array in (part.sizes(np.arange(99)), *part.gather(np.arange(99), np.zeros((99, 1), dtype=np.int64))):
        found.update(array.tobytes())
print(found.hexdigest(), data.sha256)
"""
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(found) == 1


def test_a_part_of_a_trillion_clients_takes_the_memory_of_what_is_asked_for():
    tracemalloc.start()
    data = load(clients=10**12, held_out_clients=10**11, test_fraction=0.2, central_examples=10)
    data.train.gather(np.array([0, 9 * 10**11 - 1]), np.zeros((2, 4), dtype=np.int64))
    assert data.held_out is not None
    assert data.held_out.names[0] == "client-900000000000"
    assert len(data.train.names) == 9 * 10**11
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


@pytest.mark.parametrize(("test", "validation"), [(0.25, 0.0), (0.2, 0.1), (0.6, 0.39)])
def test_parts_do_not_overlap_and_have_their_shares(test, validation):
    whole = load(clients=2000, mean_size=9, size_sigma=0.7).train
    data = load(clients=2000, mean_size=9, size_sigma=0.7, test_fraction=test, validation_fraction=validation)
    everyone = np.arange(2000)
    parts = [part for part in (data.train, data.validation, data.test) if part is not None]
    sizes = [part.sizes(everyone) for part in parts]
    assert (sum(sizes) == whole.sizes(everyone)).all()
    assert sizes[0].min() >= 1
    if test + validation < 0.5:
        assert sizes[-1].sum() / sum(sizes).sum() == pytest.approx(test, abs=0.01)
    for client in range(30):
        x, y = everything(whole, client)
        mine = [everything(part, client) for part in parts]
        np.testing.assert_array_equal(np.concatenate([each[0] for each in mine]), x)
        np.testing.assert_array_equal(np.concatenate([each[1] for each in mine]), y)


def test_clients_that_are_held_out_are_the_last_with_all_their_examples():
    whole = load(clients=50, size_sigma=0.4).train
    held_out = load(clients=50, size_sigma=0.4, held_out_clients=8, test_fraction=0.3).held_out
    assert held_out is not None
    assert list(held_out.names) == list(whole.names[42:])
    np.testing.assert_array_equal(everything(held_out, 3)[0], everything(whole, 45)[0])


def test_sizes_follow_their_law():
    sizes = load(clients=20_000, mean_size=200, size_sigma=0.5).train.sizes(np.arange(20_000))
    assert sizes.mean() == pytest.approx(200, rel=0.02)
    assert np.log(sizes).std() == pytest.approx(0.5, rel=0.03)
    assert (load(clients=9, mean_size=30).train.sizes(np.arange(9)) == 30).all()
    assert (load(clients=9, mean_size=1, size_sigma=3).train.sizes(np.arange(9)) >= 1).all()


def test_features_are_normal_about_the_means_of_classes():
    data = load(clients=500, features=6, classes=3, mean_size=100, heterogeneity=0.0, signal=2.0)
    x, y = data.train.gather(np.arange(500), np.arange(100)[None, :].repeat(500, axis=0))
    x, y = x.reshape(-1, 6), y.ravel()
    assert np.bincount(y).tolist() == pytest.approx([50_000 / 3] * 3, rel=0.03)
    means = np.stack([x[y == label].mean(axis=0) for label in range(3)])
    np.testing.assert_allclose(means, data.train.recipe.means, atol=0.04)
    np.testing.assert_allclose(np.cov((x - means[y]).T), np.eye(6), atol=0.03)


def test_a_real_valued_label_lies_along_one_direction():
    data = load(clients=200, features=5, classes=0, mean_size=100, heterogeneity=0.0, signal=4.0, central_examples=0)
    x, y = data.train.gather(np.arange(200), np.arange(100)[None, :].repeat(200, axis=0))
    x, y = x.reshape(-1, 5).astype(np.float64), y.ravel().astype(np.float64)
    weights, *_ = np.linalg.lstsq(x, y, rcond=None)
    direction = data.train.recipe.means[0].astype(np.float64)
    best = 1 / (1 + direction @ direction)  # variance of a standard normal label, given what is seen
    assert np.var(y - x @ weights) == pytest.approx(best, rel=0.05)
    assert data.signature.classes == 0
    assert y.dtype == np.float64
    assert data.central is None


def test_classes_prefer_some_tokens():
    data = load(clients=300, shape=[20], vocabulary=1000, classes=4, heterogeneity=0.0, signal=5.0)
    x, y = data.train.gather(np.arange(300), np.arange(50)[None, :].repeat(300, axis=0))
    assert x.shape == (300, 50, 20)
    assert x.dtype == np.int64
    assert 0 <= x.min() <= x.max() < 1000
    preferred = data.train.recipe.preferred
    share = np.mean([np.isin(x[y == label], preferred[label]).mean() for label in range(4)])
    assert share == pytest.approx(0.5 + 0.5 * 16 / 1000, abs=0.01)
    assert data.signature.vocabulary == 1000


def test_heterogeneity_shifts_features_and_skews_labels():
    skews, shifts = [], []
    for heterogeneity in (0.0, 0.3, 1.0):
        data = load(clients=300, features=10, classes=5, mean_size=200, heterogeneity=heterogeneity)
        x, y = data.train.gather(np.arange(300), np.arange(200)[None, :].repeat(300, axis=0))
        rest = x - data.train.recipe.means[y]
        shifts.append(float(np.square(np.linalg.norm(rest.mean(axis=1), axis=1)).mean()))
        skews.append(room.describe(data).skew)
    assert skews[0] < skews[1] < skews[2]
    assert skews[2] > 0.5
    assert shifts == pytest.approx([10 / 200, 0.81 + 10 / 200, 9 + 10 / 200], rel=0.2)


def test_images_have_even_patches_that_a_convolution_sees():
    means = load(clients=3, shape=[1, 28, 28]).train.recipe.means.reshape(10, 28, 28)
    assert (means[:, 0, 0] == means[:, 3, 3]).all()
    assert (means[:, 0, 0] != means[:, 4, 4]).all()
    assert np.linalg.norm(means.reshape(10, -1), axis=1) == pytest.approx([3.0] * 10, rel=0.4)


def test_quantiles_are_those_of_the_normal_law():
    found = normal_quantiles()
    assert found.dtype == np.float32
    assert (found == -found[::-1]).all()
    assert (np.diff(found) > 0).all()
    assert found.std() == pytest.approx(1.0, abs=1e-3)


def test_the_digest_is_of_all_that_the_examples_follow_from():
    base = {"seed": 1, "clients": 30, "test_fraction": 0.2}
    changes = [{}, {"seed": 2}, {"clients": 31}, {"test_fraction": 0.3}, {"held_out_clients": 1}, {"signal": 1.0}]
    assert len({load(**{**base, **change}).sha256 for change in changes}) == len(changes)
    assert load(**base).sha256 == load(**base, features=64).sha256
    one, other = (
        room.load(Data(source="synthetic", arguments={"clients": 5, "seed": 9}), None, seed) for seed in (1, 2)
    )
    assert one.sha256 == other.sha256
    np.testing.assert_array_equal(everything(one.train, 3)[0], everything(other.train, 3)[0])


@pytest.mark.parametrize(
    ("settings", "key", "message"),
    [
        ({"arguments": {"client": 5}}, "data.arguments.client", "did you mean 'clients'"),
        ({"arguments": {"clients": 0}}, "data.arguments.clients", "greater than or equal to 1"),
        ({"arguments": {"classes": 1}}, "data.arguments", "at least 2"),
        ({"arguments": {"shape": [0]}}, "data.arguments", "1 to"),
        ({"arguments": {"vocabulary": 9, "shape": [2, 2]}}, "data.arguments", "tokens"),
        ({"arguments": {"vocabulary": 9, "classes": 0}}, "data.arguments", "tokens"),
        ({"partition": Iid(clients=3)}, "data.partition", "data.arguments.clients"),
        ({"path": "x"}, "data.path", "does not take it"),
        ({"held_out_clients": 1000}, "data.held_out_clients", "must leave a client"),
    ],
)
def test_what_it_cannot_honour_is_refused_with_its_key(settings, key, message):
    with pytest.raises(PlanError) as caught:
        room.load(Data(source="synthetic", **settings), None, 0)
    assert [problem.path for problem in caught.value.problems] == [key]
    assert message in str(caught.value)


def test_sources_without_arguments_refuse_them():
    with pytest.raises(PlanError, match=r"data.arguments: source 'heart' does not take it"):
        room.load(Data(source="heart", arguments={"clients": 3}), None, 0)


def test_a_position_past_the_end_is_refused():
    with pytest.raises(IndexError, match="past a client's last example"):
        load(clients=3, mean_size=5).train.gather(np.array([0]), np.array([[5]]))


def test_a_million_clients_are_described_by_a_thousand_of_them():
    tracemalloc.start()
    found = room.describe(load(clients=MILLION, features=4, mean_size=20, held_out_clients=MILLION // 10))
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()
    assert found.population == MILLION
    assert len(found.names) == 1000
    assert found.sizes["held_out"].sum() == 100 * 20
    assert found.total == 20_000
    assert found.names[1] == "client-001000"


def test_names_are_made_when_they_are_asked_for():
    names = Numbered(range(5, 10**15), width=4)
    assert names[0] == "client-0005"
    assert names[-1] == f"client-{10**15 - 1}"
    assert list(names[:2]) == ["client-0005", "client-0006"]
    assert len(names) == 10**15 - 5
