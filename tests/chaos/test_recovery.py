"""What an operator sees of an outage: seconds."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from contextlib import ExitStack, contextmanager

import hansa
from hansa.simulation.preparation import prepare
from hansa.testing.audit import client_problems, problems, read_books
from hansa.testing.hospitals import POPULATION, finished, hospitals, model_of, small_plan, submit
from hansa.testing.network import Network
from hansa.testing.postgres import own_postgres

LONG = small_plan(name="long", rounds=400, evaluation={"every": 400, "metrics": ["auc"], "baselines": []})


def rounds_of(calls, run):
    return calls.get(f"/runs/{run}")["round"]


def until(condition, seconds=20.0):
    """Return how many seconds it took until a condition held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


def moves_on(calls, run):
    """Return how many seconds it took until another round was closed."""
    before = rounds_of(calls, run)
    return until(lambda: rounds_of(calls, run) > before)


def audited(federation, run, database=""):
    url = database or f"sqlite+aiosqlite:///{federation.local.folder / 'server' / 'hansa.sqlite'}"
    books = asyncio.run(read_books(url))
    found = list(problems(books[run]))
    for name in federation.sites:
        found += client_problems(federation.local.state(name), books)
    return found


def test_a_killed_server_goes_on_at_once_and_its_agents_come_back_within_seconds(tmp_path):
    with hospitals(tmp_path) as federation:
        federation.start()
        with federation.calls() as calls:
            run = submit(calls, LONG)
            until(lambda: rounds_of(calls, run) > 2)
            federation.local.kill("server")
            time.sleep(2.0)
            federation.local.start_server()
            assert moves_on(calls, run) < 8.0


def test_a_dead_client_is_noticed_by_the_deadline_and_the_run_goes_on(tmp_path):
    plan = small_plan(
        rounds=400,
        schedule={"kind": "sync", "report_goal": 3, "round_deadline": 1.5},
        cohort={"kind": "full"},
        devices={"preset": "hospitals"},
        evaluation={"every": 400, "metrics": ["auc"], "baselines": []},
    )
    with hospitals(tmp_path) as federation:
        federation.start()
        with federation.calls() as calls:
            run = submit(calls, plan)
            until(lambda: rounds_of(calls, run) > 2)
            federation.local.kill("Hungary")
            began = time.monotonic()
            moves_on(calls, run)
            moves_on(calls, run)
            assert time.monotonic() - began < 8.0
            newest = calls.get(f"/runs/{run}/rounds", limit=5)["rounds"]
            assert any(each["funnel"]["included"] == 3 for each in newest)


def test_an_agent_that_lost_its_folder_enrols_again_as_the_same_client_and_the_round_goes_on(tmp_path):
    with hospitals(tmp_path) as federation:
        federation.start()
        with federation.calls() as calls:
            run = submit(calls, LONG)
            until(lambda: rounds_of(calls, run) > 2)
            federation.local.kill("Cleveland")
            shutil.rmtree(federation.local.state("Cleveland"))
            clients = calls.get(f"/populations/{POPULATION}/clients")["clients"]
            lost = next(each["id"] for each in clients if each["name"] == "Cleveland")
            made = calls.call("POST", f"/populations/{POPULATION}/invitations", {"client": lost})
            federation.tokens["Cleveland"] = made["token"]
            federation.start_agent("Cleveland")
            assert moves_on(calls, run) < 10.0


@contextmanager
def two_replicas(folders, **settings):
    """Two replicas on PostgreSQL behind a proxy that leads to the first, and four agents: all running."""
    with ExitStack() as stack:
        database = stack.enter_context(own_postgres(folders.mktemp("pg")))
        federation = stack.enter_context(hospitals(folders.mktemp("f") / "f", database=database, **settings))
        local = federation.local
        local.start_server("first")
        local.start_server("second")
        federation.invite()
        network = stack.enter_context(Network(local.ports["first"], 1))
        for name in federation.sites:
            federation.start_agent(name, local.url_at(network.port))
        yield federation, network, database


def test_a_replica_is_killed_and_the_round_goes_on_at_the_other(tmp_path_factory):
    plan = small_plan(rounds=12)
    with two_replicas(tmp_path_factory, lease_seconds=2) as (federation, network, database):
        local = federation.local
        with federation.calls(local.url_at(local.ports["second"])) as calls:
            run = submit(calls, plan)
            until(lambda: rounds_of(calls, run) > 2)
            local.kill("first")
            network.lead_to(local.ports["second"])
            assert moves_on(calls, run) < 8.0
            found = finished(calls, run)
            prepared = prepare(plan)
            model = model_of(calls, prepared, found)
        local.close()
        assert audited(federation, run, database) == []
    simulated = hansa.run(plan, out=tmp_path_factory.mktemp("run") / "r", executor="serial")
    assert model == simulated.summary["model_sha256"]


def test_a_replica_that_is_told_to_stop_drains_and_the_other_takes_its_leases_at_once(tmp_path_factory):
    with two_replicas(tmp_path_factory, lease_seconds=3600) as (federation, network, _):
        local = federation.local
        with federation.calls(local.url_at(local.ports["second"])) as calls:
            run = submit(calls, LONG)
            until(lambda: rounds_of(calls, run) > 2)
            network.lead_to(local.ports["second"])
            began = time.monotonic()
            local.processes["first"].send_signal(signal.SIGTERM)
            local.processes["first"].wait(20)
            assert time.monotonic() - began < 5.0
            assert local.processes["first"].returncode == 0
            assert moves_on(calls, run) < 5.0
            assert not [each for each in calls.get(f"/runs/{run}/rounds", limit=1000)["rounds"] if each["attempt"] > 1]


def test_long_polls_end_at_once_when_a_server_is_told_to_stop(tmp_path):
    with hospitals(tmp_path) as federation:
        federation.start()
        time.sleep(2.0)
        began = time.monotonic()
        federation.local.stop("server")
        assert time.monotonic() - began < 5.0
        assert federation.local.processes["server"].returncode == 0
