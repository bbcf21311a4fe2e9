"""A folder with a file per client reads like one table, but a client's file only when it is needed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from hansa import data as room
from hansa.core.errors import DataError, PlanError
from hansa.core.sections import Column, Data, Features
from hansa.data.folder_store import FolderStore, Recent
from hansa.data.partitions import Iid

LABEL = Features(label="outcome")


def load(path, features=LABEL, **settings):
    return room.load(Data(source="folder", path=str(path), **settings), features, 0)


@pytest.fixture
def split_table(table, tmp_path):
    """Return the folder that holds the table's clients, a file each."""
    header, *lines = Path(table).read_text().splitlines()
    folder = tmp_path / "clients"
    folder.mkdir()
    for site in ("a", "b"):
        kept = [line.split(",", 1)[1] for line in [header, *lines] if line.startswith((site + ",", "site"))]
        (folder / f"{site}.csv").write_text("\n".join(kept))
    (folder / ".hidden.csv").write_text("no table")
    (folder / "README").write_text("about")
    return folder


@pytest.mark.parametrize("scaling", ["federated", "none"])
def test_a_folder_reads_like_the_table_it_was_cut_from(table, split_table, scaling, everything):
    features = Features(label="outcome", scaling=scaling)
    folder = load(split_table, features, test_fraction=0.25)
    whole = room.load(Data(source="csv", path=table, client="site", test_fraction=0.25), features, 0)
    assert list(folder.train.names) == list(whole.train.names)
    assert folder.features == whole.features
    for part in ("train", "test"):
        for (a, b), (c, d) in zip(everything(getattr(folder, part)), everything(getattr(whole, part)), strict=True):
            assert np.array_equal(a, c, equal_nan=True)
            assert np.array_equal(b, d)


def test_a_clients_file_is_read_when_it_is_gathered(split_table, monkeypatch):
    data = load(split_table)
    read = []
    original = FolderStore._values
    monkeypatch.setattr(FolderStore, "_values", lambda self, o: read.append(o) or original(self, o))
    data.train.gather(np.array([1, 1]), np.array([[0, 1], [2, -1]]))
    data.train.gather(np.array([1]), np.array([[0]]))
    assert read == [1]


def test_what_was_read_last_is_kept_within_a_limit():
    recent, read = Recent(limit=250), []

    def make(ordinal):
        read.append(ordinal)
        return np.zeros(100, np.uint8)

    for ordinal in (0, 1, 0, 2, 0, 1):
        recent.get(ordinal, make)
    assert read == [0, 1, 2, 1]
    assert pickle.loads(pickle.dumps(recent))._kept == {}  # noqa: S301 - our own bytes


def test_a_copy_in_another_process_reads_the_same(split_table, everything):
    data = load(split_table)
    copy = pickle.loads(pickle.dumps(data.train))  # noqa: S301 - our own bytes
    for (a, b), (c, d) in zip(everything(data.train), everything(copy), strict=True):
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)


def test_a_partition_deals_from_the_pool(split_table):
    data = load(split_table, partition=Iid(clients=4))
    assert data.train.sizes(np.arange(4)).tolist() == [2] * 4


def test_a_file_that_changed_during_the_run_is_named(split_table):
    data = load(split_table)
    (split_table / "b.csv").write_text("age,smoker,outcome\n1,no,ill\n")
    with pytest.raises(DataError, match=r"b\.csv.*had 4 examples"):
        data.train.gather(np.array([1]), np.array([[0]]))


def test_arrays_of_each_client(save, tmp_path):
    for client, rows in ((1, 4), (2, 3), (10, 5)):
        save(f"arrays/{client}.npz", X=np.full((rows, 2, 2), client, np.uint8), y=np.arange(rows) % 2)
    central = save("central.npz", X=np.zeros((2, 2, 2), np.uint8), y=np.array([0, 1]))
    data = load(tmp_path / "arrays", None, central_path=central, test_fraction=0.25)
    assert list(data.train.names) == ["1", "2", "10"]
    assert data.signature.classes == 2
    assert data.train.gather(np.array([2]), np.array([[0]]))[0].tolist() == [[[[np.float32(10 / 255)] * 2] * 2]]
    assert data.central.y.tolist() == [0, 1]


def test_arrays_as_tables(save, tmp_path):
    for client in "ab":
        save(f"arrays/{client}.npz", X=np.array([[1.0, np.nan], [2.0, 3.0]]), y=np.array([0, 1]))
    data = load(tmp_path / "arrays", Features(label="y"))
    assert [column.name for column in data.features.columns] == ["x0"]


def test_arrays_that_differ_in_shape_are_refused(save, tmp_path):
    save("arrays/a.npz", X=np.zeros((2, 3)), y=np.array([0, 1]))
    save("arrays/b.npz", X=np.zeros((2, 4)), y=np.array([0, 1]))
    with pytest.raises(DataError, match="one shape"):
        load(tmp_path / "arrays", None)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "has none"),
        ({"a.csv": "x,outcome\n1,0\n", "b.npz": ""}, r"\.csv, \.npz"),
        ({"a.csv": "x,outcome\n1,0\n2,1\n", "b.csv": "x,outcome\n"}, "no rows"),
        ({"a.csv": "x,outcome\n1,0\n2,1\n", "b.csv": "x,outcome\n1,inf\n"}, "label"),
        ({"a.csv": "x,outcome\n1,0\n2,1\n", "b.csv": "x,outcome\ninf,1\n"}, "infinite"),
    ],
)
def test_a_bad_folder_is_refused_when_it_is_loaded(tmp_path, files, says):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    features = Features(label="outcome", classes=("0", "1"), columns=(Column(name="x", low=0, high=2),))
    with pytest.raises(DataError, match=says):
        load(tmp_path, features)


def test_a_client_without_a_column_is_named(split_table):
    (split_table / "c.csv").write_text("age,outcome\n1,ill\n")
    with pytest.raises(PlanError, match=r"c\.csv"):
        load(split_table, Features(label="outcome", columns=(Column(name="smoker", kind="category"),)))


def test_a_table_folder_needs_features_and_a_folder(split_table):
    with pytest.raises(PlanError, match=r"features\.label"):
        load(split_table, None)
    with pytest.raises(DataError, match="not a folder"):
        load(split_table / "a.csv")
    with pytest.raises(DataError, match="no such file"):
        load(split_table / "nowhere")


def test_a_name_that_is_not_utf8_is_refused_by_name(split_table):
    strange = os.fsencode(split_table) + b"/caf\xe9.csv"
    try:
        Path(os.fsdecode(strange)).write_text("age,smoker,outcome\n1,no,ill\n")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(DataError, match=r"caf\\xe9\.csv") as caught:
        load(split_table)
    str(caught.value).encode()


def test_two_files_of_one_client_are_refused_by_name(split_table):
    (split_table / "b.CSV").write_text("age,smoker,outcome\n1,no,ill\n")
    if len(list(split_table.glob("[ab].*"))) < 3:
        pytest.skip("this file system does not tell upper case from lower")
    with pytest.raises(DataError, match=r"'b'.*b\.CSV, b\.csv"):
        load(split_table)


def test_classes_are_those_of_all_clients_together(save, tmp_path):
    save("arrays/a.npz", X=np.zeros((2, 3)), y=np.array([5, -1]))
    save("arrays/b.npz", X=np.zeros((2, 3)), y=np.array([2, 5], np.uint8))
    central = save("central.npz", X=np.zeros((2, 3)), y=np.array([5, 2]))
    data = load(tmp_path / "arrays", None, central_path=central)
    assert data.class_names == ("-1", "2", "5")
    assert data.train.labels().tolist() == [2, 0, 1, 2]
    assert data.central.y.tolist() == [2, 1]
    assert any("-1, 2, 5" in note for note in data.notes)
    strange = save("strange.npz", X=np.zeros((2, 3)), y=np.array([5, 3]))
    with pytest.raises(DataError, match=r"strange\.npz.*'3'"):
        load(tmp_path / "arrays", None, central_path=strange)
