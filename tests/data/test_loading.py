"""Loading as a whole: held-out clients, the digest, imputation after the split, large populations."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa import data as room
from hansa.core.errors import HansaError, PlanError
from hansa.core.sections import Column, Data, Features
from hansa.data.partitions import Dirichlet, Iid, Quantity, Shards

HEART = Data(source="heart", test_fraction=0.25, validation_fraction=0.1)


def test_parts_have_the_same_clients_and_share_no_example():
    data = room.load(replace(HEART, held_out_clients=1), None, 3)
    assert list(data.train.names) == list(data.validation.names) == list(data.test.names)
    assert len(data.held_out.names) == 1
    assert set(data.held_out.names).isdisjoint(data.train.names)
    parts = [set(part.rows.order.tolist()) for part in (data.train, data.validation, data.test, data.held_out)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 920


def test_the_server_can_stand_in_for_a_test_set_that_clients_hold(everything):
    plain = Data(source="heart", test_fraction=0.25)
    apart, pooled = room.load(plain, None, 0), room.load(replace(plain, test_at="server"), None, 0)
    x, y = (np.concatenate(found) for found in zip(*everything(apart.test), strict=True))
    assert pooled.test is None
    assert np.array_equal(pooled.central.x, x, equal_nan=True)
    assert np.array_equal(pooled.central.y, y)
    assert np.array_equal(pooled.train.rows.order, apart.train.rows.order)
    assert any("held out for testing" in note for note in pooled.notes)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Data(source="heart", test_at="server"), "data.test_fraction"),
        (Data(source="synthetic", test_fraction=0.2, test_at="server"), "of its own"),
    ],
)
def test_the_server_gets_test_examples_where_there_are_some_and_it_has_none(data, said):
    with pytest.raises(PlanError, match=said) as caught:
        room.load(data, None, 0)
    assert caught.value.problems[0].path == "data.test_at"


def test_held_out_clients_must_leave_one():
    with pytest.raises(PlanError) as caught:
        room.load(Data(source="heart", held_out_clients=4), None, 0)
    assert caught.value.problems[0].path == "data.held_out_clients"


def test_test_examples_never_tell_what_training_gaps_become(write, everything):
    def train(test_value):
        rows = [("a", "", 0), *(("a", value, 0) for value in (1, 2, 3, 4, 5, 6, 7))]
        lines = [f"{c},{v},{y}" for c, v, y in rows]
        features = Features(label="y", classes=("0", "1"), columns=(Column(name="x", low=-1e6, high=1e6),))
        path = write("t.csv", "c,x,y\n" + "\n".join(lines) + "\nb,1,1\n")
        data = room.load(Data(source="csv", path=path, client="c", test_fraction=0.5), features, 1)
        tested = data.test.rows.order[data.test.rows.order < 8]
        changed = [line if i not in tested else f"a,{test_value},0" for i, line in enumerate(lines)]
        path = write("t.csv", "c,x,y\n" + "\n".join(changed) + "\nb,1,1\n")
        data = room.load(Data(source="csv", path=path, client="c", test_fraction=0.5), features, 1)
        return everything(data.train)[0][0]

    assert np.array_equal(train(0), train(1000))


def test_the_digest_covers_what_a_run_can_read_and_no_path(table, tmp_path):
    plain = Data(source="csv", path=table, client="site", test_fraction=0.25)
    features = room.load(plain, Features(label="outcome"), 0).features
    moved = str(tmp_path / "elsewhere.csv")
    shutil.copy(table, moved)
    first = room.load(plain, features, 0).sha256
    assert first == room.load(plain, features, 0).sha256 == room.load(replace(plain, path=moved), features, 0).sha256
    changed = Path(moved)
    changed.write_text(changed.read_text().replace("30,no", "31,no"))
    others = [
        room.load(replace(plain, path=moved), features, 0),
        room.load(plain, features, 1),
        room.load(replace(plain, test_fraction=0.5), features, 0),
        room.load(replace(plain, test_at="server"), features, 0),
        room.load(replace(plain, validation_fraction=0.25), features, 0),
        room.load(replace(plain, held_out_clients=1), features, 0),
        room.load(replace(plain, central_path=table), features, 0),
        room.load(replace(plain, partition=Iid(clients=2)), features, 0),
        room.load(plain, replace(features, imputation="mean"), 0),
    ]
    digests = {first, *(each.sha256 for each in others)}
    assert len(digests) == len(others) + 1


@pytest.mark.parametrize("hash_seed", ["0", "5"])
def test_the_digest_is_the_same_in_another_process(save, tmp_path, hash_seed):
    for client in ("a", "b", "c"):
        save(f"folder/{client}.npz", X=np.eye(9), y=np.array(["x", "y", "z"] * 3))
    kinds = (Iid(clients=4), Dirichlet(clients=4, alpha=1.0), Shards(clients=4), Quantity(clients=4))
    plans = [
        replace(HEART, held_out_clients=1),
        Data(source="folder", path=str(tmp_path / "folder"), test_fraction=0.25, validation_fraction=0.2),
        *(replace(HEART, partition=kind) for kind in kinds),
    ]
    code = (
        "from hansa.data import load; from hansa.core.sections import Data;"
        "from hansa.data.partitions import Dirichlet, Iid, Quantity, Shards;"
        f"print(*(load(plan, None, 7).sha256 for plan in {plans!r}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [room.load(plan, None, 7).sha256 for plan in plans]


@pytest.mark.parametrize("seed", range(5))
def test_the_hospitals_keep_their_share_of_the_ill_in_the_test_part(seed):
    data = room.load(Data(source="heart", test_fraction=0.25), None, seed)
    trains, tests = (part.label_counts(2) for part in (data.train, data.test))
    assert (np.abs(tests - 0.25 * (trains + tests)) <= 1).all()


def test_a_large_population_gathers_in_microseconds(save):
    clients = 200_000
    rng = np.random.default_rng(0)
    owners = np.concatenate([np.arange(clients), rng.integers(0, clients, clients)])
    path = save(X=np.zeros((2 * clients, 2), np.float32), y=owners % 2, client=owners)
    data = room.load(Data(source="npz", path=path, test_fraction=0.25), None, 0)
    assert len(data.train.names) == clients
    ordinals, positions = rng.integers(0, clients, 1000), np.zeros((1000, 1), np.int64)
    started = time.perf_counter()
    for _ in range(20):
        data.train.gather(ordinals, positions)
        data.train.sizes(ordinals)
    assert (time.perf_counter() - started) / 20 < 0.01


noise = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet='ab1,;\t"\n\r.-?NA', max_size=200).map(lambda text: f"site,age,y\n{text}".encode()),
    st.text(max_size=100).map(lambda text: f"site,age,y\n{text}".encode("utf-8", "surrogatepass")),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise, st.sampled_from(["csv", "npz", "parquet", "mnist"]))
def test_whatever_a_file_holds_the_answer_is_data_or_an_error_with_a_code(tmp_path, content, source):
    path = tmp_path / "noise"
    path.write_bytes(content)
    table = source in ("csv", "parquet")
    settings = {"client": "site"} if table else {}
    with contextlib.suppress(HansaError):
        room.load(Data(source=source, path=str(path), **settings), Features(label="y") if table else None, 0)
