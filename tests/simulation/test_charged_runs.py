"""Runs that are charged to a ledger: refused before any training, secret noise, one committed row for each model."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tests.simulation.test_private_runs import COMMON, MECHANISMS, PRIVATE, SECURE, events_of

import hansa
from hansa.algorithms.plan import plan_from_mapping
from hansa.core.clock import SystemClock
from hansa.core.errors import HansaError
from hansa.governance.ledger import StoreLedger, all_rows
from hansa.simulation.charge import TENANT
from hansa.store.store import Store

FULL = {"cohort": {"kind": "full"}, "aggregator": {"kind": "fixed-mean", "divisor": 40}, "privacy": PRIVATE}
"""Everybody in every round: each round is a release of its own."""


@pytest.fixture(autouse=True)
def _working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def plan_of(*changes):
    tables = dict(COMMON)
    for change in changes:
        tables |= change
    return plan_from_mapping(tables)


def run(*changes, budget=100.0, scope="wards", executor="serial", **how):
    ledger = hansa.LedgerFile(path="ledger.sqlite", scope=scope, budget=budget, actor="ada")
    return hansa.run(plan_of(*changes), executor=executor, ledger=ledger, **how)


def books(scope="wards"):
    """The rows of a scope, after its chain and its account were verified."""

    async def read():
        store = await Store.open("sqlite+aiosqlite:///ledger.sqlite")
        try:
            async with store.reading() as rows:
                tenant = await rows.tenants.named(TENANT)
                found = await rows.ledger.named(tenant.id, scope)
                rows_ = await all_rows(rows, found) if found else []
            if found:
                await StoreLedger(store, tenant.id, SystemClock()).verify(scope)
            return [(row.kind, json.loads(row.content)) for row in rows_]
        finally:
            await store.close()

    return asyncio.run(read())


def kinds(scope="wards"):
    return [kind for kind, _ in books(scope)]


def refused(code, work, *arguments, **how):
    with pytest.raises(HansaError) as caught:
        work(*arguments, **how)
    assert caught.value.code == code
    return str(caught.value)


def test_each_round_is_reserved_before_the_first_and_committed_with_its_model():
    seen = []
    result = run(FULL, callbacks=[lambda event: seen.append((event["event"], kinds())) if "round" in event else None])
    first = next(told for kind, told in seen if kind == "evaluation")
    assert first == ["limit", *["reserve"] * 4]
    after = [told.count("commit") for kind, told in seen if kind == "round"]
    assert after == [1, 2, 3, 4], "committed before it is told"
    found = books()
    assert [kind for kind, _ in found] == ["limit", *["reserve"] * 4, *["commit"] * 4]
    assert found[-1][1]["released"] == result.summary["model_sha256"]
    assert found[-1][1]["cohort_actual"] == 40
    assert found[-1][1]["epsilon_charged"] <= 8.0 < found[-1][1]["epsilon_charged"] * 1.01
    assert found[1][1]["actor"] == "ada"


@pytest.mark.parametrize("mechanism", ["gaussian", "banded-matrix", "tree", "distributed"])
def test_a_run_that_is_one_release_is_one_reservation_with_a_row_for_each_model(mechanism):
    result = run(MECHANISMS[mechanism])
    found = books()
    assert [kind for kind, _ in found] == ["limit", "reserve", "commit", *["row"] * 4]
    assert [row["noise_row"] for kind, row in found if kind == "row"] == [0, 1, 2, 3]
    assert found[-1][1]["released"] == result.summary["model_sha256"]


def test_what_would_overdraw_ends_before_any_training_with_both_numbers_and_changes_nothing():
    run(FULL, budget=9.0, out="one")
    seen, before = [], books()
    said = refused("HANSA-BUDGET-OVERDRAWN", run, FULL, budget=9.0, out="two", callbacks=[seen.append])
    assert "charged" in said
    assert "reference" in said
    assert "9" in said
    assert seen == []
    assert not Path("two").exists()
    assert books() == before
    again = run(FULL, budget=20.0, out="two").summary["privacy"]["ledger"]
    assert again["limit"] == 20.0
    assert 8.0 < again["epsilon_charged"] < 16.0
    assert again["remaining"] == pytest.approx(20.0 - again["epsilon_charged"])


def test_a_new_scope_needs_a_budget_and_an_old_one_keeps_its_guarantee():
    assert "--budget" in refused("HANSA-BUDGET-MISSING", run, FULL, budget=None)
    run(FULL, out="one")
    assert run(FULL, budget=None).summary["privacy"]["ledger"]["limit"] == 100.0
    other = {"privacy": PRIVATE | {"adjacency": "replace-one"}}
    refused("HANSA-BUDGET-SCOPE", run, FULL, other, budget=None)
    run(FULL, other, scope="another")
    assert kinds("another").count("commit") == 4


def test_the_end_of_a_charged_run_does_not_follow_examples_that_clients_held_out():
    dealt = {"source": "digits", "partition": {"kind": "iid", "clients": 40}}
    held_out = {"data": dealt | {"test_fraction": 0.2, "test_at": "server"}}
    watching = {"stopping": {"metric": "central.accuracy", "patience": 1}}
    with pytest.raises(HansaError, match="data.test_at lets examples"):
        run(FULL, held_out, watching)
    assert not Path("ledger.sqlite").exists()


def test_a_plan_without_privacy_and_a_file_that_is_no_ledger_are_refused(tmp_path):
    bare = {key: value for key, value in COMMON.items() if key != "privacy"}
    with pytest.raises(HansaError, match="add \\[privacy\\]"):
        hansa.run(plan_from_mapping(bare), ledger=hansa.LedgerFile(path="ledger.sqlite", budget=1.0))
    (tmp_path / "text").write_text("no database" * 1000)
    for path in ("text", "absent/ledger.sqlite"):
        refused("HANSA-DATA-MISSING", hansa.run, plan_of(FULL), ledger=hansa.LedgerFile(path=path, budget=100.0))
    assert not Path("runs").exists()


def test_what_cannot_begin_is_given_back():
    Path("taken").mkdir()
    refused("HANSA-RUN-FOLDER", run, FULL, out="taken")
    assert kinds() == ["limit", *["reserve"] * 4, *["void"] * 4]
    assert books()[-1][1]["epsilon_charged"] == 0.0
    refused("HANSA-RUN-FOLDER", run, out="taken")
    assert kinds()[-2:] == ["reserve", "void"]


def test_rounds_that_a_run_ends_without_are_given_back():
    run(FULL, callbacks=[lambda event: event["event"] == "round" and event["round"] == 2])
    assert kinds() == ["limit", *["reserve"] * 4, *["commit"] * 2, *["void"] * 2]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_noise_of_a_charged_run_does_not_follow_from_the_seed(mechanism):
    seeded = hansa.run(plan_of(MECHANISMS[mechanism]), executor="serial").summary["model_sha256"]
    found = [run(MECHANISMS[mechanism], out=name).summary["model_sha256"] for name in ("one", "two")]
    assert len({seeded, *found}) == 3


def test_cohorts_that_the_epsilon_counts_on_are_secret():
    sizes = [
        [event["cohort"] for event in events_of(run(MECHANISMS["poisson"], {"rounds": 8}, out=name))
         if event["event"] == "round"]
        for name in ("one", "two")
    ]  # fmt: skip
    assert sizes[0] != sizes[1]


def test_clients_in_worker_processes_draw_their_own_noise_and_never_see_the_servers_key():
    change = MECHANISMS["distributed"]
    first, second = (
        run(change, out=name, executor="process", workers=2, chunk=4).summary["model_sha256"] for name in ("one", "two")
    )
    assert first != second


def test_the_protocols_machines_sum_the_shares_of_secret_noise():
    exact = {"secure_aggregation": SECURE | {"mode": "exact"}, "privacy": PRIVATE | {"noise_by": "clients"}}
    run(exact)
    assert kinds().count("row") == 4


def test_the_summary_and_the_report_say_that_it_is_charged_and_what_remains():
    result = run(FULL)
    told = result.summary["privacy"]
    assert "hypothetical: this" not in told["meaning"]
    assert told["meaning"].startswith("charged, not hypothetical: the scope 'wards'")
    assert told["ledger"]["remaining"] == pytest.approx(92.0, abs=0.1)
    report = result.report.read_text()
    assert "the scope &#39;wards&#39;" in report or "the scope 'wards'" in report
    assert "protects nobody, and charges no ledger" not in report


def test_a_charged_run_is_not_replayed_and_changed_files_are_named():
    result = run(FULL)
    assert "operating system" in refused("HANSA-RUN-SECRET", hansa.replay, result.path)
    (result.path / "plan.toml").write_text("rounds = 1\n")
    assert hansa.replay(result.path).changed == ("plan.toml",)


def test_nothing_secret_is_in_the_run_folder_while_it_goes_on(monkeypatch):
    keys = []
    monkeypatch.setattr("hansa.simulation.charge.fresh_key", lambda: keys.append(os.urandom(32)) or keys[0])
    run(MECHANISMS["banded-matrix"], out="one", callbacks=[lambda _: holds(keys[0])])
    assert len(keys) == 1


def holds(key):
    for path in filter(Path.is_file, Path("one").rglob("*")):
        content = path.read_bytes()
        assert key not in content
        assert key.hex().encode() not in content


ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
DYING = """
import os, signal, sys, hansa
from tests.simulation.test_charged_runs import run, FULL, MECHANISMS
def die(event):
    if event["event"] == "round" and event["round"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
run(FULL if sys.argv[1] == "full" else MECHANISMS[sys.argv[1]], out="dead", callbacks=[die])
"""


def killed(which):
    died = subprocess.run([sys.executable, "-c", DYING, which], env=ENVIRONMENT, check=False)
    assert died.returncode == -signal.SIGKILL


def test_independent_noise_goes_on_after_a_kill_and_each_model_is_committed_once():
    killed("full")
    assert kinds() == ["limit", *["reserve"] * 4, *["commit"] * 2]
    result = hansa.resume("dead")
    assert kinds() == ["limit", *["reserve"] * 4, *["commit"] * 4]
    assert books()[-1][1]["released"] == result.summary["model_sha256"]
    assert result.summary["privacy"]["ledger"]["remaining"] == pytest.approx(92.0, abs=0.1)


def test_a_round_that_was_released_is_not_released_again_with_other_noise():
    """As after a power cut, which loses the last checkpoints: the ledger is on disk before them."""
    killed("full")
    Path("dead").rename("first")
    shutil.copytree("first", "second")
    hansa.resume("first")
    refused("HANSA-BUDGET-SETTLED", hansa.resume, "second")
    assert kinds() == ["limit", *["reserve"] * 4, *["commit"] * 4]


def test_correlated_noise_ends_with_its_process():
    killed("banded-matrix")
    said = refused("HANSA-RUN-SECRET", hansa.resume, "dead")
    assert "kept nowhere" in said
    assert kinds() == ["limit", "reserve", "commit", "row", "row"]


def test_two_processes_do_not_overdraw_one_scope():
    run(FULL, budget=9.0, out="zero", callbacks=[lambda _: True])
    code = "from tests.simulation.test_charged_runs import *; run(FULL, budget=None, out=sys.argv[1])"
    both = [subprocess.Popen([sys.executable, "-c", code, name], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
            for name in ("one", "two")]  # fmt: skip
    said = [each.communicate()[1] for each in both]
    assert sorted(each.returncode for each in both) == [0, 1]
    assert sum("HANSA-BUDGET-OVERDRAWN" in text or "cost at most epsilon" in text for text in said) == 1
    assert books()[-1][1]["epsilon_charged"] <= 9.0


def test_a_notebook_that_has_an_event_loop_may_charge_too():
    async def notebook():
        return run(FULL).summary["privacy"]["ledger"]["scope"]

    assert asyncio.run(notebook()) == "wards"


def test_amplification_is_refused_where_fewer_can_be_reached_than_are_counted_on():
    devices = {"devices": {"preset": "hospitals"}, "schedule": {"kind": "sync", "round_deadline": 60.0}}
    refused("HANSA-BUDGET-CLAIM", run, MECHANISMS["poisson"], devices)
    assert not Path("ledger.sqlite").exists()


def test_the_file_is_private():
    run(FULL)
    assert Path("ledger.sqlite").stat().st_mode & 0o077 == 0
    with sqlite3.connect("ledger.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM ledger_rows").fetchone()[0] == 9
