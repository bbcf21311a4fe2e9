"""What a server stores of an open round under privacy: updates of a megabyte that wait, and the sum of all others."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from benchmarks.federation.arrivals import Call, Generator
from benchmarks.federation.checkins import told
from benchmarks.federation.jobs import open_round, plan_of, submit
from benchmarks.federation.reports import PARAMETERS, report
from benchmarks.federation.served import POPULATION, Served, served
from hansa.algorithms.plan import Plan
from hansa.algorithms.private_sums import released
from hansa.algorithms.rounds import travelling_layout
from hansa.algorithms.secure_sums import training_code
from hansa.core.nouns import Batch, Signature
from hansa.core.streams import Streams
from hansa.store.records import RoundKey
from hansa.wire.updates import encode_update

_CLIENTS: Final = 200
_RATE: Final = 40.0
"""Reports a second."""
_PRIVACY: Final[dict[str, Any]] = {"unit": "client", "adjacency": "zero-out", "delta": 1e-5}
_LOOK: Final = 0.02
_PATIENCE: Final = 60.0


def storage(*, fold_every: int | None) -> dict[str, Any]:
    """Measure the bytes at rest of a round of 200 clients; without ``fold_every`` every update is kept to the end."""
    settings = {"fold_every": fold_every or 10**9}
    with served(tls=False, settings=settings) as server:
        members = server.enrolled(_CLIENTS)
        server.calls.call("PUT", "/ledger/load", {"epsilon": 1e6, "populations": [POPULATION], **_PRIVACY})
        plan = _plan()
        content = _update(plan)
        digest = hashlib.sha256(content).hexdigest()
        run = submit(server.calls, plan, PARAMETERS, wait_for=_CLIENTS)
        opened = open_round(server.calls, run)
        key = RoundKey(run, "training", int(opened["round"]), int(opened["attempt"]))
        now = time.time()
        calls = [
            Call(place / _RATE, report(member, key, content, digest, now + place / _RATE))
            for place, member in enumerate(members)
        ]
        port = server.federation.port
        with Watch(server.folder / "blobs" / "updates") as watch:
            outcome = Generator(port, tls=None, kept=True).run(calls[:-1])
            time.sleep(1.0)
            rest = watch.now()
        began = time.perf_counter()
        Generator(port, tls=None, kept=True).run([Call(0.0, calls[-1].parts)])
        cohort = _closed(server, run)
        seconds = time.perf_counter() - began
    return {
        **told(outcome, _CLIENTS - 1),
        "update_mb": len(content) / 1e6,
        "at_most_mb": watch.most / 1e6,
        "at_rest_mb": rest / 1e6,
        "close_seconds": seconds,
        "missing": _CLIENTS - cohort,
    }


class Watch:
    """Looks again and again at how many bytes a folder holds, until it is left."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.most = folder, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def now(self) -> int:
        """Return the bytes now."""
        found = 0
        for path in self.folder.rglob("*"):
            try:
                found += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:
                continue
        return found

    def _look(self) -> None:
        while not self._stop.wait(_LOOK):
            self.most = max(self.most, self.now())


def _plan() -> Plan:
    return plan_of(
        transforms="[]",
        aggregator=f'{{ kind = "fixed-mean", divisor = {_CLIENTS} }}',
        cohort=f'{{ kind = "uniform", size = {_CLIENTS} }}',
        privacy="{ clip_norm = 1.0, delta = 1e-5, noise_multiplier = 1.0 }",
        rounds=1,
    )


def _update(plan: Plan) -> bytes:
    """Return an update of integers that a server takes."""
    model = plan.trainer.initial(plan.model, Signature((PARAMETERS - 1,), 2), Streams(0).of("model"))
    layout = travelling_layout(plan, model.layout)
    code = training_code(plan, layout)
    if code is None:
        raise LookupError("a plan with privacy sums integers")
    values = np.ones((1, code.width), dtype=code.dtype)
    sent = released(layout)
    return encode_update(Batch(values, sent.encode_lanes({"count": np.ones(1)}, 1), sent))


def _closed(server: Served, run: str) -> int:
    """Return how many updates a run's first round of training counted, once it is closed."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        for each in server.calls.get(f"/runs/{run}/rounds", limit=5)["rounds"]:
            if each["state"] == "closed":
                return int(each["report"]["cohort"])
        time.sleep(0.01)
    raise TimeoutError(f"the round of {run} was not closed")
