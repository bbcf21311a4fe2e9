"""Published methods, each a few tables of a plan: what the method fixes, to be laid under a plan's own.

A plan file names one (``recipe = "fedprox"``, or ``recipe = { kind = "fedprox", mu = 0.1 }``) and gives the
rest: data, model, trainer, cohort, rounds. In Python: ``hansa.recipe("fedprox", mu=0.1, name=..., ...)``.
"""

from __future__ import annotations

from typing import Any

Tables = dict[str, Any]


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
