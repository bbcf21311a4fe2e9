"""What is found in a file: kinds, bounds, classes, and which columns cannot help."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hansa.core.errors import DataError, PlanError
from hansa.core.sections import Features
from hansa.data.encoding import encode, encode_labels
from hansa.data.inference import complete_label, infer, infer_features, read_table_at, round_outwards
from hansa.data.table import TEXT, Table


def texts(*values):
    return np.array(values, dtype=TEXT)


def table(**columns):
    return Table({name: texts(*map(str, values)) for name, values in columns.items()}, "t.csv")


def test_a_table_is_read_and_inferred_from_a_path(table_path):
    features = infer_features(read_table_at(table_path), "outcome", exclude=("site",))
    assert [column.name for column in features.columns] == ["age", "smoker"]


@pytest.fixture
def table_path(table):
    return table


@pytest.fixture(name="table")
def _table(write):
    return write("t.csv", "site,age,smoker,outcome\na,1,yes,0\nb,2.5,no,1\nb,,no,1\n")


def make(**columns):
    return Table({name: texts(*map(str, values)) for name, values in columns.items()}, "t.csv")


def test_useless_columns_are_left_out_with_a_note():
    found = infer(
        make(
            id=range(100),
            number=range(500, 600),
            constant=["x"] * 100,
            empty=["NA"] * 100,
            remark=[f"text {i}" for i in range(100)],
            useful=[i % 7 + 0.5 for i in range(100)],
            y=[i % 2 for i in range(100)],
        ),
        "y",
    )
    assert [column.name for column in found.features.columns] == ["useful"]
    assert len(found.notes) == 5


def test_nothing_useful_is_an_error():
    with pytest.raises(DataError, match="feature columns"):
        infer(make(constant=[1, 1, 1], y=[0, 1, 1]), "y")


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_bounds_are_wider_round_and_keep_what_is_never_negative(one, other):
    low, high = sorted((one, other))
    assume(high - low > 1e-6)
    lowest, highest = round_outwards(low, high)
    assert lowest <= low < high <= highest
    assert highest - lowest <= 1.5 * (high - low) + 1e-9
    assert lowest >= 0 or low < 0


@pytest.mark.parametrize(("low", "high", "wanted"), [(28, 77, (25, 80)), (0, 1, (0, 1.1)), (5, 5, (4.7, 5.3))])
def test_bounds_read_well(low, high, wanted):
    assert round_outwards(low, high) == wanted


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["1", "0", "1"], "classification", ("0", "1")),
        (["10", "9", "10", "9"], "classification", ("9", "10")),
        (["1.0", "0.0", "1.0"], "classification", ("0", "1")),
        (["yes", "no", "no"], "classification", ("no", "yes")),
        (["1", "two", "1"], "classification", ("1", "two")),
        (["1.5", "0", "1"], "regression", ()),
        ([str(i) for i in range(50)], "regression", ()),
    ],
)
def test_labels_are_classes_or_real_values(values, task, classes):
    features = complete_label(Features(label="y"), texts(*values), "t.csv")
    assert (features.task, features.classes) == (task, classes)
    labels = encode_labels(texts(*values), features, "t.csv")
    assert labels.dtype == (np.float32 if task == "regression" else np.int64)


def test_declared_classes_give_the_order_and_match_numbers_however_written():
    features = Features(label="y", classes=("1", "0"))
    values = texts("0", "1.0", "1")
    assert encode_labels(values, complete_label(features, values, "t"), "t").tolist() == [1, 0, 0]
    assert encode_labels(np.array([0.0, 1.0]), complete_label(features, values, "t"), "t").tolist() == [1, 0]


def test_a_class_may_be_called_none():
    values = texts("None", "mild")
    features = Features(label="y", task="classification", classes=("None", "mild"))
    assert encode_labels(values, features, "t").tolist() == [0, 1]


@pytest.mark.parametrize(("values", "says"), [(["a", "a"], "2 to"), ([f"t{i}" for i in range(1200)], "has 1200")])
def test_a_label_with_one_value_or_far_too_many_is_refused(values, says):
    with pytest.raises(DataError, match=says):
        complete_label(Features(label="y"), texts(*values), "t.csv")


def test_classes_contradict_regression():
    with pytest.raises(PlanError, match=r"features\.classes"):
        complete_label(Features(label="y", task="regression", classes=("a", "b")), texts("a"), "t")


cells = st.one_of(st.sampled_from(["", "NA", "?", "a", "b", "-1", "7"]), st.floats(-1e9, 1e9).map(repr))


@given(st.lists(st.tuples(cells, cells), min_size=4, max_size=30))
def test_whatever_is_inferred_encodes_the_table_it_was_inferred_from(rows):
    first, second = zip(*rows, strict=True)
    found = make(first=first, second=second, y=[i % 2 for i in range(len(rows))])
    try:
        features = infer_features(found, "y")
    except DataError:
        return
    x = encode(found, features)
    assert x.shape == (len(rows), len(features.slots()))
    for number, slot in enumerate(features.slots()):
        known = x[:, number][~np.isnan(x[:, number])]
        if slot.numeric:
            assert (known >= np.float32(slot.column.low)).all()
            assert (known <= np.float32(slot.column.high)).all()
        else:
            assert set(known.tolist()) <= {0.0, 1.0}
