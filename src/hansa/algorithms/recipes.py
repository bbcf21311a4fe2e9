"""Published methods, each a few tables of a plan: what the method fixes, to be laid under a plan's own.

A plan file names one (``recipe = "fedprox"``, or ``recipe = { kind = "fedprox", mu = 0.1 }``) and gives the
rest: data, model, trainer, cohort, rounds. In Python: ``hansa.recipe("fedprox", mu=0.1, name=..., ...)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hansa.core.errors import Problem

Tables = dict[str, Any]

ESSENTIAL: Final[dict[str, tuple[str, ...]]] = {
    "fedsgd": ("trainer.epochs", "trainer.batch_size"),
    "fedprox": ("trainer.hooks",),
    "fedavgm": ("server_optimizer.kind",),
    "fedadagrad": ("server_optimizer.kind",),
    "fedadam": ("server_optimizer.kind",),
    "fedyogi": ("server_optimizer.kind",),
    "scaffold": ("trainer.hooks",),
    "fednova": ("transforms",),
    "fedbuff": ("schedule.kind",),
}
"""What makes a method the method: a plan that names it and sets these otherwise would run another one."""


def essential_problems(kind: str, tables: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Problem]:
    """Return where a plan's tables take away what its recipe is named for."""
    return [
        Problem(path, f"is {_shown(found)}, but {kind} means {_shown(wanted)}; set it so, or take another recipe.")
        for path in ESSENTIAL.get(kind, ())
        for wanted, found in [(_at(tables, path), _at(plan, path))]
        if not _keeps(wanted, found)
    ]


def _at(tables: Any, path: str) -> Any:
    for key in path.split("."):
        tables = tables.get(key) if isinstance(tables, Mapping) else None
    return tables


def _keeps(wanted: Any, found: Any) -> bool:
    """Return True if a value is as wanted; an array, if it has the wanted kinds of pieces among others."""
    if isinstance(wanted, list):
        return isinstance(found, list | tuple) and {*map(_kind, wanted)} <= {*map(_kind, found)}
    return bool(wanted == found)


def _kind(piece: Any) -> Any:
    return piece.get("kind") if isinstance(piece, Mapping) else piece


def _shown(value: Any) -> str:
    return " and ".join(str(_kind(piece)) for piece in value) or "empty" if isinstance(value, list) else repr(value)


def fedavg() -> Tables:
    """Federated averaging: McMahan et al. 2017, algorithm 1, https://arxiv.org/abs/1602.05629."""
    return {
        "transforms": [{"kind": "weigh-by-size"}],
        "aggregator": {"kind": "mean"},
        "server_optimizer": {"kind": "sgd", "learning_rate": 1.0},
    }


def fedsgd() -> Tables:
    """One full-batch gradient a round: McMahan et al. 2017, section 2. The step size is the trainer's."""
    return {**fedavg(), "trainer": {"epochs": 1, "batch_size": "all"}}


def fedprox(mu: float = 0.01) -> Tables:
    """FedAvg with a pull towards the server's model: Li et al. 2020, https://arxiv.org/abs/1812.06127."""
    return {**fedavg(), "trainer": {"hooks": [{"kind": "prox", "mu": mu}]}}


def fedavgm(momentum: float = 0.9, learning_rate: float = 1.0) -> Tables:
    """FedAvg with momentum on the server: Hsu et al. 2019, https://arxiv.org/abs/1909.06335."""
    optimizer = {"kind": "momentum", "momentum": momentum, "learning_rate": learning_rate}
    return {**fedavg(), "server_optimizer": optimizer}


def fedadagrad(learning_rate: float = 0.1, tau: float = 1e-3) -> Tables:
    """FedAvg with Adagrad on the server: Reddi et al. 2021, algorithm 2, https://arxiv.org/abs/2003.00295."""
    return {**fedavg(), "server_optimizer": {"kind": "adagrad", "learning_rate": learning_rate, "tau": tau}}


def fedadam(learning_rate: float = 0.01, tau: float = 1e-3) -> Tables:
    """FedAvg with Adam on the server: Reddi et al. 2021, algorithm 2."""
    return {**fedavg(), "server_optimizer": {"kind": "adam", "learning_rate": learning_rate, "tau": tau}}


def fedyogi(learning_rate: float = 0.01, tau: float = 1e-3) -> Tables:
    """FedAvg with Yogi on the server: Reddi et al. 2021, algorithm 2."""
    return {**fedavg(), "server_optimizer": {"kind": "yogi", "learning_rate": learning_rate, "tau": tau}}


def scaffold(learning_rate: float = 1.0) -> Tables:
    """Control variates against client drift: Karimireddy et al. 2020, https://arxiv.org/abs/1910.06378."""
    return {
        "trainer": {"hooks": [{"kind": "control-variate"}]},
        "transforms": [],
        "aggregator": {"kind": "mean"},
        "server_optimizer": {
            "kind": "sgd",
            "learning_rate": learning_rate,
            "branches": {"control": {"kind": "sgd", "learning_rate": "included/population"}},
        },
    }


def fednova() -> Tables:
    """Normalised averaging for unequal local steps: Wang et al. 2020, https://arxiv.org/abs/2007.07481."""
    return {**fedavg(), "transforms": [{"kind": "normalise-by-steps"}, {"kind": "weigh-by-size"}]}


def fedbuff(buffer_size: int = 10, concurrency: int = 100, server_learning_rate: float = 1.0) -> Tables:
    """Buffered asynchronous aggregation: Nguyen et al. 2022, algorithm 1, https://arxiv.org/abs/2106.06639."""
    return {
        "cohort": {"kind": "full"},
        "schedule": {"kind": "buffered", "buffer_size": buffer_size, "concurrency": concurrency},
        "transforms": [],
        "aggregator": {"kind": "fixed-mean", "divisor": float(buffer_size)},
        "server_optimizer": {"kind": "sgd", "learning_rate": server_learning_rate},
    }
