"""What a process has freed goes back to the system, though something behind it is still in use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ARRAYS = """
from pathlib import Path

import numpy as np

from hansa.simulation.memory import give_back_memory
from hansa.training.torch_kernels import keep_memory


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


keep_memory()
arrays = [np.ones(2**17) for _ in range(128)]
del arrays[:-1]
kept = resident()
give_back_memory()
print(kept - resident(), float(arrays[0].sum()))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells memory by /proc")
def test_freed_memory_goes_back_and_what_is_in_use_stays() -> None:
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", _ARRAYS], check=True, capture_output=True, text=True)
    given_back, in_use = map(float, done.stdout.split())
    assert given_back > 100 * 2**20
    assert in_use == 2**17
