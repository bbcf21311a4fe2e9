"""What load scenarios aim at, and the generator; no server is started."""

from __future__ import annotations

import socket
import threading

import pytest
from benchmarks.__main__ import _SCENARIOS
from benchmarks.federation.arrivals import Call, Generator, percentile
from benchmarks.federation.scenarios import SCENARIOS, Aim


def test_every_scenario_has_its_name_on_the_command_line():
    assert tuple(SCENARIOS) == _SCENARIOS


@pytest.mark.parametrize(
    ("aim", "value", "met", "said"),
    [
        (Aim("x", "it", most=3), 3.0, True, "yes"),
        (Aim("x", "it", most=3), 3.1, False, "NO"),
        (Aim("x", "it", least=3), 2.9, False, "NO"),
        (Aim("x", "it", most=3), float("nan"), False, "NO"),
        (Aim("x", "it", least=3), float("nan"), False, "NO"),
        (Aim("x", "it"), 7.0, True, ""),
    ],
)
def test_a_figure_meets_its_aim_or_not(aim, value, met, said):
    assert aim.met({"x": value}) is met
    assert aim.row({"x": value})[-1] == said


def test_what_most_do_not_exceed():
    assert percentile(list(range(100, 0, -1)), 0.99) == 100
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0


def _answering(listener, status, count):
    for _ in range(count):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nno".encode())


@pytest.mark.parametrize(("status", "errors"), [(200, 0), (503, 3)])
def test_the_generator_counts_what_is_not_answered_well(status, errors):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_answering, args=(listener, status, 3))
        thread.start()
        calls = [Call(0.01 * number, [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"]) for number in range(3)]
        outcome = Generator(listener.getsockname()[1], tls=None, kept=False).run(calls)
        thread.join()
    assert sum(outcome.statuses.values()) == outcome.connections == len(outcome.latencies) == 3
    assert outcome.errors == errors
