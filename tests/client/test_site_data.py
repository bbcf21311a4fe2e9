from __future__ import annotations

import csv

import numpy as np
import pytest
from fake_server import PLAN, ROWS, SIGNATURE

from hansa.algorithms.plan import plan_from_mapping
from hansa.client.site_data import SiteData
from hansa.core.errors import DataError, PlanError
from hansa.core.nouns import Signature

FEATURES = plan_from_mapping(PLAN).features
SEED = b"s" * 32


def write(path, rows, header=("age", "dose", "ill")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def everything(datasets):
    size = int(datasets.sizes(np.array([0]))[0])
    return datasets.gather(np.array([0]), np.arange(size)[None])


def test_a_folder_has_a_training_and_a_test_part(data):
    examples = SiteData(data, SEED).examples(FEATURES, SIGNATURE)
    x, y = everything(examples.train)
    assert x[0, :2].tolist() == [[20.0, 0.0], [23.0, np.float32(0.37)]]
    assert y[0, :2].tolist() == [1, 1]
    assert everything(examples.test)[1].shape == (1, 7)


def test_missing_numbers_are_learned_from_the_training_part(tmp_path):
    write(tmp_path / "train.csv", [(10, 1, "no"), (30, 2, "yes"), ("", 3, "no")])
    write(tmp_path / "test.csv", [("", 1, "no"), (90, 1, "no")])
    examples = SiteData(tmp_path, SEED).examples(FEATURES, SIGNATURE)
    assert everything(examples.train)[0][0, 2, 0] == 20
    assert everything(examples.test)[0][0, 0, 0] == 20


def test_no_test_example_becomes_a_training_example_when_rows_come_and_move(tmp_path):
    rows = [(age, dose, "yes" if age % 2 else "no") for age in range(20, 60) for dose in (1, 2, 3)]
    site = SiteData(write(tmp_path / "all.csv", rows), SEED, test_fraction=0.3)

    def held_out():
        x, _ = everything(site.examples(FEATURES, SIGNATURE).test)
        return {tuple(row) for row in x[0].tolist()}

    before = held_out()
    assert 0.15 < len(before) / len(rows) < 0.45
    more = [*rows, *((age, dose, "no") for age in range(60, 70) for dose in (1, 2, 3)), *rows[:10]]
    more = [more[place] for place in np.random.default_rng(3).permutation(len(more))]
    write(tmp_path / "all.csv", more, header=("age", "dose", "ill"))
    after = held_out()
    assert before <= after
    assert all(age >= 60 for age, _ in after - before)
    other = SiteData(tmp_path / "all.csv", b"t" * 32, 0.3).examples(FEATURES, SIGNATURE)
    assert {tuple(row) for row in everything(other.test)[0][0].tolist()} != after


def test_a_file_that_changed_is_read_anew(data):
    site = SiteData(data, SEED)
    before = site.version()
    assert site.version() == before
    write(data / "train.csv", ROWS[:5])
    assert site.version() != before


@pytest.mark.parametrize("names", [[], ["train.csv", "train.npz"]])
def test_a_folder_without_the_one_training_file_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match="Keep one train"):
        SiteData(tmp_path, SEED).examples(FEATURES, SIGNATURE)


def test_data_that_do_not_fit_the_job_are_refused(data, tmp_path):
    with pytest.raises(DataError, match=r"shape \[2\], the job's have \[3\]"):
        SiteData(data, SEED).examples(FEATURES, Signature((3,), 2))
    with pytest.raises(DataError, match="no .features."):
        SiteData(data, SEED).examples(None, SIGNATURE)
    with pytest.raises(PlanError, match="no usable column 'dose'"):
        SiteData(write(tmp_path / "x.csv", [(1, "no")], ("age", "ill")), SEED).examples(FEATURES, SIGNATURE)
    with pytest.raises(DataError):
        SiteData(tmp_path / "none.csv", SEED).examples(FEATURES, SIGNATURE)
    open_features = plan_from_mapping({**PLAN, "features": {"label": "ill"}}).features
    with pytest.raises(DataError, match="leaves columns or classes open"):
        SiteData(data, SEED).examples(open_features, SIGNATURE)
    with pytest.raises(DataError, match="left to train on"):
        SiteData(write(tmp_path / "y.csv", [(1, 1, "no")]), SEED, 1 - 1e-18).examples(FEATURES, SIGNATURE)


def archive(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_arrays_need_no_features(tmp_path):
    x, y = np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10) % 2
    path = archive(tmp_path / "train.npz", X=x, y=y, X_test=x[:3], y_test=y[:3])
    examples = SiteData(tmp_path, SEED).examples(None, SIGNATURE)
    assert np.array_equal(everything(examples.train)[0][0], x)
    assert everything(examples.test)[1][0].tolist() == [0, 1, 0]
    archive(path, X=x, y=y)
    archive(tmp_path / "test.npz", X=x[:4], y=y[:4])
    assert everything(SiteData(tmp_path, SEED).examples(None, SIGNATURE).test)[1].shape == (1, 4)
    parts = SiteData(path, SEED, 0.5).examples(None, SIGNATURE)
    assert everything(parts.train)[1].shape[1] + everything(parts.test)[1].shape[1] == 10


def test_arrays_with_features_are_a_table(tmp_path):
    x, y = np.array([[20.0, 1.0], [np.nan, 2.0], [40.0, 3.0]]), np.array(["no", "yes", "no"])
    path = archive(tmp_path / "a.npz", X=x, y=y, columns=np.array(["age", "dose"]), X_test=x[:1], y_test=y[:1])
    examples = SiteData(path, SEED).examples(FEATURES, SIGNATURE)
    assert everything(examples.train)[0][0, 1, 0] == 30
    assert everything(examples.test)[1][0].tolist() == [0]


@pytest.mark.parametrize(
    ("y", "classes"), [([0, 1, 2], 2), ([-1, 0, 1], 2), ([0.5, 1, 0], 2), (["a", "b", "c"], 2), (["a", "b", "c"], 0)]
)
def test_labels_that_are_not_the_jobs_are_refused(tmp_path, y, classes):
    path = archive(tmp_path / "a.npz", X=np.zeros((3, 2), dtype=np.float32), y=np.array(y))
    with pytest.raises(DataError, match="label y"):
        SiteData(path, SEED).examples(None, Signature((2,), classes))


def test_tokens_must_be_of_the_jobs_vocabulary(tmp_path):
    path = archive(tmp_path / "a.npz", X=np.zeros((3, 2), dtype=np.int64), y=np.array([0, 1, 1]), vocabulary=5)
    with pytest.raises(DataError, match="5 tokens, the job 7"):
        SiteData(path, SEED).examples(None, Signature((2,), 2, integer_inputs=True, vocabulary=7))
    examples = SiteData(path, SEED).examples(None, Signature((2,), 2, integer_inputs=True, vocabulary=5))
    assert everything(examples.train)[0].dtype == np.int64


def test_a_function_of_the_sites_own_gives_arrays():
    def read(features, signature):
        assert features is FEATURES
        x = np.array([[20.0, 1.0], [np.nan, 2.0], [40.0, 3.0]], dtype=np.float32)
        return {"X": x, "y": [0, 1, 0], "X_test": x[:1], "y_test": [1]}

    examples = SiteData(read, SEED).examples(FEATURES, SIGNATURE)
    assert everything(examples.train)[0][0, 1, 0] == 30
    assert everything(examples.test)[1][0].tolist() == [1]
