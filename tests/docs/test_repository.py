"""The commands around the code: make, scripts, the run of CI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from pages import ROOT

BASH, MAKE = (shutil.which(name) or name for name in ("bash", "make"))
SCRIPTS = [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"]
LEFT_OUT = shutil.ignore_patterns(".venv*", ".git", ".*_cache", ".hypothesis", "runs", "_build", "__pycache__")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_executable_strict_and_parses(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    subprocess.run([BASH, "-n", str(script)], check=True)


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run"):
        named = set(re.findall(r"(?:`|^ {4}|: |step \S+ )make ([a-z-]+)", page.read_text(), flags=re.MULTILINE))
        assert named <= targets, page.name


def test_make_says_so_where_python_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.10" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "scripts" / "setup.sh"), "light", str(tmp_path / "venv")],
        env={**os.environ, "PYTHON": str(old)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Hansa needs Python 3.11 or newer." in done.stderr
    assert "Found: Python 3.8.10." in done.stderr


@pytest.mark.slow
def test_the_demo_sets_itself_up_in_a_fresh_copy_within_two_minutes(tmp_path: Path) -> None:
    copy = tmp_path / "hansa"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VIRTUAL_ENV", "PYTHON"))}
    began = time.monotonic()
    done = subprocess.run(
        [MAKE, "demo"],
        cwd=copy, env={**kept, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert time.monotonic() - began < 120
    assert list(copy.glob("runs/*/report.html"))
    assert not list((copy / ".venv").glob("lib/python*/site-packages/torch"))
