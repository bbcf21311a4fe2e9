"""A task in Flower: its Simulation Runtime on Ray, one actor for each process, one core for each actor."""

from __future__ import annotations

import os
import sys

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from flower_app import JOB, client_app, server_app
from flwr.simulation import run_simulation
from peer_io import Job


def main() -> None:
    """Run the job whose file is the only argument."""
    os.environ[JOB] = sys.argv[1]
    job = Job.read(sys.argv[1])
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=job.clients,
        backend_config={
            "init_args": {"num_cpus": job.processes},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


if __name__ == "__main__":
    main()
