from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_server import ROWS, TOKEN, FakeServer

from hansa.client import Agent


@pytest.fixture
def server():
    running = FakeServer()
    yield running
    running.close()


@pytest.fixture
def data(tmp_path) -> Path:
    """A site's folder with a training and a test table."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in (("train", ROWS[:16]), ("test", ROWS[16:])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("age", "dose", "ill"), *rows])
    return folder


@pytest.fixture
def agent(server, data, tmp_path):
    """An enrolled agent that never waits."""
    made = Agent(server.url, data, tmp_path / "state", wait=0.0)
    made.enrol(TOKEN)
    yield made
    made.close()
