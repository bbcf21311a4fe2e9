"""A task in pfl-research: FedAvg in one process, or in several that split each cohort.

The processes of one run find each other by pfl's own environment variables; the first starts the others.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from peer_io import Job

_RANK, _ADDRESSES = "PFL_WORKER_RANK", "PFL_WORKER_ADDRESSES"


def start_others(job: Job) -> list[subprocess.Popen[bytes]]:
    """Start the other processes of the run, before this one imports pfl, which connects to them."""
    if job.processes == 1 or _RANK in os.environ:
        return []
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    os.environ[_ADDRESSES] = ",".join(f"localhost:{port + rank}" for rank in range(job.processes))
    os.environ[_RANK] = "0"
    ranks = range(1, job.processes)
    return [subprocess.Popen([sys.executable, *sys.argv], env=os.environ | {_RANK: str(rank)}) for rank in ranks]  # noqa: S603 - itself


def main() -> None:
    """Run the job whose file is the only argument."""
    job = Job.read(sys.argv[1])
    others = start_others(job)
    try:
        from pfl_training import run  # noqa: PLC0415 - imports pfl

        run(job, first=os.environ.get(_RANK, "0") == "0")
    finally:
        for other in others:
            other.wait()


if __name__ == "__main__":
    main()
