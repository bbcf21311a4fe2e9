"""Four hospitals, a server and an authority as processes over TLS: what they give, and what without it nobody gives.

As in the tests of decryptors, clients round by the coins of the seed, so that the model is the simulation's.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from base64 import b64encode

import pytest
from tests.system.test_decryptors import simulated
from tests.system.test_secure_bytes import SECURE

from hansa.client.state import DECLINED
from hansa.simulation.preparation import prepare
from hansa.testing.hooks import SEEDED, hooks
from hansa.testing.hospitals import finished, model_of, small_plan, submit
from hansa.testing.services import hospitals_with, start

NOTARY = {"notary": "authority"}
LYING = """
import hansa.server.authority_calls as authority_calls
from hansa.secagg.keys import sign

async def vouched(self, authority, task, identities):
    return sign(self.signer, "roster", *task.registered)

authority_calls.AuthorityCalls.vouched = vouched
"""


def plan_of(services, **more):
    section = {"phase_deadline": 30.0, **SECURE, **services.of_a_plan, **more.pop("section", {})}
    return small_plan(**{
        "name": "vouched", "rounds": 2, "secure_aggregation": section,
        "evaluation": {"every": 1, "metrics": ["auc"], "baselines": []}, **more,
    })  # fmt: skip


def command(*words):
    line = [sys.executable, "-P", "-c", "from hansa.cli.main import main; main()", *map(str, words)]
    done = subprocess.run(line, timeout=60, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip()


def until(found, seconds=60.0):
    ends = time.monotonic() + seconds
    while not (what := found()):
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.05)
    return what


def abandoned(calls, run):
    return [each["detail"]["why"] for each in calls.get(f"/runs/{run}/events", limit=1000)["events"]
            if each["kind"] == "round.abandoned"]  # fmt: skip


def closed(calls, run):
    return [each for each in calls.get(f"/runs/{run}/rounds", limit=1000)["rounds"] if each["state"] == "closed"]


@pytest.mark.slow
def test_a_full_graph_under_an_authority_learns_what_its_simulation_does_bit_for_bit(tmp_path):
    with hospitals_with(tmp_path, NOTARY) as (federation, services):
        local, plan = federation.local, plan_of(services)
        start(federation, services, agents=hooks(tmp_path, SEEDED))
        with federation.calls() as calls:
            run = finished(calls, submit(calls, plan), seconds=60)
            model = model_of(calls, prepare(plan), run)
        log = local.log("notary")
    assert model == simulated(plan, tmp_path / "run")
    assert log.count("call answered") >= 2, "a roster for each sum"
    assert not any(key in log or name in log for name, key in local.peers(federation.sites).items())


@pytest.mark.slow
def test_killed_and_started_again_the_authority_vouches_and_the_run_goes_on(tmp_path):
    with hospitals_with(tmp_path, NOTARY) as (federation, services):
        local, plan = federation.local, plan_of(services, rounds=3)
        start(federation, services, agents=hooks(tmp_path, SEEDED))
        local.kill("notary")
        with federation.calls() as calls:
            run = submit(calls, plan)
            until(lambda: "HANSA-AUTHORITY-UNREACHABLE" in local.log("server"))
            assert closed(calls, run) == []
            services["notary"].start(local)
            until(lambda: closed(calls, run))
            local.kill("notary")
            services["notary"].start(local)
            found = finished(calls, run, seconds=60)
            model = model_of(calls, prepare(plan), found)
    assert model == simulated(plan, tmp_path / "run")


@pytest.mark.slow
def test_a_hospital_that_is_not_vouched_for_is_in_no_sum_until_it_is(tmp_path):
    with hospitals_with(tmp_path, NOTARY) as (federation, services):
        local, plan = federation.local, plan_of(services)
        *known, unknown = federation.sites
        status, key = command("client", "key", "--state", local.state(unknown))
        assert status == 0
        start(federation, services, known)
        with federation.calls() as calls:
            run = submit(calls, plan)
            why = until(lambda: abandoned(calls, run))[0]
            assert "the authority does not vouch for the roster" in why
            assert "HANSA-AUTHORITY-STRANGER" in why
            assert closed(calls, run) == []
            own = ("--folder", services["notary"].own.place)
            assert command("authority", "vouch", key, *own, "--comment", unknown)[0] == 0
            finished(calls, run, seconds=60)
            log = local.log("notary")
            assert "HANSA-AUTHORITY-STRANGER" in log
            assert key not in log
            assert unknown not in log
            assert command("authority", "withdraw", key, *own)[0] == 0
            second = submit(calls, plan_of(services, name="after it was taken off"))
            until(lambda: abandoned(calls, second))
            assert closed(calls, second) == []


def test_a_server_that_signs_the_roster_itself_gets_nothing_of_anybody(tmp_path):
    with hospitals_with(tmp_path, NOTARY) as (federation, services):
        local = federation.local
        start(federation, services, known=[], server=hooks(tmp_path, LYING))
        with federation.calls() as calls:
            run = submit(calls, plan_of(services))
            for name in federation.sites:
                path = local.state(name) / DECLINED
                until(path.exists)
                assert json.loads(path.read_text().splitlines()[0])["code"] == "HANSA-SECAGG-REFUSED"
            until(lambda: abandoned(calls, run))
            assert closed(calls, run) == []
        assert "call answered" not in local.log("notary")


@pytest.mark.slow
def test_killed_around_what_the_authority_answers_a_server_goes_on_and_the_model_is_the_simulations(tmp_path):
    with hospitals_with(tmp_path, NOTARY) as (federation, services):
        local, plan = federation.local, plan_of(services, rounds=3)
        start(federation, services, agents=hooks(tmp_path, SEEDED))
        with federation.calls() as calls:
            run = submit(calls, plan)
        local.kill("server")
        left = ["coordinator.round.opened", "sums.record-made", "sums.record-written", "sums.record-made:2", None]
        ends = time.monotonic() + 200
        while left:
            assert time.monotonic() < ends, (left, local.log("server")[-3000:])
            if not local.is_running("server"):
                point = left.pop(0)
                local.launch_server("server", {} if point is None else {"HANSA_KILL_AT": point})
                local.kill("notary")
                services["notary"].start(local)
            time.sleep(0.02)
        local.wait_until_ready()
        with federation.calls() as calls:
            found = finished(calls, run, seconds=120)
            model = model_of(calls, prepare(plan), found)
    assert model == simulated(plan, tmp_path / "run")


def ten(federation):
    """Let ten sites take part, some with the same data: as many as a graph needs that is safe from a lying server."""
    data = list(federation.sites.values())
    federation.sites = {f"site {number}": data[number % len(data)] for number in range(10)}


def sparse(services, **more):
    section = {"protocol": "secagg-plus", "server": "malicious", "beacon": "authority", "expected_dropout": 0.0,
               "maximum_cohort": 10}  # fmt: skip
    return plan_of(services, section=section, **more)


def drawn(services):
    """Return the draws of an authority's book: the value of each task."""
    with contextlib.closing(sqlite3.connect(services["notary"].own.place / "authority.sqlite")) as book:
        return dict(book.execute("SELECT task, value FROM draws"))


@pytest.mark.slow
def test_ten_sites_that_suspect_the_server_train_on_graphs_that_the_authority_draws(tmp_path):
    with hospitals_with(tmp_path, NOTARY) as (federation, services):
        ten(federation)
        local = federation.local
        start(federation, services)
        with federation.calls() as calls:
            run = finished(calls, submit(calls, sparse(services), wait_for=10), seconds=200)
            rounds = closed(calls, run["id"])
    assert "training" in {each["kind"] for each in rounds}
    assert len(drawn(services)) == len(rounds), "a draw for each sum"
    assert "/v1/beacons" in local.log("notary")


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["authority.drawn", "authority.draw-written", "sums.record-written:11", "sums.record-written:12"]
)
def test_killed_around_the_draw_authority_and_server_go_on_with_the_one_beacon_of_the_sum(tmp_path, point):
    """Of a sum's writes the eleventh, with the last advert, fixes who advertised; the twelfth is the beacon's."""
    who = point.partition(".")[0]
    with hospitals_with(tmp_path, NOTARY) as (federation, services):
        ten(federation)
        local = federation.local
        start(federation, services)
        with federation.calls() as calls:
            if who == "authority":
                local.kill("notary")
                services["notary"].start(local, {"HANSA_KILL_AT": point})
            run = submit(calls, sparse(services, rounds=1), wait_for=10)
            if who == "authority":
                until(lambda: not local.is_running("notary"))
                before = drawn(services)
                assert bool(before) is point.endswith("written")
                services["notary"].start(local)
                assert finished(calls, run, seconds=200)
                assert before.items() <= drawn(services).items()
        if who == "sums":
            local.kill("server")
            local.launch_server("server", {"HANSA_KILL_AT": point})
            until(lambda: not local.is_running("server"), 120)
            local.launch_server("server", {})
            local.wait_until_ready()
            with federation.calls() as calls:
                assert finished(calls, run, seconds=200)


@pytest.mark.slow
def test_decryptors_that_demand_the_authority_help_and_the_model_is_the_simulations(tmp_path):
    nouns = {"north": "decryptor", "south": "decryptor", **NOTARY}
    with hospitals_with(tmp_path, nouns) as (federation, services):
        plan = plan_of(services, section={"protocol": "oneshot-seeds"})
        start(federation, services, agents=hooks(tmp_path, SEEDED))
        with federation.calls() as calls:
            run = finished(calls, submit(calls, plan), seconds=60)
            model = model_of(calls, prepare(plan), run)
    assert model == simulated(plan, tmp_path / "run")


def test_the_key_that_the_command_prints_is_the_one_that_signs(tmp_path):
    status, printed = command("authority", "key", "--folder", tmp_path / "own")
    assert status == 0
    status, again = command("authority", "key", "--folder", tmp_path / "own", "--json")
    assert json.loads(again)["public_key"] == printed
    assert command("authority", "vouch", "nothing", "--folder", tmp_path / "own")[0] == 2
    key = b64encode(bytes(range(32))).decode()
    told = [command("authority", verb, key, "--folder", tmp_path / "own", "--json")
            for verb in ("vouch", "vouch", "withdraw", "withdraw")]  # fmt: skip
    assert [(status, json.loads(each)) for status, each in told[:3]] == [
        (0, {"changed": True, "keys": 1}), (0, {"changed": False, "keys": 1}), (0, {"changed": True, "keys": 0}),
    ]  # fmt: skip
    status, refused = told[3]
    assert (status, json.loads(refused)["error"]["code"]) == (2, "HANSA-AUTHORITY-UNLISTED")
