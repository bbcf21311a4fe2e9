"""The client is killed at every one of its kill points, and starts again: it answers once, with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_server import SCAFFOLD, TOKEN, job_of, path_of

import hansa
from hansa.client.state import StateFolder
from hansa.core.killpoints import KILL_POINTS
from hansa.wire.generated import federation_pb2 as wire

POINTS = [point for point in KILL_POINTS if point.startswith("client.") and not point.startswith("client.sum-")]
"""Those of secure sums have tests of their own."""


def start(server, data, state, *options, **environment):
    home = {**os.environ, "PYTHONPATH": str(Path(hansa.__file__).parents[1]), "HANSA_TOKEN": TOKEN, **environment}
    command = [sys.executable, "-c", "from hansa.cli.main import main; main()", "client"]
    command += ["--server", server.url, "--data", str(data), "--state", str(state), *options]
    return subprocess.Popen(command, env=home, stderr=subprocess.PIPE, text=True)


def stop(process) -> str:
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 0, told
    return told


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_client_answers_once_and_keeps_its_rows_in_step(server, data, tmp_path, point):
    state = tmp_path / "state"
    first = server.assign(job_of(SCAFFOLD))
    server.outcomes[first] = wire.OUTCOME_INCLUDED
    killed = start(server, data, state, HANSA_KILL_AT=point)
    _, told = killed.communicate(timeout=30)
    assert killed.returncode == -signal.SIGKILL, told
    before = dict(server.reports)
    again = start(server, data, state)
    try:
        server.wait_for(lambda: first in server.reports and not server.check_ins[-1].HasField("reported"))
        second = server.assign(job_of(SCAFFOLD), round=2)
        server.wait_for(lambda: second in server.reports and path_of(server.check_ins[-1].reported) == second)
    finally:
        told = stop(again)
    assert before.items() <= server.reports.items()
    assert len([path for path, _ in server.parts if path == first]) == 1, told
    assert "HANSA-REPORT-ANSWERED" not in told
    folder = StateFolder(state)
    assert folder.rows("run-1")["client_control"].any()
    assert folder.pending() is None
    assert [str(each.id) for each in folder.reports()] == [first, second]
    folder.close()


def test_a_report_that_is_not_included_leaves_the_rows_as_they_were(server, data, tmp_path):
    state = tmp_path / "state"
    path = server.assign(job_of(SCAFFOLD))
    server.outcomes[path] = wire.OUTCOME_NOT_INCLUDED
    killed = start(server, data, state, HANSA_KILL_AT="client.outcome-learned")
    killed.communicate(timeout=30)
    again = start(server, data, state)
    server.wait_for(lambda: not server.check_ins[-1].HasField("reported"))
    stop(again)
    assert list((state / "rows").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_client_ends_cleanly_when_told_to(server, data, tmp_path, number):
    process = start(server, data, tmp_path / "state")
    server.wait_for(lambda: server.check_ins)
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 0
    assert told.splitlines()[-1].endswith("INFO stopped")
    assert "Traceback" not in told


def test_a_client_at_rest_is_small(server, data, tmp_path):
    """50 MB of its own, also after it has trained.

    What is resident beside is pages of library files: 30 to 40 MB, by how the system maps them, shared by all agents.
    """
    path = server.assign(job_of())
    process = start(server, data, tmp_path / "state")
    server.wait_for(lambda: path in server.reports and len(server.check_ins) > 3)
    rolled = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    stop(process)
    own = next(int(line.split()[1]) for line in rolled if line.startswith("Anonymous:"))
    assert own * 1024 < 50e6
