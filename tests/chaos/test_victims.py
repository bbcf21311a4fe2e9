"""How a process waits to be killed: at one pass of a point or another, and with patience."""

from __future__ import annotations

import random
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

from hansa.core.settings import KILL_AT
from hansa.testing import victims
from hansa.testing.victims import ANYWHERE, Rivals, Tally, Victim

POINT = "server.report.sealed"


@pytest.fixture
def suffer(monkeypatch):
    """Return what lets a victim suffer whose process passes a point so many times; the passes that it waited for."""
    monkeypatch.setattr(victims, "_PATIENCE", 0.0)

    def run(passed, *wanted, seed):
        waited, local = [], SimpleNamespace(processes={}, kill=lambda _: None)

        def start(environment):
            point, _, count = environment.get(KILL_AT.name, "none:0").partition(":")
            waited.append((point, int(count)))
            ended = -9 if point != "none" and int(count) <= passed else None
            local.processes["server"] = SimpleNamespace(poll=lambda: ended)

        tally, coins = Tally(), random.Random(seed)  # noqa: S311 - repeats with the seed, protects nobody
        Victim("server", wanted, start, local, tally, coins).run()
        assert waited.pop() == ("none", 0), "it lives on unharmed"
        return waited, tally

    return run


@pytest.mark.parametrize("seed", range(20))
def test_a_pass_that_was_waited_for_in_vain_is_followed_by_any_pass(suffer, seed):
    waited, tally = suffer(1, POINT, seed=seed)
    assert waited in ([(POINT, 1)], [(POINT, 2), (POINT, 1)], [(POINT, 3), (POINT, 1)])
    assert tally.kills == {POINT: 1}
    assert tally.missed == ({POINT: 1} if len(waited) == 2 else {})


def test_a_point_that_never_comes_is_given_up(suffer):
    waited, tally = suffer(0, POINT, seed=0)
    assert len(waited) == 3
    assert (tally.kills, tally.missed) == ({}, {POINT: 3})


@pytest.mark.parametrize("seed", range(20))
def test_what_comes_once_in_a_run_is_taken_at_its_first_pass(suffer, seed):
    assert suffer(1, "coordinator.run.ended", seed=seed)[0] == [("coordinator.run.ended", 1)]


class Lease:
    """Replicas of which one has a lease: another takes it where that one is away for a while."""

    def __init__(self):
        self.processes, self.holder, self.away, self.lock = {}, None, 0.0, threading.Lock()

    def launch(self, name, environment):
        self.processes[name] = SimpleNamespace(poll=lambda: self.look(name), ended=None, armed=bool(environment))

    def kill(self, name):
        self.processes[name].ended = -9

    def look(self, name):
        """Let a replica do what it may, and return how it ended if it has."""
        with self.lock:
            process = self.processes[name]
            holder = self.processes.get(self.holder)
            if holder is not None and holder.ended is None:
                self.away = time.monotonic()
            elif time.monotonic() - self.away > 0.1:
                self.holder = name
            if self.holder == name and process.armed:
                process.ended = -9
            return process.ended


def test_a_rival_that_keeps_it_from_a_point_is_killed_and_away_until_it_was_there(monkeypatch):
    monkeypatch.setattr(victims, "_SHARED", 0.05)
    monkeypatch.setattr(victims, "_PATIENCE", 5.0)
    lease, tally, rivals, coins = Lease(), Tally(), Rivals(), random.Random(0)  # noqa: S311 - as above
    wanted = {"first": [], "second": [POINT, POINT]}
    both = [Victim(name, of, partial(lease.launch, name), lease, tally, coins, passes=1, restless=True, rivals=rivals)
            for name, of in wanted.items()]  # fmt: skip
    lease.launch("first", {})
    lease.look("first")
    threads = [threading.Thread(target=victim.run) for victim in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert tally.kills == {POINT: 2, ANYWHERE: tally.kills[ANYWHERE]}
    assert tally.kills[ANYWHERE] >= 1
    assert tally.missed == {}
    assert lease.processes["first"].ended is None, "it lives on"
    assert rivals.turns == []
