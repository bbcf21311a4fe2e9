"""What the README and the documentation tell a reader to do works."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pages import LIBRARIES, ROOT, blocks, run_page

import hansa

TUTORIAL = ROOT / "docs" / "tutorial" / "your-own-csv.md"
TOLD = sorted([*(ROOT / "docs" / "tutorial").glob("*.md"), *(ROOT / "docs" / "how-to").glob("*.md")])
ALL = sorted([ROOT / "README.md", *(ROOT / "docs").glob("[!_]*/*.md")])


@pytest.mark.parametrize("page", [page for page in TOLD if any(blocks(page))], ids=lambda page: page.stem)
def test_a_page_does_what_it_says_with_the_extras_that_it_names(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path)


def test_every_extra_has_libraries_that_tell_whether_it_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert LIBRARIES.keys() == project["optional-dependencies"].keys() - {"all"}


def test_the_readme_example_runs(tmp_path: Path) -> None:
    run_page(ROOT / "README.md", tmp_path)
    assert list(tmp_path.glob("runs/*/report.html"))


def test_the_readme_example_is_twenty_lines_long() -> None:
    (example,) = [block for block in blocks(ROOT / "README.md") if block.language == "python"]
    assert len(example.text.splitlines()) <= 20


def test_the_readme_plan_runs_on_the_tutorials_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    maker = next(block for block in blocks(TUTORIAL) if block.file == "make_visits.py")
    exec(compile(maker.text, "make_visits.py", "exec"), {})  # noqa: S102 - our own page
    (plan,) = [block for block in blocks(ROOT / "README.md") if block.language == "toml"]
    Path("plan.toml").write_text(plan.text)
    result = hansa.run(hansa.read_plan(Path("plan.toml"), ["rounds=2"]), out="run")
    assert result.report.is_file()


@pytest.mark.parametrize("page", ALL, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_every_toml_block_is_toml(page: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            tomllib.loads(block.text)
