"""How a process waits to be killed: at one pass of a point or another, and with patience."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from hansa.core.settings import KILL_AT
from hansa.testing import victims
from hansa.testing.victims import Tally, Victim

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
        Victim("server", start, local, tally, coins).run(wanted)
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
