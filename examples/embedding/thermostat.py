"""An application that takes part in a federation with what it has measured, in a thread of its own.

    HANSA_TOKEN=... python thermostat.py https://federation.example.org FOLDER

The agent does what the server has signed and the policy allows; the application goes on with its own work.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from hansa.client import Agent, Policy
from hansa.client.policy import Resources


def measured(_features: Any, _signature: Any) -> dict[str, Any]:
    """Return what this device has seen: the hour and the temperature, and whether somebody turned the heating up."""
    random = np.random.default_rng(0)
    x = random.uniform([0, 14], [24, 24], size=(200, 2)).astype(np.float32)
    turned_up = (x[:, 1] < 18).astype(np.int64)
    return {"X": x[:150], "y": turned_up[:150], "X_test": x[150:], "y_test": turned_up[150:]}


def main() -> None:
    """Work until the application ends."""
    server, folder = sys.argv[1], Path(sys.argv[2])
    policy = Policy(resources=Resources(hours="", battery=0.3, metered_network=False))
    agent = Agent(server, measured, folder / "hansa", policy, attributes={"model": "T-1000"}, wait=10)
    agent.enrol(os.environ["HANSA_TOKEN"])
    stop = threading.Event()
    worker = threading.Thread(target=agent.run, args=[stop])
    worker.start()
    try:
        for line in sys.stdin:  # the application's own work
            print("heating:", line.strip())
    finally:
        stop.set()
        worker.join()
        agent.close()


if __name__ == "__main__":
    main()
