"""Where the time of a run goes: by room and library, and by function."""

from __future__ import annotations

import json
import os
import pstats
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.environments import UnavailableError
from benchmarks.places import HERE, RUNS
from benchmarks.results import Grid
from benchmarks.systems import environment

_SHOWN = 25


def profile(words: Sequence[str]) -> dict[str, Any]:
    """Run ``hansa run`` with these words under cProfile; return seconds by owner and by function, and by round.

    The profiler makes calls slower, and sees the main process only. Where its threads work at once, a thread's wait
    for another, or for Python's lock, counts as time of whatever waits.
    """
    shutil.rmtree(RUNS, ignore_errors=True)
    RUNS.mkdir()
    found, out = RUNS / "profile", RUNS / "run"
    paths = os.pathsep.join([str(HERE.parent), environment()["PYTHONPATH"]])
    command = [sys.executable, "-m", "benchmarks.profiled_run", str(found), "run", *words, "--out", str(out)]
    done = subprocess.run(  # noqa: S603 - ours
        command, check=False, capture_output=True, text=True, cwd=HERE, env=environment() | {"PYTHONPATH": paths}
    )
    if done.returncode:
        raise UnavailableError(f"the profiled run failed: {(done.stderr or done.stdout).strip()[-300:]}")
    statistics = pstats.Stats(str(found))
    owners: dict[str, float] = defaultdict(float)
    functions = []
    for (file, line, name), (_, calls, own, total, _) in statistics.stats.items():  # type: ignore[attr-defined]
        owners[owner(file, name)] += own
        functions.append((own, total, calls, f"{owner(file, name)}: {name}" + (f", line {line}" if line else "")))
    events = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    rounds = [event["seconds"] for event in events if event["event"] == "round"]
    return {
        "whole": statistics.total_tt,  # type: ignore[attr-defined]
        "rounds": sum(rounds),
        "owners": dict(sorted(owners.items(), key=lambda item: -item[1])),
        "functions": sorted(functions, reverse=True)[: 2 * _SHOWN],
    }


def owner(file: str, name: str) -> str:
    """Return whose time a function's is: a room's module, a library's, or Python's."""
    parts = Path(file).parts
    if "hansa" in parts and file.endswith(".py") and "site-packages" not in parts:
        return ".".join(parts[len(parts) - parts[::-1].index("hansa") - 1 :]).removesuffix(".py")
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].removesuffix(".py")
    if file in {"~", ""}:
        return next((library for library in ("torch", "numpy") if library in name), "python, built in")
    return "python"


def grids(result: dict[str, Any]) -> list[Grid]:
    """Return the tables by owner and by function."""
    whole = result["whole"]
    owners = [(name, f"{own:.3f}", f"{own / whole:.1%}") for name, own in list(result["owners"].items())[:_SHOWN]]
    functions = [
        (place, f"{own:.3f}", f"{total:.3f}", f"{calls:,}") for own, total, calls, place in result["functions"][:_SHOWN]
    ]
    note = f"{whole:.2f} s in all under the profiler, {result['rounds']:.2f} s of them within rounds."
    return [
        Grid("Own time by module", ("module", "seconds", "share"), owners, note),
        Grid("Own time by function", ("function", "own, s", "with callees, s", "calls"), functions),
    ]
