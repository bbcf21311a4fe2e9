"""Agents and a job whose training costs nothing: rounds a second, memory at rest, an agent that dies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from benchmarks.federation.jobs import plan_of, submit
from benchmarks.federation.served import POPULATION, Process, Served, served

PARAMETERS: Final = 10_000
_REST: Final = 3.0
"""Seconds that nothing is asked before memory at rest is read."""
_PATIENCE: Final = 90.0
_POLL: Final = 0.02


def rounds(*, agents: int = 4, seconds: float = 20.0) -> dict[str, Any]:
    """Measure the rounds of a few silos: over TLS, with durability on, agents on the other core."""
    with served(tls=True) as server:
        watched = _started(server, agents)
        at_rest = _resting(server, watched)
        began = time.perf_counter()
        run = submit(server.calls, plan_of(), PARAMETERS, wait_for=agents)
        _until(lambda: _closed(server, run) >= 1)
        first = time.perf_counter() - began
        return {"agents": agents, "first_round_seconds": first, **at_rest, **_steady(server, watched, run, seconds)}


def many_agents(*, agents: int = 50, seconds: float = 20.0, deadline: float = 5.0) -> dict[str, Any]:
    """Measure the rounds of many silos on all cores; then one of them is killed in the middle of the run."""
    with served(tls=True) as server, _all_cores():
        watched = _started(server, agents)
        at_rest = _resting(server, watched)
        began = time.perf_counter()
        run = submit(server.calls, plan_of(schedule__round_deadline=deadline), PARAMETERS, wait_for=agents)
        _until(lambda: _closed(server, run) >= 1)
        first = time.perf_counter() - began
        steady = _steady(server, watched, run, seconds)
        server.federation.kill(_name(0))
        killed, before = time.perf_counter(), _closed(server, run)
        _until(lambda: _lost(server, run, after=before) > 0)
        noticed = time.perf_counter() - killed
        _until(lambda: _closed(server, run) > before + 2)
        alive = sum(server.federation.is_running(_name(number)) for number in range(agents))
    return {
        "agents": agents,
        "first_round_seconds": first,
        **at_rest,
        **steady,
        "deadline_seconds": deadline,
        "noticed_seconds": noticed,
        "alive": alive,
    }


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let this process, and what it starts, use every core again: the server stays on its own."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def _name(number: int) -> str:
    return f"silo-{number}"


def _started(server: Served, count: int) -> list[Process]:
    """Start agents with an example each; return their processes when all are active."""
    calls, folder = server.calls, server.federation.folder
    calls.call("POST", "/populations", {"name": POPULATION})
    for number in range(count):
        data = folder / "data" / f"{number}.npz"
        data.parent.mkdir(exist_ok=True)
        x = np.random.default_rng(number).normal(size=(1, PARAMETERS - 1)).astype(np.float32)
        np.savez(data, X=x, y=np.array([number % 2]))
        token = calls.call("POST", f"/populations/{POPULATION}/invitations", {"name": _name(number)})["token"]
        server.federation.start_agent(_name(number), data=data, token=token)
    _until(lambda: _active(server) == count)
    return [Process(server.federation.processes[_name(number)].pid) for number in range(count)]


def _active(server: Served) -> int:
    listed = server.calls.get(f"/populations/{POPULATION}/clients", state="active", limit=1000)["clients"]
    return len(listed)


def _resting(server: Served, agents: Sequence[Process]) -> dict[str, float]:
    time.sleep(_REST)
    resident = [each.resident() / 1e6 for each in agents]
    return {"server_rest_mb": server.process.resident() / 1e6, "agent_rest_mb": max(resident)}


def _steady(server: Served, agents: Sequence[Process], run: str, seconds: float) -> dict[str, float]:
    """Watch rounds for a while."""
    before, cpu, began = _closed(server, run), server.process.cpu_seconds(), time.perf_counter()
    time.sleep(seconds)
    took = time.perf_counter() - began
    done = _closed(server, run) - before
    resident = [each.resident() / 1e6 for each in agents]
    return {
        "rounds": done,
        "rounds_a_second": done / took,
        "server_core_share": (server.process.cpu_seconds() - cpu) / took,
        "server_mb": server.process.resident() / 1e6,
        "agent_mb": max(resident),
        "agents_mb": sum(resident),
    }


def _closed(server: Served, run: str) -> int:
    return int(server.calls.get(f"/runs/{run}")["round"])


def _lost(server: Served, run: str, *, after: int) -> int:
    """Return how many clients the last closed rounds after one did not hear from."""
    newest = server.calls.get(f"/runs/{run}/rounds", limit=3)["rounds"]
    reports = [each["report"] for each in newest if each["state"] == "closed" and each["round"] > after]
    return sum(int(each["selected"] - each["reported"]) for each in reports)


def _until(done: Callable[[], bool]) -> None:
    until = time.monotonic() + _PATIENCE
    while not done():
        if time.monotonic() > until:
            raise TimeoutError("the federation does not go on")
        time.sleep(_POLL)
