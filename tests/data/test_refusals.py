"""What a newcomer meets first: a wrong folder, a file of another kind, another encoding, a date, other names."""

from __future__ import annotations

import gzip
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hansa import data as room
from hansa.core.errors import DataError, PlanError
from hansa.core.sections import Data, Features
from hansa.data.inference import infer
from hansa.data.partitions import Iid
from hansa.data.table import TEXT, Table


def load(path, source="csv", features=None, **settings):
    settings = {"partition": Iid(clients=2), **settings}
    return room.load(Data(source=source, path=str(path), **settings), features, 0)


def refused(path, source="csv", **settings):
    with pytest.raises(DataError) as caught:
        load(path, source, Features(label="y") if source != "npz" else None, **settings)
    return caught.value


@pytest.mark.parametrize("source", ["csv", "parquet", "npz", "folder"])
def test_a_relative_path_names_the_folder_in_which_one_runs(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = refused("bank.csv", source)
    assert f"bank.csv: there is no such file in {tmp_path}" in str(error)
    assert "relative to the folder in which you run" in str(error)
    assert error.code == "HANSA-DATA-MISSING"
    assert "is relative" not in str(refused(tmp_path / "bank.csv", source))


def zipped(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr(member, "x")
    return (tmp_path / "made.zip").read_bytes()


def test_a_file_of_another_kind_is_recognised(tmp_path, save):
    contents = {
        'an .npz archive.*source = "npz"': Path(save(X=np.zeros(3))).read_bytes(),
        "Excel.*Save it as CSV": zipped(tmp_path, "xl/workbook.xml"),
        "zip archive.*Unpack": zipped(tmp_path, "t.csv"),
        "gzip.*Unpack": gzip.compress(b"a,y\n1,2\n"),
        'Parquet.*source = "parquet"': b"PAR1\x00\xff",
        "UTF-16": "a,y\n1,2\n".encode("utf-16"),
    }
    for says, content in contents.items():
        (tmp_path / "t.csv").write_bytes(content)
        error = refused(tmp_path / "t.csv")
        assert error.code == "HANSA-DATA-INVALID"
        with pytest.raises(DataError, match=says):
            raise error
    assert 'source = "folder"' in str(refused(tmp_path))


def test_tables_are_not_archives(tmp_path, write):
    assert 'source = "csv"' in str(refused(write("t.csv", "a,y\n1,2\n"), "npz"))
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert "numpy.savez" in str(refused(tmp_path / "x.npy", "npz"))


def test_text_in_another_encoding_is_named_with_its_line(write):
    path = write("t.csv", "a,y\n" + "1,x\n" * 5000 + "2,caf\u00e9\n" + "1,x\n" * 5, encoding="latin-1")
    error = str(refused(path))
    assert "line 5002 is not UTF-8" in error
    assert "Windows-1252" in error


@pytest.mark.parametrize("memory_map", ["always", "never"])
def test_object_arrays_are_named_and_what_to_write_instead(save, memory_map):
    for compressed in (False, True):
        y = np.array(["no", "yes"], dtype=object)
        path = save(X=np.zeros((2, 3)), y=y, compressed=compressed)
        error = refused(path, "npz", memory_map=memory_map)
        assert "array 'y'" in str(error)
        assert "y=y.astype(str)" in str(error)
        assert error.code == "HANSA-DATA-INVALID"


def test_columns_of_unlike_spread_are_noted_where_nothing_scales_them(save):
    generator = np.random.default_rng(0)
    x = generator.uniform(size=(40, 3)) * [1, 100, 5]
    x[:, 2] = 7
    path = save(X=x, y=np.arange(40) % 2)
    found = [note for note in load(path, "npz").notes if "spread" in note]
    assert len(found) == 1
    assert '[features] label = "y", scaling = "federated"' in found[0]
    assert re.search(r"factor of (9\d|1\d\d);", found[0])
    unscaled = load(path, "npz", Features(label="y", scaling="none"))
    assert any("spread" in note for note in unscaled.notes)
    assert not any("spread" in note for note in load(path, "npz", Features(label="y")).notes)
    alike = save("alike.npz", X=x / [1, 100, 5], y=np.arange(40) % 2)
    assert not load(alike, "npz").notes


@pytest.mark.parametrize(
    "date", ["20{:02}-01-31", "20{:02}-01-31 10:30:00", "20{:02}-01-31T10:30Z", "31.01.20{:02}", "1/31/20{:02}"]
)
@pytest.mark.parametrize("different", [3, 90])
def test_dates_are_recognised(date, different):
    columns = {
        "visit": [date.format(i % different) for i in range(90)],
        "x": [f"{i % 7}.5" for i in range(90)],
        "y": ["01"[i % 2] for i in range(90)],
    }
    columns["visit"][5] = ""
    found = infer(Table({name: np.array(v, dtype=TEXT) for name, v in columns.items()}, "t.csv"), "y")
    assert [column.name for column in found.features.columns] == ["x"]
    assert "'visit' was left out: a date; turn it into a number (days since" in found.notes[0]


def test_a_column_that_is_not_there_is_met_with_a_near_one_or_the_list(write):
    path = write("t.csv", "income,hospital,y\n1,a,0\n2,b,1\n")
    for name, says in (("clinic", "its columns are: income, hospital, y"), ("hospitl", "did you mean 'hospital'?")):
        with pytest.raises(PlanError) as caught:
            load(path, "csv", Features(label="y"), client=name, partition=None)
        assert says in str(caught.value)
        assert ("did you mean" in str(caught.value)) == (name != "clinic")
    with pytest.raises(PlanError, match="its columns are"):
        load(path, "csv", Features(label="clinic"))
    with pytest.raises(PlanError, match="did you mean 'income'"):
        load(path, "csv", Features(label="INCOME"))


def test_a_damaged_file_is_invalid_and_not_missing(tmp_path):
    for source in ("csv", "npz", "parquet"):
        (tmp_path / "bad").write_bytes(b"")
        assert refused(tmp_path / "bad", source).code == "HANSA-DATA-INVALID"
    if os.geteuid():
        (tmp_path / "bad").chmod(0)
        assert refused(tmp_path / "bad").code == "HANSA-DATA-MISSING"
