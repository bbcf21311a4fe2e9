"""What share of the machine's matrix-product peak task A reaches.

The peak is the best of several libraries at one square product in single precision, one process for each core, one
thread each, all at once.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.data import prepare
from benchmarks.environments import UnavailableError
from benchmarks.places import HERE
from benchmarks.results import Grid
from benchmarks.running import measure
from benchmarks.start import write_start
from benchmarks.suite import in_short
from benchmarks.systems import System, environment
from benchmarks.tasks import TASKS, Task

KINDS: Final = {
    "numpy": "numpy, its own BLAS",
    "torch": "torch.mm",
    "onednn-linear": "torch, oneDNN linear",
    "onednn-convolution": "torch, 1x1 convolution",
}
_PROCESSES: Final = 2


def share_of_peak(system: System, repetitions: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure the peak before and after Hansa's runs of task A, and set them in relation."""
    task = TASKS["A"]
    folder = prepare(task)
    write_start(task, folder)
    before = {kind: together(kind) for kind in KINDS}
    say(", ".join(f"{KINDS[kind]}: {value:.0f} GFLOP/s" for kind, value in before.items()))
    runs = [measure(system, task) for _ in range(repetitions)]
    for run in runs:
        say(in_short(run))
    after = {kind: together(kind) for kind in KINDS}
    products = {kind: max(before[kind], after[kind]) for kind in KINDS}
    good = [run.updates_per_second for run in runs if not run.failure]
    if not good:
        raise UnavailableError(runs[0].failure)
    each = operations_of_an_update(task)
    reached = statistics.median(good) * each / 1e9
    return {
        "products": products,
        "gflop_of_a_round": each * task.cohort / 1e9,
        "updates_per_second": statistics.median(good),
        "reached": reached,
        "share": reached / max(products.values()),
    }


def operations_of_an_update(task: Task) -> float:
    """Return the mean operations of one client's update, over the cohorts of the rounds that are timed."""
    folder = prepare(task)
    sizes = np.diff(np.load(folder / "offsets.npy"))
    timed = np.load(folder / "cohorts.npy")[1:]
    return float(sizes[timed].mean()) * task.flops_of_an_example


def together(kind: str) -> float:
    """Return the GFLOP/s of all processes at once."""
    command = [sys.executable, "-m", "benchmarks.matrix_products", kind]
    variables = environment() | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, cwd=HERE.parent, env=variables, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
        for _ in range(_PROCESSES)
    ]
    return sum(float(process.communicate()[0] or 0) for process in running)


def grids(result: dict[str, Any]) -> list[Grid]:
    """Return the table of the peak and the share."""
    rows = [(KINDS[kind], f"{value:.0f}") for kind, value in result["products"].items()]
    rows.append(("Hansa at task A", f"{result['reached']:.0f}"))
    note = (
        f"Task A is {result['gflop_of_a_round']:.0f} GFLOP a round; Hansa makes {result['updates_per_second']:.1f} "
        f"updates a second, {result['share']:.0%} of the fastest product."
    )
    return [Grid(f"Single-precision products, {_PROCESSES} processes of one thread", ("what", "GFLOP/s"), rows, note)]
