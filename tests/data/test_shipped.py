"""The data sets that come with the package, read as a user gets them."""

from __future__ import annotations

import sys
from importlib.resources import files

import numpy as np
import pytest

from hansa import data as room
from hansa.core.errors import HansaError, PlanError
from hansa.core.sections import Column, Data, Features
from hansa.data.heart import FEATURES
from hansa.data.partitions import Dirichlet, Iid


def load(source, features=None, seed=0, **settings):
    return room.load(Data(source=source, **settings), features, seed)


def test_heart_has_four_hospitals_and_a_stratified_quarter_to_test():
    data = load("heart", test_fraction=0.25)
    assert list(data.train.names) == ["Cleveland", "Hungary", "Switzerland", "VA Long Beach"]
    ordinals = np.arange(4)
    assert (data.train.sizes(ordinals) + data.test.sizes(ordinals)).tolist() == [304, 293, 123, 200]
    assert data.class_names == ("healthy", "disease")
    assert data.signature.shape == (len(FEATURES.slots()),)
    share = data.train.label_counts(2)[:, 1] / data.train.sizes(ordinals)
    assert np.allclose(share, data.test.label_counts(2)[:, 1] / data.test.sizes(ordinals), atol=0.03)
    assert data.features == FEATURES
    assert data.notes == ()


def test_heart_takes_zero_cholesterol_for_missing_and_leaves_what_a_hospital_never_measured(everything):
    data = load("heart")
    x = [x for x, _ in everything(data.train)]
    names = [slot.name for slot in data.features.slots()]
    never = {
        (str(data.train.names[client]), names[slot])
        for client in range(4)
        for slot in np.flatnonzero(np.isnan(x[client]).any(axis=0))
    }
    assert never == {("Switzerland", "chol")}
    for client in range(4):
        own = x[client]
        for number, slot in enumerate(data.features.slots()):
            if slot.numeric:
                known = own[:, number][~np.isnan(own[:, number])]
                assert slot.column.low <= known.min(initial=slot.column.high)
                assert known.max(initial=slot.column.low) <= slot.column.high


def test_heart_columns_know_every_value_of_the_file(everything):
    data = load("heart")
    used = np.nansum(np.concatenate([x for x, _ in everything(data.train)]), axis=0)
    assert all(
        used[i] > 0 for i, slot in enumerate(data.features.slots()) if not slot.numeric and slot.category != "(other)"
    )
    for column in ("sex", "cp"):
        assert used[[slot.name for slot in data.features.slots()].index(f"{column}=(other)")] == 0


def test_a_plan_may_say_part_of_the_features(everything):
    data = load("heart", Features(label="disease", scaling="none"))
    assert data.features.columns == FEATURES.columns
    assert data.features.scaling == "none"
    assert not any(np.isnan(x).any() for x, _ in everything(data.train))
    few = load("heart", Features(label="disease", columns=(Column(name="age"),)))
    assert few.signature.shape == (1,)
    vessels = load("heart", Features(label="num"))
    assert vessels.class_names == ("0", "1", "2", "3", "4")
    with pytest.raises(PlanError, match=r"features\.columns\.0\.name"):
        load("heart", Features(label="disease", columns=(Column(name="aged"),)))


def test_heart_can_be_dealt_otherwise():
    assert len(load("heart", partition=Iid(clients=9)).train.names) == 9


def test_wsn_has_eight_motes():
    data = load("wsn")
    assert len(data.train.names) == 8
    assert data.train.label_counts(2).sum(axis=0).tolist() == [37_367, 307]
    assert [column.name for column in data.features.columns] == ["humidity", "temperature"]


def test_shakespeare_predicts_the_next_character():
    data = load("shakespeare", test_fraction=0.1)
    assert (data.signature.shape, data.signature.classes, data.signature.vocabulary) == ((80,), 81, 81)
    assert data.signature.integer_inputs
    ordinal = np.array([list(data.train.names).index("hamlet/HAMLET")])
    x, y = data.train.gather(ordinal, np.arange(200)[None])
    text = "".join(data.class_names[symbol] for symbol in [*x[0, 0], *y[0]])
    assert text.startswith("A little more than kin, and less than kind.")
    assert np.array_equal(x[0, 1:, -1], y[0, :-1])
    last_x, last_y = data.train.gather(ordinal, data.train.sizes(ordinal)[:, None] - 1)
    first_x, _ = data.test.gather(ordinal, np.array([[0]]))
    assert np.array_equal(first_x[0, 0, :-1], last_x[0, 0, 1:])
    assert first_x[0, 0, -1] == last_y[0, 0]


def test_fashion_is_dealt_to_a_hundred_unless_the_plan_says():
    data = load("fashion-mnist-small")
    assert data.train.sizes(np.arange(100)).tolist() == [100] * 100
    assert "default" in data.notes[0]
    assert data.central.x.shape == (2000, 28, 28)
    assert data.class_names[9] == "Ankle boot"
    assert load("fashion-mnist-small", partition=Dirichlet(clients=10, alpha=1.0)).notes == ()


def test_digits_need_scikit_learn(monkeypatch):
    data = load("digits", partition=Iid(clients=5))
    assert data.signature.shape == (8, 8)
    assert data.train.store.x.max() == 1
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(HansaError, match=r"hansa\[digits\]") as caught:
        load("digits")
    assert caught.value.code == "HANSA-EXTRA-MISSING"


def test_every_shipped_file_is_attributed():
    folder = files("hansa.data") / "files"
    attribution = (folder / "ATTRIBUTION.txt").read_text()
    shipped = [each.name for each in folder.iterdir() if each.suffix != ".txt"]
    assert len(shipped) == 4
    assert all(name in attribution for name in shipped)
    assert "mnist.npz" not in shipped
