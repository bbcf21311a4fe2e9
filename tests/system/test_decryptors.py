"""Four hospitals, a server and two decryptors as processes over TLS: what they learn, survive and keep.

Clients round by coins of their own, so test code within the agents' processes takes those of the seed: then the model
is the simulation's, bit for bit, whoever is killed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from os import environ
from typing import NamedTuple

import numpy as np
import pytest
from tests.system.test_secure_bytes import HOOKS, SECURE, files, given, hits, needles

import hansa
from hansa.algorithms.plan import Plan
from hansa.cli.job_building import build_job
from hansa.simulation.preparation import prepare
from hansa.testing.hooks import SEEDED, hooks
from hansa.testing.hospitals import finished, model_of, small_plan, submit
from hansa.testing.services import hospitals_with, start
from hansa.wire.models import sha256
from hansa.wire.server_models import ServedModel

OPERATORS = {"north": "decryptor", "south": "decryptor"}
HEARD = """
import hansa.decryptor.service as service

exchange = service.DecryptorService.exchange

def heard(self, server, message):
    answer = exchange(self, server, message)
    for name, content in (("asked", message), ("answered", answer)):
        (folder / f"{name}-{uuid.uuid4().hex}").write_bytes(content)
    return answer

service.DecryptorService.exchange = heard
"""
DECRYPTOR_POINTS = (
    "decryptor.key-made", "decryptor.task-written", "decryptor.batch-written", "decryptor.summed",
    "decryptor.answer-written",
)  # fmt: skip
SERVER_POINTS = (
    "coordinator.round.opened", "sums.record-made:2", "sums.record-written:2", "coordinator.round.freezing",
    "sums.record-made:5", "sums.record-written:5", "coordinator.round.closed",
)  # fmt: skip


class Kept(NamedTuple):
    contributions: list
    found: dict
    sealed: dict
    heard: dict
    plan: Plan
    model: str


def one_shot(decryptors, **more):
    section = {"protocol": "oneshot-seeds", "decryptors": decryptors, "phase_deadline": 30.0, **SECURE}
    return small_plan(**{
        "name": "one-shot", "rounds": 1, "secure_aggregation": section,
        "evaluation": {"every": 1, "metrics": ["auc"], "baselines": []}, **more,
    })  # fmt: skip


def simulated(plan, folder):
    hansa.run(plan, out=folder, executor="serial")
    return sha256((folder / "model.safetensors").read_bytes())


@pytest.mark.slow
def test_killed_wherever_it_may_be_a_server_or_a_decryptor_the_model_is_the_simulations(tmp_path):
    with hospitals_with(tmp_path, OPERATORS) as (federation, services):
        local, plan = federation.local, one_shot(services.of_a_plan["decryptors"], rounds=5)
        start(federation, services, agents=hooks(tmp_path, SEEDED))
        with federation.calls() as calls:
            run = submit(calls, plan)
        launch = {"north": partial(services["north"].launch, local), "server": partial(local.launch_server, "server")}
        left = {"north": [*DECRYPTOR_POINTS, None], "server": [*SERVER_POINTS, None]}
        for name in left:
            local.kill(name)
        until = time.monotonic() + 300
        while any(left.values()):
            assert time.monotonic() < until, (left, local.log("server")[-3000:], local.log("north")[-3000:])
            for name, points in left.items():
                if points and not local.is_running(name):
                    point = points.pop(0)
                    launch[name]({} if point is None else {"HANSA_KILL_AT": point})
            time.sleep(0.02)
        local.wait_until_ready()
        with federation.calls() as calls:
            found = finished(calls, run, seconds=120)
            model = model_of(calls, prepare(plan), found)
            rounds = calls.get(f"/runs/{run}/rounds", limit=1000)["rounds"]
    assert [each["state"] for each in rounds if each["kind"] == "training"].count("closed") == 5
    assert model == simulated(plan, tmp_path / "run")


def hansa_as_operator(federation, *words):
    """Run a command as the operator of a federation."""
    local = federation.local
    asked = {"HANSA_SERVER": local.url, "HANSA_CA": str(local.ca), "HANSA_TOKEN": local.token_file.read_text()}
    command = [sys.executable, "-P", "-c", "from hansa.cli.main import main; main()", *map(str, words)]
    ended = subprocess.run(command, env={**environ, **asked}, check=False, timeout=60, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def waiting_for_ever(calls, run):
    """Wait until a run's newest round waits for a decryptor that may be lost; return what it says."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for event in calls.get(f"/runs/{run}/events", limit=1000)["events"]:
            if event["kind"] == "round.waiting" and "lost for good" in event["detail"]["why"]:
                return event["detail"]["why"]
        time.sleep(0.1)
    raise AssertionError(calls.get(f"/runs/{run}/events", limit=1000)["events"])


@pytest.mark.slow
def test_after_a_decryptor_is_lost_for_good_another_run_goes_on_from_the_model_as_the_event_says(tmp_path):
    with hospitals_with(tmp_path, {**OPERATORS, "east": "decryptor"}) as (federation, services):
        start(federation, services, south={"HANSA_KILL_AT": "decryptor.summed:4"})
        named = {each["name"]: each for each in services.of_a_plan["decryptors"]}
        before = one_shot([named["north"], named["south"]], rounds=5)
        after = one_shot([named["north"], named["east"]], rounds=2)
        with federation.calls() as calls:
            run = submit(calls, before)
            why = waiting_for_ever(calls, run)
            assert "'south' cannot be reached" in why
            assert f"hansa runs cancel {run}; hansa models download {run} --out {run}.safetensors;" in why
            model = tmp_path / "model.safetensors"
            hansa_as_operator(federation, "runs", "cancel", run)
            hansa_as_operator(federation, "models", "download", run, "--out", model)
            following = submit(calls, after, begin_from=model.read_bytes())
            first = ServedModel.from_bytes(build(after, model), prepare(after).first.layout.size)
            np.testing.assert_array_equal(first.values, last_model(calls, run, after))
            assert finished(calls, following, seconds=120)["round"] == 2


def build(plan, model):
    return build_job(prepare(plan).plan, population="hospitals", begin_from=model.read_bytes()).model


def last_model(calls, run, plan):
    """Return the values of the newest model of a run."""
    newest = calls.get("/models", run=run, limit=1)["models"][0]
    content = calls.download(f"/models/{newest['sha256']}")
    return ServedModel.from_bytes(content, prepare(plan).first.layout.size).values


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """What was given, what each party kept, sealed, was asked and answered; and the model, of the plan, that came."""
    folder = tmp_path_factory.mktemp("bytes")
    dumps = {name: folder / f"dump-{name}" for name in ("server", "agents", *OPERATORS)}
    environments = {}
    for name, dump in dumps.items():
        dump.mkdir()
        (folder / f"own-{name}").mkdir()
        code = HOOKS + (HEARD if name in OPERATORS else SEEDED if name == "agents" else "")
        environments[name] = {**hooks(folder / f"own-{name}", code), "HANSA_TEST_DUMP": str(dump)}
    with hospitals_with(folder / "federation", OPERATORS) as (federation, services):
        start(federation, services, **environments)
        with federation.calls() as calls:
            plan = one_shot(services.of_a_plan["decryptors"])
            run = finished(calls, submit(calls, plan), seconds=60)
            model = model_of(calls, prepare(plan), run)
        local = federation.local
        found = {"server": files(local.folder / "server")}
        found |= {each: files(services[each].own.place) for each in OPERATORS}
        for name, corpus in found.items():
            corpus["log"] = local.log(name).encode()
    sealed = {each.name: each.read_bytes() for each in dumps["server"].glob("sealed-*")}
    heard = {name: {each.name: each.read_bytes() for each in dumps[name].iterdir()} for name in OPERATORS}
    return Kept(given(dumps["agents"]), found, sealed, heard, plan, model)


def test_the_model_is_that_of_the_simulation_bit_for_bit(kept, tmp_path):
    assert kept.model == simulated(kept.plan, tmp_path / "run")


def test_nothing_of_a_hospital_is_kept_or_sealed_by_the_server_or_known_to_a_decryptor(kept):
    contributions, found, sealed, heard = kept[:4]
    assert [str(each["kind"]) for each in contributions].count("training") == 4
    assert all(needles(each) for each in contributions)
    assert len(sealed) > 8, "masked vectors, and the machines' records"
    for name in OPERATORS:
        assert any("sqlite" in each for each in found[name])
        assert sum(each.startswith("asked") for each in heard[name]) >= 4, "a batch and a request of each round"
        assert set(hits(contributions, found[name] | heard[name])) == set()
    assert set(hits(contributions, found["server"] | sealed)) == set()


def test_what_a_decryptor_is_asked_grows_with_clients_and_holds_no_vector(kept):
    heard = kept.heard
    per_client = 32 + 4 + 32 + 2 * 80 + 64
    for name in OPERATORS:
        asked = [len(content) for each, content in heard[name].items() if each.startswith("asked")]
        assert max(asked) < 4 * per_client + 100
