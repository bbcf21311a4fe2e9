"""The user's own arrays: what is accepted, how it is read, and what is refused with a sentence."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hansa import data as room
from hansa.core.errors import DataError, PlanError
from hansa.core.sections import Column, Data, Features
from hansa.data.archives import is_mapped, open_archive
from hansa.data.partitions import Iid, Natural, Shards
from hansa.data.stores import ArrayStore

X = np.arange(24, dtype=np.float32).reshape(8, 3)
Y = np.array([0, 1, 0, 1, 2, 1, 0, 2])
CLIENT = np.array([3, 3, 10, 10, 10, 2, 2, 2])


def load(path, features=None, seed=0, **settings):
    return room.load(Data(source="npz", path=path, **settings), features, seed)


def test_arrays_are_dealt_to_the_clients_they_name(save, everything):
    data = load(save(X=X, y=Y, client=CLIENT))
    assert list(data.train.names) == ["2", "3", "10"]
    assert data.signature.shape == (3,)
    assert (data.signature.classes, data.class_names) == (3, ("0", "1", "2"))
    for name, (x, y) in zip(data.train.names, everything(data.train), strict=True):
        assert np.array_equal(x, X[int(name) == CLIENT])
        assert np.array_equal(y, Y[int(name) == CLIENT])
    assert data.validation is data.test is data.held_out is data.central is None


@pytest.mark.parametrize(
    "client", [CLIENT.astype("U5"), CLIENT.astype("S5"), CLIENT.astype(np.float64), CLIENT * 10**12]
)
def test_clients_are_named_by_texts_or_numbers_of_any_kind(save, client):
    data = load(save(X=X, y=Y, client=client))
    assert data.train.sizes(np.arange(3)).tolist() == [3, 2, 3]


@pytest.mark.parametrize("dtype", ["float64", "float16", ">f4", "int32", "bool", "int64"])
def test_numbers_of_any_type_are_read_as_float32(save, dtype):
    data = load(save(X=X.astype(dtype), y=Y, client=CLIENT))
    x, _ = data.train.gather(np.array([0]), np.array([[0]]))
    assert x.dtype == np.float32
    assert x[0, 0].tolist() == X[5].astype(dtype).astype(np.float32).tolist()


def test_bytes_are_read_between_0_and_1_and_said_so(save):
    data = load(save(X=np.full((8, 2, 2), 255, np.uint8), y=Y, client=CLIENT))
    assert data.train.gather(np.array([0]), np.array([[0]]))[0].max() == 1
    assert data.signature.shape == (2, 2)
    assert "255" in data.notes[0]


def test_a_vocabulary_makes_tokens(save):
    data = load(save(X=np.arange(24).reshape(8, 3), y=Y, client=CLIENT, vocabulary=np.int64(24)))
    assert (data.signature.integer_inputs, data.signature.vocabulary) == (True, 24)
    assert data.train.gather(np.array([0]), np.array([[0]]))[0].dtype == np.int64


def test_real_valued_labels_are_regression_and_whole_few_floats_are_classes(save):
    rng = np.random.default_rng(0)
    real = load(save(X=X, y=rng.normal(size=8), client=CLIENT))
    assert (real.signature.classes, real.class_names) == (0, ())
    assert real.train.gather(np.array([0]), np.array([[0]]))[1].dtype == np.float32
    whole = load(save(X=X, y=(Y > 0).astype(np.float64), client=CLIENT))
    assert whole.signature.classes == 2
    assert any("floats" in note for note in whole.notes)


def test_text_labels_are_classes_in_order(save):
    data = load(save(X=X, y=np.array(["no", "yes"])[Y % 2], client=CLIENT))
    assert data.class_names == ("no", "yes")


LABELLINGS = {
    "from 1": (Y % 2 + 1, ("1", "2")),
    "gaps": (np.array([0, 2, 5])[Y], ("0", "2", "5")),
    "signs": (np.where(Y == 0, -1, 1), ("-1", "1")),
    "large": (Y * 10**6, ("0", "1000000", "2000000")),
    "beyond int64": (np.array([2**63, 2**64 - 1], np.uint64)[Y % 2], (str(2**63), str(2**64 - 1))),
    "floats": (np.array([1.0, 2.0])[Y % 2], ("1", "2")),
    "texts": (np.array(["b", "a"])[Y % 2], ("a", "b")),
    "bytes": (np.array([b"b", b"a"])[Y % 2], ("a", "b")),
    "numbers as texts": (np.array(["9", "10", "11"])[Y], ("9", "10", "11")),
}


@pytest.mark.parametrize("name", LABELLINGS)
def test_the_values_that_are_used_become_classes_with_a_note(save, name):
    y, names = LABELLINGS[name]
    data = load(save(X=X, y=y, client=CLIENT, X_test=X[:3], y_test=y[:3]))
    assert (data.signature.classes, data.class_names) == (len(names), names)
    labels = np.empty(8, np.int64)
    labels[data.train.rows.order] = data.train.labels()
    written = [each.decode() if isinstance(each, bytes) else each for each in y.tolist()]
    assert [names[label] for label in labels] == [str(int(w)) if isinstance(w, float) else str(w) for w in written]
    assert data.central.y.tolist() == labels[:3].tolist()
    assert any(", ".join(names) in note for note in data.notes)


@pytest.mark.parametrize("y", [Y, Y.astype(np.uint8), Y > 0])
def test_class_numbers_from_0_stay_as_they_are_without_a_note(save, y):
    data = load(save(X=X, y=y, client=CLIENT))
    assert data.class_names == tuple(map(str, range(int(y.max()) + 1)))
    assert data.notes == ()


@pytest.mark.parametrize("name", ["from 1", "gaps", "signs", "floats", "texts", "numbers as texts"])
def test_every_source_finds_the_same_classes(save, write, tmp_path, name):
    pa, parquet = (pytest.importorskip(module) for module in ("pyarrow", "pyarrow.parquet"))
    y, names = LABELLINGS[name]
    x = np.random.default_rng(0).normal(size=8)
    lines = [f"{a},{b},{c}" for a, b, c in zip(x, y, CLIENT, strict=True)]
    sources = {"npz": save(X=x[:, None], y=y, client=CLIENT), "csv": write("t.csv", "\n".join(["x,y,c", *lines]))}
    sources["parquet"] = str(tmp_path / "t.parquet")
    parquet.write_table(pa.table({"x": x, "y": y.tolist(), "c": CLIENT}), sources["parquet"])
    for client in np.unique(CLIENT):
        save(f"folder/{client}.npz", X=x[client == CLIENT][:, None], y=y[client == CLIENT])
    sources["folder"] = str(tmp_path / "folder")
    found = {}
    for source, path in sources.items():
        table = source in ("csv", "parquet")
        data = room.load(
            Data(source=source, path=path, client="c" if table else None), Features(label="y") if table else None, 0
        )
        assert data.class_names == names
        assert data.notes
        found[source] = data.train.labels().tolist()
    assert list(found.values()) == [found["csv"]] * 4


def test_declared_classes_rule(save):
    features = Features(label="target", classes=("5", "2", "0"), columns=(Column(name="x0", low=0, high=30),))
    data = load(save(X=X, y=np.array([0, 2, 5])[Y], client=CLIENT), features)
    assert data.class_names == ("5", "2", "0")
    assert sorted(data.train.labels().tolist()) == sorted((2 - Y).tolist())


def test_many_labels_below_a_vocabulary_are_tokens(save):
    tokens = np.arange(0, 60, 2)
    archive = {"X": tokens[:, None], "y": tokens, "client": tokens % 4, "vocabulary": np.int64(64)}
    data = load(save(**archive))
    assert data.signature.classes == 64
    assert sorted(data.train.labels().tolist()) == tokens.tolist()
    assert any("tokens" in note for note in data.notes)
    mapped = load(save(**{**archive, "y": tokens % 4 + 3}))
    assert mapped.class_names == ("3", "5")


def test_test_arrays_are_the_servers_own(save):
    data = load(save(X=X, y=Y, client=CLIENT, X_test=X[:2], y_test=Y[:2]))
    assert np.array_equal(data.central.x, X[:2])
    assert data.central.y.tolist() == [0, 1]
    beside = load(save(X=X, y=Y, client=CLIENT), central_path=save("own.npz", X=X[:3], y=Y[:3]))
    assert len(beside.central.y) == 3


def test_without_clients_examples_are_dealt(save):
    path = save(x_train=X, y_train=Y)
    data = load(path, partition=Iid(clients=4))
    assert list(data.train.names)[:1] == ["client-000"]
    for partition in (None, Natural()):
        with pytest.raises(PlanError) as caught:
            load(path, partition=partition)
        assert caught.value.problems[0].path == "data.partition"


def test_a_partition_overrules_the_natural_clients(save):
    data = load(save(X=X, y=Y, client=CLIENT), partition=Shards(clients=2, per_client=1))
    assert data.train.sizes(np.arange(2)).tolist() == [4, 4]


def test_features_make_a_table_of_arrays(save, everything):
    x = X.astype(np.float64)
    x[0, 1] = np.nan
    features = Features(label="target", columns=(Column(name="x1", low=0, high=10), Column(name="x0")))
    data = load(save(X=x, y=Y, client=CLIENT), features)
    assert data.signature.shape == (2,)
    assert everything(data.train)[1][0].tolist() == [[4.0, 0.0], [4.0, 3.0]]
    named = load(save(X=x, y=Y, client=CLIENT, columns=np.array(["a", "b", "c"])), Features(label="target"))
    assert [column.name for column in named.features.columns] == ["a", "b", "c"]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int16"])
def test_mapped_arrays_read_like_those_in_memory(save, compressed, dtype):
    x = np.random.default_rng(0).integers(0, 200, size=(40, 5, 2)).astype(dtype)
    path = save(X=x, y=np.arange(40) % 3, client=np.arange(40) % 4, compressed=compressed)
    mapped, memory = (load(path, memory_map=choice, test_fraction=0.2) for choice in ("always", "never"))
    assert is_mapped(mapped.train.store.x)
    assert not is_mapped(memory.train.store.x)
    positions = np.array([[0, 3, -1], [2, 1, 0]])
    for a, b in zip(
        mapped.train.gather(np.array([3, 1]), positions), memory.train.gather(np.array([3, 1]), positions), strict=True
    ):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


def test_an_uncompressed_array_is_mapped_in_place_and_a_compressed_one_from_the_cache(save, cache):
    for compressed, files in ((False, 0), (True, 1), (True, 1)):
        path = Path(save(X=np.arange(1000.0), compressed=compressed))
        array = open_archive(path, "always").array("X")
        assert is_mapped(array)
        assert np.array_equal(array, np.arange(1000.0))
        assert len(list(cache.rglob("*"))) == (files + 1 if files else 0)


@pytest.fixture
def small_blocks(monkeypatch):
    for name in ("_REORDERED", "_BLOCK"):
        monkeypatch.setattr(f"hansa.data.archives.{name}", 1 << 16)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_fortran_ordered_array_is_mapped_without_being_read_whole(save, cache, small_blocks, compressed):
    x = np.asfortranarray(np.random.default_rng(0).integers(0, 9, size=(20_000, 10, 20)).astype(np.float32))
    path = save(X=x, y=np.arange(20_000) % 3, client=np.arange(20_000) % 4, compressed=compressed)
    for _ in range(2):
        tracemalloc.start()
        archive = open_archive(Path(path), "always")
        mapped = archive.array("X")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < x.nbytes / 8
        assert is_mapped(mapped)
        assert mapped.flags.c_contiguous
        assert np.array_equal(mapped, x)
        assert len(list(cache.rglob("*.npy"))) == 1
        assert len(list(cache.rglob("*"))) == 2
    mapped, memory = (load(path, memory_map=choice) for choice in ("always", "never"))
    assert mapped.sha256 == memory.sha256
    assert memory.train.store.x.flags.c_contiguous
    tracemalloc.start()
    mapped.train.gather(np.array([1]), np.array([[0, 1]]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_fortran_ordered_array_of_the_users_own_is_not_copied_at_each_gather():
    store = ArrayStore(np.asfortranarray(np.random.default_rng(0).normal(size=(50_000, 20)).astype(np.float32)), Y)
    rows = np.array([[3, 1], [0, 7]])
    tracemalloc.start()
    x, _ = store.take(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(x, store.x[rows])
    assert peak < 1 << 16


def test_the_cache_is_keyed_by_content(save, cache):
    for number in range(2):
        path = Path(save(X=np.full(1000, number), compressed=True))
        assert open_archive(path, "always").array("X")[0] == number
    assert len(list(cache.rglob("*.npy"))) == 2


def test_a_cache_that_cannot_be_written_is_named(save, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HANSA_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="HANSA_CACHE"):
        open_archive(Path(save(X=X, compressed=True)), "always").array("X")


def test_auto_maps_only_what_is_large(save, monkeypatch):
    path = Path(save(X=X))
    assert not is_mapped(open_archive(path).array("X"))
    monkeypatch.setattr("hansa.data.archives.LARGE", 10)
    assert is_mapped(open_archive(path).array("X"))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": Y}, "array 'X'"),
        ({"X": X}, "array 'y'"),
        ({"X": X, "y": Y[:5]}, "one length"),
        ({"X": X, "y": Y, "client": CLIENT[:3]}, "one length"),
        ({"X": np.where(X == 4, np.nan, X), "y": Y}, "Example 1"),
        ({"X": np.where(X == 4, np.inf, X), "y": Y}, "finite"),
        ({"X": X.astype(np.float64) * 1e300, "y": Y}, "finite"),
        ({"X": X.astype("U5"), "y": Y}, "X holds numbers"),
        ({"X": X, "y": Y * 0}, "has 1"),
        ({"X": X, "y": Y * 0 + 7}, "has 1"),
        ({"X": np.zeros((2000, 1)), "y": np.arange(2000)}, "has 2000"),
        ({"X": X, "y": Y, "X_test": X, "y_test": Y + 1}, "y_test.*'3'"),
        ({"X": X, "y": Y, "X_test": X, "y_test": np.array(["no", "yes"])[Y % 2]}, "y_test.*'no'"),
        ({"X": X, "y": np.array(["no", "yes"])[Y % 2], "X_test": X[:1], "y_test": np.array(["maybe"])}, "'maybe'"),
        ({"X": X, "y": np.where(Y == 2, np.nan, Y)}, "finite"),
        ({"X": X, "y": np.eye(3)[Y]}, "y is [8, 3]"),
        ({"X": X, "y": Y.astype(complex)}, "complex"),
        ({"X": X, "y": Y.astype("datetime64[s]")}, "datetime64"),
        ({"X": X[:0], "y": Y[:0]}, "no examples|examples"),
        ({"X": X.astype(object), "y": Y}, "object arrays"),
        ({"X": np.arange(24).reshape(8, 3), "y": Y, "vocabulary": np.int64(5)}, "tokens below 5"),
        ({"X": X, "y": Y, "vocabulary": np.array([1, 2])}, "one whole number"),
        ({"X": X, "y": Y, "X_test": X[:, :2], "y_test": Y}, "one shape"),
        ({"X": X, "y": Y, "X_test": X}, "y_test"),
        ({"X": X, "y": Y, "client": np.array(["a", ""] * 4)}, "names its client"),
    ],
)
def test_bad_arrays_are_refused_with_a_sentence(save, arrays, says):
    with pytest.raises(DataError, match=says.replace("[8", r"\[8")):
        load(save(**arrays), partition=None if "client" in arrays else Iid(clients=2))


@pytest.mark.parametrize("memory_map", ["always", "never"])
def test_object_arrays_are_never_unpickled(save, memory_map):
    with pytest.raises(DataError, match="object"):
        load(save(X=X.astype(object), y=Y), partition=Iid(clients=2), memory_map=memory_map)


def test_a_file_that_is_no_archive_is_refused(tmp_path, save):
    for name, content in (("text.npz", b"hello"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="npz"):
            load(str(tmp_path / name))
    whole = Path(save(X=X, y=Y, client=CLIENT, compressed=True)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-40])
    with pytest.raises(DataError):
        load(str(tmp_path / "cut.npz"))
    damaged = bytearray(whole)
    damaged[60:90] = b"\x00" * 30
    (tmp_path / "damaged.npz").write_bytes(bytes(damaged))
    with pytest.raises(DataError):
        load(str(tmp_path / "damaged.npz"))
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("readme.txt", "no arrays")
    with pytest.raises(DataError, match="no arrays"):
        load(str(tmp_path / "other.npz"))


@pytest.mark.parametrize("path", ["nowhere.npz", ".", "a\0b", "caf\udce9.npz"])
def test_a_path_without_a_file_is_missing(path):
    with pytest.raises(DataError) as caught:
        load(path)
    assert caught.value.code == "HANSA-DATA-MISSING"


def test_mnist_has_its_own_test_images(mnist_path):
    data = room.load(Data(source="mnist", path=mnist_path), None, 1)
    assert len(data.train.names) == 100
    assert data.signature.shape == (28, 28)
    assert data.central.x.shape == (10_000, 28, 28)
    assert data.train.store.x.dtype == np.uint8
    assert 0 <= data.central.x.min() <= data.central.x.max() <= 1


def test_mnist_refuses_other_images(save):
    for x, y in ((X, Y), (np.zeros((8, 28, 28), np.uint8), Y + 20), (np.zeros((8, 28, 28), np.uint8), Y[:3])):
        with pytest.raises(DataError):
            room.load(Data(source="mnist", path=save(x_train=x, y_train=y), partition=Iid(clients=2)), None, 0)
    flat = save(X=np.zeros((8, 784), np.uint8), y=Y)
    data = room.load(Data(source="mnist", path=flat, partition=Iid(clients=2)), None, 0)
    assert data.signature.shape == (28, 28)
    assert data.central is None
