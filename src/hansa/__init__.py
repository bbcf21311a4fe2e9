"""Hansa: federated learning from one plan, in simulation and in production."""

from __future__ import annotations

from hansa.algorithms.plan import Plan, recipe
from hansa.core.errors import HansaError
from hansa.simulation.run import RunResult, replay, resume, run
from hansa.wire.plans import read_plan

__all__ = ["HansaError", "Plan", "RunResult", "read_plan", "recipe", "replay", "resume", "run"]
