"""Plans whose training costs nothing, submitted to a server under load."""

from __future__ import annotations

import hashlib
import time
from typing import Any, Final

import numpy as np
import safetensors.numpy

from benchmarks.federation.served import POPULATION
from benchmarks.places import PLANS
from hansa.algorithms.plan import Plan
from hansa.algorithms.rounds import travelling_layout
from hansa.cli.job_building import build_job
from hansa.cli.operator_client import Operator
from hansa.core.nouns import Signature
from hansa.wire.plans import read_plan

_PATIENCE: Final = 60.0


def plan_of(**settings: Any) -> Plan:
    """Return the plan of all loads, with some settings."""
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return read_plan(PLANS / "federation.toml", overrides)


def submit(calls: Operator, plan: Plan, size: int, **options: Any) -> str:
    """Submit a plan with a logistic model of ``size`` parameters; return the run."""
    job = build_job(plan, population=POPULATION, signature=Signature((size - 1,), 2), **options)
    calls.upload(f"/models/{job.body['model']}", job.model)
    return str(calls.call("POST", "/jobs", job.body)["run"]["id"])


def open_round(calls: Operator, run: str, kind: str = "training") -> dict[str, Any]:
    """Return a run's open round of a kind, as soon as there is one."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        for each in calls.get(f"/runs/{run}/rounds", limit=5)["rounds"]:
            if each["kind"] == kind and each["state"] in ("opening", "collecting"):
                return dict(each)
        time.sleep(0.05)
    raise TimeoutError(f"no {kind} round of {run} was opened")


def update_of(plan: Plan, size: int, value: float = 0.001) -> tuple[bytes, str]:
    """Return an update of a logistic model of ``size`` parameters that a server takes, and its digest."""
    built = plan.trainer.initial(plan.model, Signature((size - 1,), 2), _no_streams())
    layout = travelling_layout(plan, built.layout)
    values = np.full(layout.size, value, dtype=np.float32)
    ones = {lane.name: np.ones(1) for lane in layout.lanes if lane.purpose == "weight" or lane.name == "count"}
    lanes = layout.encode_lanes(ones, 1)[0]
    content = safetensors.numpy.save({"values": values, "lanes": lanes})
    return content, hashlib.sha256(content).hexdigest()


def _no_streams() -> Any:
    """Return what a model of zeros is made with."""
    from hansa.core.streams import Streams  # noqa: PLC0415 - a plan's own are not needed here

    return Streams(0).of("model")
