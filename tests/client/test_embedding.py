"""The example of an application that embeds an agent, and the unit for systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_server import TOKEN, job_of

import hansa
from hansa.wire.generated import federation_pb2 as wire

ROOT = Path(__file__).parents[2]


def test_the_example_takes_part_while_it_works(server, tmp_path):
    training = server.assign(job_of())
    evaluation = server.assign(job_of(), kind=wire.KIND_EVALUATION)
    home = {**os.environ, "PYTHONPATH": str(Path(hansa.__file__).parents[1]), "HANSA_TOKEN": TOKEN}
    command = [sys.executable, str(ROOT / "examples" / "embedding" / "thermostat.py"), server.url, str(tmp_path)]
    with subprocess.Popen(
        command, env=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        server.wait_for(lambda: {training, evaluation} <= server.reports.keys())
        told, failed = process.communicate("up\n", timeout=30)
    assert process.returncode == 0, failed
    assert told == "heating: up\n"


def test_the_unit_is_one():
    command = shutil.which("systemd-analyze")
    if command is None:
        pytest.skip("systemd is not installed")
    unit = ROOT / "deploy" / "hansa-client.service"
    done = subprocess.run([command, "verify", str(unit)], capture_output=True, text=True, check=False)
    problems = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert problems == []
