# ruff: noqa: INP001 - a script, not a package
"""Run a part of the slow tests: from a place that moves on every day, until a time is used up.

The tests that were not reached have their turn on another day. A test that fails, or a single one that takes
longer than eight minutes, fails the whole.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from datetime import UTC, datetime
from typing import Any

import pytest

LONGEST = 480
GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly however many there are."""


class Part:
    """A pytest plugin that turns the list of tests to today's place and stops when the time is used up."""

    def __init__(self, seconds: float, day: int) -> None:
        self.seconds = seconds
        self.day = day
        self.began = time.monotonic()
        self.reached = 0
        self.of = 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Start at another test every day, in steps that in time reach all of them."""
        self.of = len(items)
        first = int(self.day * GOLDEN % 1 * len(items))
        items[:] = items[first:] + items[:first]

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:  # noqa: ARG002 - pytest's hook
        """Count a finished test."""
        self.reached += 1

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Stop after this test if the time is used up."""
        if time.monotonic() - self.began > self.seconds and self.reached + 1 < self.of:
            item.session.shouldstop = "the time for slow tests is used up; the others come on another day"


def main() -> int:
    """Run today's part; return an exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="start no further test after so long")
    parser.add_argument("--day", type=int, default=datetime.now(UTC).timetuple().tm_yday, help="day of the year")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(options.seconds) + LONGEST)
    part = Part(options.seconds, options.day)
    failures = Failures()
    status = pytest.main(["-m", "slow and not soak", "-p", "no:xdist"], plugins=[part, failures])
    print(f"{part.reached} of {part.of} slow tests were run.")  # noqa: T201 - a command
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        return 0
    if status == pytest.ExitCode.INTERRUPTED and part.reached < part.of and not failures.count:
        return 0
    return int(status)


class Failures:
    """A pytest plugin that counts what failed."""

    def __init__(self) -> None:
        self.count = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a failed test."""
        self.count += report.failed

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a file that could not be collected."""
        self.count += report.failed


if __name__ == "__main__":
    sys.exit(main())
