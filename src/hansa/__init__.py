"""Hansa: federated learning from one plan, in simulation and in production."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from hansa.algorithms.plan import Plan, recipe
    from hansa.core.errors import HansaError
    from hansa.core.ledger import LedgerFile
    from hansa.simulation.run import RunResult, replay, resume, run
    from hansa.wire.plans import read_plan

__all__ = ["HansaError", "LedgerFile", "Plan", "RunResult", "read_plan", "recipe", "replay", "resume", "run"]

_HOMES: Final = {
    "HansaError": "hansa.core.errors",
    "LedgerFile": "hansa.core.ledger",
    "Plan": "hansa.algorithms.plan",
    "RunResult": "hansa.simulation.run",
    "read_plan": "hansa.wire.plans",
    "recipe": "hansa.algorithms.plan",
    "replay": "hansa.simulation.run",
    "resume": "hansa.simulation.run",
    "run": "hansa.simulation.run",
}
"""Public names are imported when they are used: whoever needs one room only loads that room."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hansa' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
