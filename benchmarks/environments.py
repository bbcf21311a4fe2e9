"""The peers' environments: one virtual environment each, pinned, made when it is first needed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.places import ENVIRONMENTS, PEERS

_STAMP: Final = ".installed"
_MINUTES: Final = 30


class UnavailableError(RuntimeError):
    """A system cannot be measured here; the message says why."""


def interpreter(peer: str) -> Path:
    """Return the Python of a peer's environment, installed if it is not yet. Raises UnavailableError if that fails.

    Torch goes first, by version, so that an index with several builds of it cannot choose another for a dependency.
    """
    pinned = (PEERS / "requirements" / f"{peer}.txt").read_text(encoding="utf-8")
    stamp = hashlib.sha256(pinned.encode()).hexdigest()
    folder = ENVIRONMENTS / peer
    python = folder / "bin" / "python"
    if (folder / _STAMP).exists() and (folder / _STAMP).read_text(encoding="utf-8") == stamp:
        return python
    _call(peer, [sys.executable, "-m", "venv", "--clear", str(folder)])
    torch = [line for line in pinned.splitlines() if line.startswith("torch==")]
    for wanted in ([*torch], ["-r", str(PEERS / "requirements" / f"{peer}.txt")]):
        if wanted:
            _call(peer, [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])
    (folder / _STAMP).write_text(stamp, encoding="utf-8")
    return python


def _call(peer: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60 * _MINUTES)  # noqa: S603 - ours
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{peer} could not be installed within {_MINUTES} minutes") from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise UnavailableError(f"{peer} could not be installed: {last[0]}")
