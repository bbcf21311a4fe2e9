"""Tables with decimal commas, as European Excel writes them: read as numbers, said, or refused; never as categories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hansa import data as room
from hansa.core.errors import DataError
from hansa.core.sections import Column, Data, Features
from hansa.data.inference import infer, read_table_at

AGES = ("18,5", "1.019,25", "-20,0", "21", "NA", "22,5", "23,0", "24,125")
NUMBERS = [18.5, 1019.25, -20.0, 21.0, np.nan, 22.5, 23.0, 24.125]


def written(write, name="t.csv", separator=";", ages=AGES):
    cells = [f'"{age}"' for age in ages] if separator == "," else ages
    lines = [separator.join(("ab"[i % 2], age, "yn"[i // 2 % 2])) for i, age in enumerate(cells)]
    return write(name, "\n".join([separator.join(("site", "age", "sick")), *lines]))


def load(path, features=None, **settings):
    settings = {"source": "csv", "client": "site", **settings}
    return room.load(Data(path=str(path), **settings), features or Features(label="sick"), 0)


def ages_of(data):
    x = data.train.store.x if hasattr(data.train.store, "x") else data.train.store.in_memory().x
    return sorted(x[:, 0].tolist())


@pytest.mark.parametrize("separator", [";", "\t"])
def test_decimal_commas_are_numbers_in_inference_and_in_reading(write, separator):
    path = written(write, separator=separator)
    inferred = infer(read_table_at(path), "sick", ("site",))
    column = inferred.features.columns[0]
    assert (column.name, column.kind) == ("age", "number")
    assert column.low <= -20
    assert column.high >= 1019.25
    assert any("decimal comma" in note and "'age'" in note for note in inferred.notes)
    for features in (None, inferred.features):
        data = load(path, features)
        assert data.features.columns[0] == column
        known = set(NUMBERS) - {NUMBERS[4]}
        assert known <= set(ages_of(data))
        assert sum("decimal comma" in note for note in data.notes) == 1


def test_a_declared_missing_mark_may_stand_beside_decimal_commas(write):
    path = written(write, ages=("18,5", "-", "20,5", "19", "20", "21,5", "22,5", "23,5"))
    data = load(path, Features(label="sick", columns=(Column(name="age", missing=("-",)),)))
    assert {18.5, 19.0, 20.5} <= set(ages_of(data))


def test_the_cell_that_is_no_number_is_the_one_that_is_named(write):
    path = written(write, ages=("18,5", "19,5", "20,5", "x", "20", "21,5", "22,5", "23,5"))
    with pytest.raises(DataError, match="row 4: 'x'"):
        load(path, Features(label="sick", columns=(Column(name="age"),)))


def test_declared_categories_stay_as_written(write):
    path = written(write, ages=("1,2", "1,3") * 4)
    column = Column(name="age", kind="category", categories=("1,2", "1,3"))
    data = load(path, Features(label="sick", columns=(column,)))
    assert data.train.store.x[:, 2].sum() == 0
    assert not any("decimal" in note for note in data.notes)


def test_decimal_commas_and_points_in_one_column_are_refused(write):
    path = written(write, ages=("18,5", "19.5") * 4)
    with pytest.raises(DataError, match=r"'age'.*'18,5'.*'19\.5'"):
        load(path)


@pytest.mark.parametrize("columns", [(), (Column(name="age"),)])
def test_quoted_decimal_commas_between_commas_are_refused(write, columns):
    path = written(write, separator=",")
    with pytest.raises(DataError, match=r"'age'.*'18,5'.*decimal points") as caught:
        load(path, Features(label="sick", columns=columns))
    assert caught.value.code == "HANSA-DATA-INVALID"
    with pytest.raises(DataError, match="decimal points"):
        infer(read_table_at(path), "sick", ("site",))


def test_a_label_with_decimal_commas_is_a_real_value(write):
    path = write("t.csv", "site;x;cost\n" + "".join(f"{'ab'[i % 2]};{i},5;{i},25\n" for i in range(8)))
    data = load(path, Features(label="cost"))
    assert data.features.task == "regression"
    assert sorted(data.train.labels().tolist()) == [i + 0.25 for i in range(8)]
    whole = write("u.csv", "site;x;y\n" + "".join(f"{'ab'[i % 2]};{i},5;{i % 2},0\n" for i in range(8)))
    assert load(whole, Features(label="y")).class_names == ("0", "1")


@pytest.mark.parametrize("second", [";", ","])
def test_a_folder_reads_each_file_by_its_own_separator(write, second):
    write("clients/a.csv", "age;y\n" + "".join(f"{i},5;{i % 2}\n" for i in range(4)))
    comma = "".join(f"{i},5;{i % 2}\n" for i in range(4, 8))
    points = "".join(f"{i}.5,{i % 2}\n" for i in range(4, 8))
    path = Path(write("clients/b.csv", f"age{second}y\n" + (comma if second == ";" else points))).parent
    data = load(path, Features(label="y"), source="folder", client=None)
    assert data.features.columns[0].kind == "number"
    assert ages_of(data) == [i + 0.5 for i in range(8)]
    assert sum("decimal comma" in note for note in data.notes) == 1


def test_a_folder_whose_column_is_no_number_somewhere_keeps_texts_as_written(write):
    write("clients/a.csv", "z;age;y\n" + "".join(f"{i};{i % 2},5;{i % 2}\n" for i in range(4)))
    path = Path(write("clients/b.csv", "z;age;y\n9;0,5;0\n8;old;1\n")).parent
    data = load(path, Features(label="y"), source="folder", client=None)
    age = next(column for column in data.features.columns if column.name == "age")
    assert age.categories == ("0,5", "1,5", "old")
    assert data.train.gather(np.array([0]), np.array([[0]]))[0][0, 0, 1:].tolist() == [1, 0, 0, 0]


def test_the_servers_own_table_may_have_decimal_commas(write):
    own = write("own.csv", "age;sick\n30,5;y\n31,5;n\n")
    data = load(written(write), central_path=own)
    assert data.central.x[:, 0].tolist() == [30.5, 31.5]
