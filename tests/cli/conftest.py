"""What the tests of the command line share: the command, in this process or its own, and a plan to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hansa.cli.main import main

HEART = """
name = "heart disease across four hospitals"
seed = 7
rounds = 6
recipe = "fedavg"

[data]
source = "heart"
test_fraction = 0.25

[model]
factory = "hansa.training.linear:logistic"

[trainer]
kind = "linear"
epochs = 1
batch_size = 16
optimizer = { kind = "sgd", learning_rate = 0.1 }

[evaluation]
every = 2
metrics = ["auc", "accuracy", "loss"]
baselines = ["local-only", "centralised"]
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of standard output, read as JSON."""
        found = json.loads(self.out.splitlines()[-1])
        assert isinstance(found, dict)
        return found

    @property
    def said(self) -> str:
        """What people read, on one line, so that wrapping does not matter."""
        return " ".join(self.err.split())


Command = Callable[..., Outcome]


@pytest.fixture
def hansa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            status: Any = 0
        except SystemExit as end:
            status = end.code or 0
        found = capsys.readouterr()
        return Outcome(int(status), found.out, found.err)

    return run


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A small plan on the heart data."""
    path = tmp_path / "plan.toml"
    path.write_text(HEART)
    return path


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a command as a process of its own; ``before`` is Python that runs in it first."""

    def begin(*arguments: object, before: str = "") -> subprocess.Popen[str]:
        code = f"{before}\nfrom hansa.cli.main import main\nmain()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "100"},
        )

    return begin
