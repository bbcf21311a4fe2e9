"""Where the benchmarks keep what they read and write."""

from __future__ import annotations

from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
DATA: Final = HERE / ".data"
"""Synthetic examples, made once."""
ENVIRONMENTS: Final = HERE / ".environments"
"""One virtual environment for each peer, made on demand."""
CACHE: Final = HERE / ".cache"
"""Hansa's cache: what ``--executor auto`` chose. Emptied when a comparison begins."""
RUNS: Final = HERE / ".runs"
"""What single runs write; emptied before each run."""
RESULTS: Final = HERE / "results"
PLANS: Final = HERE / "plans"
PEERS: Final = HERE / "peers"
