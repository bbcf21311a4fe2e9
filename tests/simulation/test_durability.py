"""What a round leaves behind: nothing is lost to kill -9, little to a power cut, and nothing costs the population."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hansa
from hansa.core.errors import RunError
from hansa.simulation import checkpoint as checkpoint_module
from hansa.simulation import client_store as store_module
from hansa.simulation import participation as participation_module
from hansa.simulation.client_store import ClientStore
from hansa.simulation.participation import Participation
from hansa.simulation.row_file import RowFile

SMALL = {
    "name": "small",
    "seed": 1,
    "rounds": 8,
    "data": {
        "source": "synthetic",
        "arguments": {"clients": 9, "features": 4, "classes": 3, "mean_size": 8, "size_sigma": 0.4},
    },
    "model": {"factory": "hansa.training.linear:softmax"},
    "trainer": {"kind": "linear", "epochs": 1, "batch_size": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
    "cohort": {"kind": "min-separation", "size": 3, "rounds": 2},
    "evaluation": {"every": 3},
}

KILLED = """
import os, signal, sys
import hansa
from hansa.simulation import client_store

left = int(sys.argv[3])
client_store._SECONDS = float(sys.argv[4])

def deadly(call):
    def wrapped(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return wrapped

for name in ("write", "pwrite", "fsync", "rename", "replace", "ftruncate", "truncate", "unlink"):
    setattr(os, name, deadly(getattr(os, name)))
hansa.run(hansa.read_plan(sys.argv[1]), out=sys.argv[2])
print("finished")
"""


def plan_of(method, **changes):
    settings = {**SMALL, **changes}
    return hansa.recipe(
        method, **{key: value for key, value in settings.items() if (method, key) != ("fedbuff", "cohort")}
    )


@pytest.mark.parametrize(
    ("method", "seconds", "step"), [("scaffold", 1.0, 11), ("scaffold", 0.0, 29), ("fedavg", 1.0, 5)]
)
def test_a_process_killed_at_any_call_goes_on_to_the_same_model(method, seconds, step, tmp_path):
    plan = plan_of(method)
    whole = hansa.run(plan, out=tmp_path / "whole").summary
    (tmp_path / "plan.toml").write_text((tmp_path / "whole" / "plan.toml").read_text())
    calls, finished, resumed = 17, False, 0
    while not finished:
        out = tmp_path / f"killed-{calls}"
        command = [sys.executable, "-c", KILLED, str(tmp_path / "plan.toml"), str(out), str(calls), str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        finished = done.returncode == 0
        assert finished or done.returncode == -signal.SIGKILL, done.stderr
        if not finished and (out / "replay.json").exists() and (out / "checkpoint").exists():
            assert hansa.resume(out).summary["model_sha256"] == whole["model_sha256"]
            resumed += 1
        calls += step
    assert resumed >= 3


def after_a_power_cut(run, cut):
    """Leave in ``cut`` what is on disk if only what was brought there is, and the rest is as bad as can be."""
    shutil.copytree(run, cut)
    work = cut / "checkpoint"
    for path in work.glob("latest-*.safetensors"):
        path.write_bytes(b"\0" * 100)
    with (cut / "metrics.jsonl").open("ab") as file:
        file.write(b"\0" * 50)


BUFFERED = {"buffer_size": 2, "concurrency": 4, "devices": {"preset": "hospitals"}, "rounds": 20}


@pytest.mark.parametrize(
    ("method", "more"), [("scaffold", {}), ("fedavg", {}), ("fedprox", {}), ("fedbuff", BUFFERED)], ids=str
)
@pytest.mark.parametrize("last", [3, 5, 8])
def test_a_power_cut_loses_the_rounds_since_the_last_visit_to_the_disk_only(method, more, last, tmp_path, monkeypatch):
    plan = plan_of(method, **more)
    whole = hansa.run(plan, out=tmp_path / "whole").summary
    visited = 2
    monkeypatch.setattr(store_module, "_SECONDS", 1e9)

    def cut(event):
        if event["event"] == "round":
            monkeypatch.setattr(store_module, "_SECONDS", 0.0 if event["round"] == visited - 1 else 1e9)
            if event["round"] == last:
                after_a_power_cut(tmp_path / "run", tmp_path / "cut")

    hansa.run(plan, out=tmp_path / "run", callbacks=[cut])
    rounds = []
    note = [lambda event: rounds.append(event["round"]) if event["event"] == "round" else None]
    assert hansa.resume(tmp_path / "cut", callbacks=note).summary["model_sha256"] == whole["model_sha256"]
    assert visited < rounds[0] <= last


def test_the_latest_checkpoint_counts_only_until_the_machine_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_SECONDS", 1e9)
    rounds = []

    def stop(event):
        if event["event"] == "round" and event["round"] == 5:
            shutil.copytree(tmp_path / "run", tmp_path / "same")
            shutil.copytree(tmp_path / "run", tmp_path / "other")

    plan = plan_of("fedavg", cohort={"kind": "uniform", "size": 3})
    whole = hansa.run(plan, out=tmp_path / "run", callbacks=[stop]).summary
    note = [lambda event: rounds.append(event["round"]) if event["event"] == "round" else None]
    assert hansa.resume(tmp_path / "same", callbacks=note).summary["model_sha256"] == whole["model_sha256"]
    assert rounds == [6, 7, 8]
    rounds.clear()
    monkeypatch.setattr(checkpoint_module, "boot", lambda: "another")
    assert hansa.resume(tmp_path / "other", callbacks=note).summary["model_sha256"] == whole["model_sha256"]
    assert rounds == [1, 2, 3, 4, 5, 6, 7, 8]  # round 0 was brought to disk, the others were not


@pytest.mark.parametrize("newer", ["whole", "damaged", "none"])
def test_a_damaged_checkpoint_ends_a_run_only_where_no_newer_one_is_whole(newer, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_SECONDS", 1e9)

    def stop(event):
        if event["event"] == "round" and event["round"] == 5:
            shutil.copytree(tmp_path / "run", tmp_path / "cut")

    plan = plan_of("fedavg", cohort={"kind": "uniform", "size": 3})
    whole = hansa.run(plan, out=tmp_path / "run", callbacks=[stop]).summary
    work = tmp_path / "cut" / "checkpoint"
    (latest,) = work.glob("latest-*")
    (work / "checkpoint.safetensors").write_bytes(b"damaged")
    if newer == "whole":
        assert hansa.resume(tmp_path / "cut").summary["model_sha256"] == whole["model_sha256"]
        return
    if newer == "none":
        latest.unlink()
    else:
        latest.write_bytes(b"damaged too")
    with pytest.raises(RunError, match="checkpoint.safetensors cannot be read"):
        hansa.resume(tmp_path / "cut")


def counted(monkeypatch):
    calls = {"fsync": 0, "bytes": 0}

    def count(name, call):
        def wrapped(*arguments):
            calls[name] += 1
            return call(*arguments)

        return wrapped

    monkeypatch.setattr(os, "fsync", count("fsync", os.fsync))
    return calls


@pytest.mark.parametrize("machine", ["named", "unnamed"])
def test_the_disk_is_visited_once_a_second_or_every_round_on_a_machine_without_a_name(machine, tmp_path, monkeypatch):
    if machine == "unnamed":
        monkeypatch.setattr(store_module, "boot", str)
    visits = []
    make_durable = store_module.make_durable
    monkeypatch.setattr(
        store_module, "make_durable", lambda *paths: visits.append(time.monotonic()) or make_durable(*paths)
    )
    plan = plan_of("fedavg", rounds=30, cohort={"kind": "uniform", "size": 3}, evaluation={"every": 30})
    began = time.monotonic()
    hansa.run(plan, out=tmp_path / "run")
    spent = time.monotonic() - began
    if machine == "unnamed":
        assert len(visits) == 31
    else:
        assert len(visits) <= 2 + spent


def test_a_round_brings_nothing_to_disk_between_visits(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_SECONDS", 1e9)
    calls = counted(monkeypatch)
    found = []
    callbacks = [lambda event: found.append(calls["fsync"]) if event["event"] == "round" else None]
    plan = plan_of("fedavg", cohort={"kind": "uniform", "size": 3}, evaluation={"every": 1})
    hansa.run(plan, out=tmp_path / "run", callbacks=callbacks)
    assert found == [found[0]] * 8


def test_a_rounds_log_has_the_bytes_of_its_cohort_whatever_the_population(tmp_path):
    for clients in (10**3, 10**12):
        folder = tmp_path / str(clients)
        folder.mkdir()
        participation = Participation(folder, clients)
        for number in (1, 2):
            cohort = np.arange(100) * (clients // 100)
            participation.record(number, cohort)
            participation.apply(number, cohort)
        assert (folder / "cohorts.log").stat().st_size == 2 * 8 * 102
        participation.fold()
        participation.close()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_participation_is_that_of_the_closed_rounds(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("log")
    clients = data.draw(st.integers(1, 12))
    last, times = np.full(clients, -1), np.zeros(clients, dtype=np.int64)
    participation = Participation(folder, clients)
    everyone = np.arange(clients)
    rounds = data.draw(st.integers(1, 8))
    for number in range(1, rounds + 1):
        cohort = np.array(data.draw(st.lists(st.integers(0, clients - 1), unique=True)), dtype=np.int64)
        participation.record(number, cohort)
        what = data.draw(st.sampled_from(["closes", "is asked", "is killed before it closes", "is folded", "is torn"]))
        if what in {"is killed before it closes", "is torn"}:
            if what == "is torn":
                with (folder / "cohorts.log").open("ab") as file:
                    file.write(b"\1" * data.draw(st.integers(1, 30)))
            participation.close()
            participation = Participation(folder, clients)
            participation.restore(number - 1)
            participation.record(number, cohort)
        participation.apply(number, cohort)
        last[cohort] = number
        times[cohort] += 1
        if what == "is folded":
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(participation_module, "_SHORTEST", 0)
                patched.setattr(participation_module, "_TABLES", 0)
                participation.fold()
        if what != "closes":
            assert participation.times(everyone).tolist() == times.tolist()
    participation.close()
    participation = Participation(folder, clients)
    participation.restore(rounds)
    assert participation.last_round(everyone).tolist() == last.tolist()
    assert participation.times(everyone).tolist() == times.tolist()
    participation.close()


def test_states_of_a_population_beyond_memory_take_the_room_of_the_cohorts(tmp_path):
    clients, row = 10**6, np.zeros(10**5, dtype=np.float32)  # 400 GB, twice
    (tmp_path / "checkpoint").mkdir()
    store = ClientStore(tmp_path / "checkpoint", range(clients), {"control": row})
    first = np.random.default_rng(0).choice(np.arange(1, clients - 1), 20, replace=False)
    second = np.concatenate([first[:10], [0, clients - 1]])
    for number, cohort, before in ((1, first, np.zeros(20)), (2, second, [*first[:10], 0, 0])):
        assert (store.states(cohort)["control"][:, 0] == before).all()
        journal = store.journal(number, cohort)
        journal.write(0, {"control": np.broadcast_to(cohort[:, None], (len(cohort), len(row))).astype(np.float32)})
        journal.close()
        store.apply(number, cohort)
    found = [path.stat() for path in (tmp_path / "checkpoint").glob("control.*.rows")]
    assert max(each.st_size for each in found) > 300e9
    assert sum(each.st_blocks * 512 for each in found) < 32 * row.nbytes * 1.2
    store.close()


@settings(max_examples=60, deadline=None)
@given(
    places=st.lists(st.integers(0, 40), unique=True, min_size=1),
    shape=st.sampled_from([(), (3,), (2, 2), (0,)]),
    kind=st.sampled_from(["float32", "int64", "bool"]),
)
def test_rows_are_read_as_they_were_written_and_zeros_elsewhere(tmp_path_factory, places, shape, kind):
    file = RowFile(tmp_path_factory.mktemp("rows") / "file", np.zeros(shape, dtype=kind))
    rows = np.random.default_rng(0).integers(0, 100, size=(len(places), *shape)).astype(kind)
    file.write(np.array(places), rows, np.arange(len(places)))
    found = np.ones((42, *shape), dtype=kind)
    file.read(np.arange(42), found, np.arange(42))
    expected = np.zeros_like(found)
    expected[places] = rows
    np.testing.assert_array_equal(found, expected)
    file.close()


def test_rows_side_by_side_are_one_call(tmp_path, monkeypatch):
    calls = []
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda *arguments: calls.append("w") or pwrite(*arguments))
    monkeypatch.setattr(os, "preadv", lambda *arguments: calls.append("r") or preadv(*arguments))
    file = RowFile(tmp_path / "file", np.zeros(5))
    file.write(np.arange(100), np.ones((100, 5)), np.arange(100))
    rows = np.zeros((100, 5))
    file.read(np.arange(100), rows, np.arange(100))
    assert calls == ["w", "r"]
    assert (rows == 1).all()
    file.close()


def test_a_state_that_the_disk_counts_on_is_not_written_over(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_SECONDS", 1e9)
    brought = []
    (tmp_path / "checkpoint").mkdir()
    store = ClientStore(tmp_path / "checkpoint", ["a", "b", "c"], {"own": np.zeros(2)})
    store.restore(0)
    store._brought = time.monotonic()
    monkeypatch.setattr(store, "bring_to_disk", lambda: brought.append(store._participation.round))
    for number, cohort in enumerate([[0], [1], [0, 2]], start=1):
        journal = store.journal(number, np.array(cohort))
        journal.write(0, {"own": np.full((len(cohort), 2), number)})
        journal.close()
        store.apply(number, np.array(cohort))
    assert brought == [2]
    assert store.states(np.arange(3))["own"][:, 0].tolist() == [3, 2, 3]
    monkeypatch.undo()
    store.close()


def test_a_disk_that_fails_between_visits_is_an_error_with_a_code(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    def break_it(event):
        if event["event"] == "round" and event["round"] == 4:
            monkeypatch.setattr("hansa.simulation.participation.write_all", full)

    plan = plan_of("fedavg")
    whole = hansa.run(plan, out=tmp_path / "whole").summary
    with pytest.raises(RunError) as caught:
        hansa.run(plan, out=tmp_path / "run", callbacks=[break_it])
    assert caught.value.code == "HANSA-RUN-STORAGE"
    assert "The last closed round is kept" in caught.value.found
    monkeypatch.undo()
    assert hansa.resume(tmp_path / "run").summary["model_sha256"] == whole["model_sha256"]
