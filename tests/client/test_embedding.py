"""The example of an application that embeds an agent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
