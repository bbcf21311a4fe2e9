"""The command ``hansa`` under cProfile, all threads of it: ``python -m benchmarks.profiled_run FILE WORDS...``."""

from __future__ import annotations

import cProfile
import pstats
import sys
import threading
from pathlib import Path


def profile_threads(into: list[cProfile.Profile]) -> None:
    """Give each thread that starts from here on a profiler of its own; cProfile itself sees one thread only."""
    run = threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        profiler = cProfile.Profile()
        into.append(profiler)
        profiler.runcall(run, thread)

    threading.Thread.run = profiled  # type: ignore[method-assign]


def main() -> None:
    """Run the command, then write the statistics of all its threads into FILE."""
    file, *words = sys.argv[1:]
    profilers = [cProfile.Profile()]
    profile_threads(profilers)
    sys.argv = ["hansa", *words]
    status: str | int | None = 0
    profilers[0].enable()
    try:
        from hansa.cli.main import main as hansa  # noqa: PLC0415 - importing it is part of the time

        hansa()
    except SystemExit as end:
        status = end.code
    finally:
        profilers[0].disable()
    statistics = pstats.Stats(profilers[0])
    for profiler in profilers[1:]:
        profiler.create_stats()
        if profiler.stats:  # type: ignore[attr-defined]
            statistics.add(profiler)
    statistics.dump_stats(Path(file))
    sys.exit(status)


if __name__ == "__main__":
    main()
