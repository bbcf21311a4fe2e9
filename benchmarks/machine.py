"""What machine and what versions a result was measured on."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.places import HERE


def facts() -> dict[str, Any]:
    """Return processor, memory, versions, commit and date."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": commit(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("hansa", "numpy", "torch")},
        "load_before": os.getloadavg()[0],
    }


def processor() -> str:
    """Return the processor's name, and its family and model where the name alone says little."""
    told: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    name = told.get("model name", platform.machine())
    vectors = "AVX-512" if "avx512f" in told.get("flags", "") else "AVX2" if "avx2" in told.get("flags", "") else ""
    parts = [name, f"family {told.get('cpu family', '?')} model {told.get('model', '?')}", vectors]
    return ", ".join(part for part in parts if part)


def commit() -> str:
    """Return the commit that is measured, and whether files differ from it."""
    described = _git("rev-parse", "--short=12", "HEAD")
    return (
        f"{described} with changes" if described and _git("status", "--porcelain", "-uno") else described or "unknown"
    )


def version(package: str) -> str:
    """Return the version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


class Bystanders:
    """Cores that other processes of the machine used meanwhile: a run that was disturbed says so."""

    def __init__(self) -> None:
        self._before = self._now()

    def cores(self) -> float:
        """Return the mean number of cores used since the start by all but this process and its reaped children."""
        busy, own, seconds = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return max(0.0, (busy - own) / max(seconds, 1e-9))

    @staticmethod
    def _now() -> tuple[float, float, float]:
        user, nice, system, idle, waiting, *rest = map(
            int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        )
        ticks = os.sysconf("SC_CLK_TCK")
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        busy = (user + nice + system + sum(rest[:2])) / ticks
        total = (user + nice + system + idle + waiting + sum(rest[:3])) / ticks
        return busy, sum(usage.ru_utime + usage.ru_stime for usage in own), total / (os.cpu_count() or 1)


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], check=False, capture_output=True, text=True, cwd=HERE)  # noqa: S603, S607 - git
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    sys.stdout.write(f"{facts()}\n")
