"""Integer noise on one core: ``python -m benchmarks.noise`` prints millions of samples a second by sigma."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import Final

from rich.console import Console
from rich.table import Table

from hansa.privacy.matrices import BandedMatrix
from hansa.privacy.noise import discrete_gaussian

_SIGMAS: Final = (Fraction(3, 10), 2, 10, 100, 700, 1000, 10**4, 10**5, 10**9)
_SAMPLES: Final = 4_000_000
_REPEATS: Final = 3
_ROUNDS: Final = 45


def main() -> None:
    """Measure and print."""
    table = Table("sigma", "first call, s", "million samples/s")
    for sigma in _SIGMAS:
        variance = Fraction(sigma) ** 2
        first = _seconds(lambda variance=variance: discrete_gaussian(variance, 1))
        best = min(_seconds(lambda variance=variance: discrete_gaussian(variance, _SAMPLES)) for _ in range(_REPEATS))
        table.add_row(f"{float(sigma):g}", f"{first:.2f}", f"{_SAMPLES / best / 1e6:.0f}")
    rows = BandedMatrix.optimal(_ROUNDS, 40).noise(Fraction(10**4), 1_000_000, run_key=bytes(32), group="params")
    took = [_seconds(lambda: next(rows)) for _ in range(_ROUNDS)]
    console = Console()
    console.print(table)
    console.print(f"correlated, 40 bands, 1,000,000 entries: {min(took[40:]):.3f} s a round")


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
