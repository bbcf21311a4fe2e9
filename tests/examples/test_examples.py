"""Every example builds and runs for a few rounds, and a run needs the light package only."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hansa

EXAMPLES = Path(__file__).parents[2] / "examples"
PLANS = sorted(path for path in EXAMPLES.rglob("*.toml"))
NOT_SHIPPED = {"mnist_2nn_iid", "mnist_2nn_private", "mnist_2nn_shards"}
SMALL = {
    "shakespeare": ["trainer.steps=2", "cohort.size=2", "data.test_fraction=0.001", "model.arguments.hidden=16"],
    "own_torch_model": ["cohort.size=3"],
    "shakespeare_private": ["trainer.steps=1", "cohort.size=4", "aggregator.divisor=4"],
}


def name_of(plan: Path) -> str:
    return plan.parent.name if plan.stem == "plan" else plan.stem


def needs(plan: Path) -> list[str]:
    text = plan.read_text()
    torch = ["torch"] if 'kind = "torch"' in text else []
    return torch + (["sklearn"] if 'source = "digits"' in text else [])


@pytest.mark.parametrize("plan", PLANS, ids=name_of)
def test_an_example_builds_and_runs(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [module for module in needs(plan) if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    shutil.copytree(plan.parent, tmp_path / "here", ignore=shutil.ignore_patterns("runs", "__pycache__"))
    monkeypatch.chdir(tmp_path / "here")
    built = hansa.read_plan(Path(plan.name), ["rounds=2", *SMALL.get(name_of(plan), [])])
    if name_of(plan) in NOT_SHIPPED:
        return
    result = hansa.run(built, out=tmp_path / "run")
    assert result.summary["rounds"] == 2
    assert result.report.is_file()


def test_the_python_example_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "python_api.py")],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Switzerland alone" in done.stdout


def test_every_shipped_source_and_every_recipe_has_an_example() -> None:
    from hansa.core.registry import PIECES

    texts = [plan.read_text() for plan in PLANS]
    own = {"npz", "csv", "parquet", "folder"}
    assert [
        kind for kind in PIECES["source"] if kind not in own and not any(f'"{kind}"' in text for text in texts)
    ] == []
    assert [kind for kind in PIECES["recipe"] if not any(f'"{kind}"' in text for text in texts)] == []


def test_a_run_needs_no_optional_package(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'pyarrow', 'sklearn')))\n"
        "from hansa.cli.main import main\n"
        f"main(['run', {str(EXAMPLES / 'heart.toml')!r}, '--set', 'rounds=2', '--out', 'run'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
