"""Tables as users have them: separators, gaps, categories, clients; and every way in which they go wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from hansa import data as room
from hansa.core.errors import DataError, PlanError
from hansa.core.sections import Column, Data, Features
from hansa.data.partitions import Iid
from hansa.data.table_files import read_table

COLUMNS = (
    Column(name="age", low=20, high=53),
    Column(name="smoker", kind="category", categories=("no", "yes")),
)


def load(path, label="outcome", source="csv", features=None, **settings):
    settings = {"client": "site", **settings}
    features = features or Features(label=label, columns=COLUMNS)
    return room.load(Data(source=source, path=path, **settings), features, 0)


def rows(part, ordinal):
    size = part.sizes(np.array([ordinal]))[0]
    x, y = part.gather(np.array([ordinal]), np.arange(size)[None])
    return x[0].tolist(), y[0].tolist()


def test_a_table_is_encoded_clamped_and_imputed_by_each_client(table):
    data = load(table)
    assert list(data.train.names) == ["a", "b"]
    assert [slot.name for slot in data.features.slots()] == ["age", "smoker=no", "smoker=yes", "smoker=(other)"]
    assert data.class_names == ("ill", "well")
    x, y = rows(data.train, 1)
    assert x == [[50, 0, 1, 0], [52, 1, 0, 0], [53, 1, 0, 0], [52, 0, 0, 1]]
    assert y == [0, 1, 0, 1]
    assert rows(data.train, 0)[0][2] == [32, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("site,age,smoker,outcome\na,1,yes,ill\nb,2,no,well\n", "utf-8"),
        ("site;age;smoker;outcome\r\na;1;yes;ill\r\n\r\nb;2;no;well\r\n", "utf-8"),
        ("site\tage\tsmoker\toutcome\na\t1\tyes\till\nb\t2\tno\twell", "utf-8"),
        ('"site","age","smoker","outcome"\n"a"," 1 ","yes","ill"\n"b","2","no","well"\n', "utf-8-sig"),
    ],
)
def test_separators_quotes_and_byte_order_marks_do_not_matter(write, text, encoding):
    data = load(write("t.csv", text, encoding=encoding))
    assert rows(data.train, 0) == ([[20, 0, 1, 0]], [0])
    assert rows(data.train, 1) == ([[20, 1, 0, 0]], [1])


def test_quoted_cells_hold_separators_and_line_ends(write):
    path = write("t.csv", 'a,b\n"1,5","x\ny"\n2,"say ""hi"""\n')
    found = read_table(Path(path))
    assert found.columns["a"].tolist() == ["1,5", "2"]
    assert found.columns["b"].tolist() == ["x\ny", 'say "hi"']


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "does not name columns"),
        (b"site,age\n", "no rows"),
        (b"site,age,site\na,1,b\n", "twice"),
        (b"site,age\na,1,2\n", "line 2 has 3 cells"),
        (b"site,age\na,\xff\n", "UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "UTF-8|column"),
        (b'site,age\na,"1\n', "line"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_the_line(tmp_path, content, says):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        load(str(path))
    assert caught.value.code == "HANSA-DATA-INVALID"


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ("a,old,yes,ill", "row 9: 'old'"),
        ("a,inf,yes,ill", "infinite"),
        ("a,1e39,yes,ill", "infinite"),
        ("a,30,yes,", "label"),
        ("a,30,yes,dead", "classes"),
        (",30,yes,ill", "names its client"),
    ],
)
def test_a_bad_cell_is_named_with_its_row(table, cells, says):
    path = Path(table)
    path.write_text(path.read_text() + cells + "\n")
    columns = (Column(name="age"), COLUMNS[1])
    with pytest.raises(DataError, match=says):
        load(table, features=Features(label="outcome", columns=columns, classes=("well", "ill")))


def test_wrong_names_are_problems_at_their_keys_with_the_nearest(table):
    features = Features(label="outcom", columns=(Column(name="agee"), Column(name="smoker")))
    with pytest.raises(PlanError) as caught:
        load(table, features=features)
    assert [problem.path for problem in caught.value.problems] == ["features.label", "features.columns.0.name"]
    assert "'outcome'" in str(caught.value)
    assert "'age'" in str(caught.value)
    with pytest.raises(PlanError, match="did you mean 'site'") as caught:
        load(table, client="sites")
    assert caught.value.problems[0].path == "data.client"


def test_a_client_or_a_partition_is_needed(table):
    with pytest.raises(PlanError, match=r"data\.client"):
        load(table, client=None)
    assert len(load(table, client=None, partition=Iid(clients=4)).train.names) == 4
    with pytest.raises(PlanError, match="also the label"):
        load(table, client="outcome")


def test_features_are_required(table):
    with pytest.raises(PlanError) as caught:
        room.load(Data(source="csv", path=table, client="site"), None, 0)
    assert caught.value.problems[0].path == "features.label"


def test_what_the_plan_leaves_open_is_found_in_the_file_and_said(table):
    data = load(table, features=Features(label="outcome"))
    age, smoker = data.features.columns
    assert (age.kind, smoker.kind, smoker.categories) == ("number", "category", ("no", "yes"))
    assert age.low <= 30
    assert age.high >= 54
    assert (data.features.task, data.features.classes) == ("classification", ("ill", "well"))
    assert "pooled file" in data.notes[0]
    partly = load(
        table, features=Features(label="outcome", columns=(Column(name="age"), Column(name="smoker", kind="category")))
    )
    assert partly.features.columns == data.features.columns
    assert load(table, features=data.features).notes == ()


def test_a_declared_missing_mark_may_be_written_in_many_ways(write):
    path = write("t.csv", "site,age,outcome\na,0,x\na,40,y\na,50,x\nb,1,y\nb,-9,x\n")
    features = Features(label="outcome", columns=(Column(name="age", missing=("0", "-9")),))
    assert rows(load(path, features=features).train, 0)[0] == [[45], [40], [50]]


def test_a_central_table_is_encoded_alike(table, write):
    central = write("own.csv", "age,smoker,outcome\n99,yes,ill\n,no,well\n")
    data = load(table, central_path=central)
    assert data.central.x.tolist() == [[53, 0, 1, 0], [53, 1, 0, 0]]
    assert data.central.y.tolist() == [0, 1]


def test_regression_reads_real_labels(write):
    path = write("t.csv", "site,age,cost\na,1,10.5\na,2,11.25\nb,3,7\n")
    data = load(path, features=Features(label="cost", columns=(Column(name="age"),)))
    assert (data.signature.classes, data.features.task) == (0, "regression")
    assert rows(data.train, 0)[1] == [10.5, 11.25]
    with pytest.raises(DataError, match="not numbers"):
        load(write("u.csv", "site,age,cost\na,1,x\na,2,1\n"), features=Features(label="cost", task="regression"))


def test_whole_numbers_that_are_read_as_real_values_are_noted(write):
    path = write("t.csv", "site,age,y\n" + "".join(f"{i % 2},{i * 1.5},{i}\n" for i in range(30)))
    data = load(path, features=Features(label="y", columns=(Column(name="age", low=0, high=50),)))
    assert data.signature.classes == 0
    assert any('task = "classification"' in note for note in data.notes)
    declared = Features(label="y", task="regression", columns=data.features.columns)
    assert load(path, features=declared).notes == ()


def test_parquet_reads_like_csv(table, tmp_path):
    text = read_table(Path(table))
    age = [None if value in ("", "NA") else int(value) for value in text.columns["age"].tolist()]
    columns = {name: text.columns[name].tolist() for name in ("site", "smoker", "outcome")}
    arrow = pa.table({**columns, "age": pa.array(age, pa.int64()), "list": [[1]] * len(age)})
    arrow = arrow.set_column(0, "site", arrow.column("site").dictionary_encode())
    path = tmp_path / "table.parquet"
    parquet.write_table(arrow, path)
    typed, plain = load(str(path), source="parquet"), load(table)
    for ordinal in (0, 1):
        assert rows(typed.train, ordinal) == rows(plain.train, ordinal)
    inferred = load(str(path), source="parquet", features=Features(label="outcome"))
    assert any("'list' was left out" in note for note in inferred.notes)
    with pytest.raises(PlanError, match="'list'"):
        load(str(path), source="parquet", features=Features(label="outcome", columns=(Column(name="list"),)))


def test_parquet_keeps_types(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write_table(
        pa.table({"site": [10**17 + 1, 10**17 + 3], "flag": [True, None], "x": [1.5, float("nan")], "y": [0, 1]}), path
    )
    columns = (Column(name="flag", kind="category", categories=("false", "true")), Column(name="x"))
    data = load(str(path), source="parquet", features=Features(label="y", columns=columns))
    assert list(data.train.names) == [str(10**17 + 1), str(10**17 + 3)]
    assert rows(data.train, 0)[0] == [[0, 1, 0, 1.5]]


@pytest.mark.parametrize("content", [b"no parquet", b"PAR1PAR1"])
def test_a_file_that_is_not_parquet_is_refused(tmp_path, content):
    (tmp_path / "t.parquet").write_bytes(content)
    for path in (tmp_path / "t.parquet", tmp_path):
        with pytest.raises(DataError):
            load(str(path), source="parquet")


@pytest.mark.parametrize("source", ["csv", "parquet"])
def test_a_missing_table_is_missing(source):
    with pytest.raises(DataError) as caught:
        load("nowhere", source=source)
    assert caught.value.code == "HANSA-DATA-MISSING"


def test_without_pyarrow_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(Exception, match=r"hansa\[parquet\]") as caught:
        load(str(tmp_path), source="parquet")
    assert caught.value.code == "HANSA-EXTRA-MISSING"


def test_long_whole_numbers_are_different_classes(write):
    long = 10**17
    path = write("t.csv", f"site,age,y\na,1,{long + 1}\na,2,{long + 3}\nb,3,{long + 1}\nb,4,{long + 3}\n")
    data = load(path, features=Features(label="y", task="classification", columns=(Column(name="age"),)))
    assert data.class_names == (str(long + 1), str(long + 3))
    assert rows(data.train, 0)[1] == [0, 1]
