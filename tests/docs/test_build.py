"""The documentation builds without a warning, and no internal link is dead. Nothing is fetched."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pages import ROOT, anchors

LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def test_the_documentation_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "--keep-going", "-b", "html"]
    command += ["-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert (tmp_path / "html" / "reference" / "generated" / "plan.html").is_file()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_are_alive(page: str) -> None:
    for found in LINK.finditer((ROOT / page).read_text()):
        target = found["target"]
        if not target.startswith(("http://", "https://")):
            file, _, anchor = target.partition("#")
            assert (ROOT / file).exists(), f"{page} links to {target}"
            assert not anchor or anchor in anchors(ROOT / file if file else ROOT / page), f"{page} links to {target}"


def test_every_decision_is_listed_and_numbered_without_gaps() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    index = (ROOT / "docs" / "decisions" / "index.md").read_text()
    for record in records:
        assert record.stem in index
        text = record.read_text()
        assert [part for part in ("## Context", "## Decision", "## Consequences") if part not in text] == []


def test_the_documentation_has_its_dependencies_declared() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert {"test", "lint", "docs"} <= set(groups)
