"""The plans under which federations are tortured: what they are to show, and how long they wait."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from hansa.algorithms.aggregators import FixedMean
from hansa.algorithms.samplers import MinSeparation
from hansa.algorithms.schedule import Sync
from hansa.core.privacy import Privacy
from hansa.core.secure_aggregation import Authority, Decryptor, SecureAggregation
from hansa.testing.hospitals import small_plan

WITH_STATE: Final = {
    "trainer": {
        "kind": "linear",
        "epochs": 1,
        "batch_size": 64,
        "optimizer": {"kind": "sgd", "learning_rate": 0.05},
        "hooks": [{"kind": "control-variate"}],
    },
    "transforms": [],
    "server_optimizer": {
        "kind": "momentum",
        "learning_rate": 1.0,
        "branches": {"control": {"kind": "sgd", "learning_rate": "included/population"}},
    },
}
"""What makes the small plan keep rows on its clients and slots on its server."""
FULL: Final = small_plan(name="all take part", rounds=3, **WITH_STATE)
"""Full participation: whatever is killed, the model is the same."""
_DEADLINE: Final = 4.0
"""Seconds, where outages are longer: whoever is there must answer in time, on a busy machine too."""
SHORT: Final = small_plan(
    name="some are late",
    rounds=3,
    cohort={"kind": "uniform", "size": 2},
    devices={"preset": "hospitals"},  # for a simulation; nothing of it is deployed
    schedule={"kind": "sync", "over_selection": 0.5, "report_goal": 2, "round_deadline": _DEADLINE},
    evaluation={"every": 3, "metrics": ["auc"], "baselines": []},
)
"""Over-selection, a goal and a deadline shorter than outages: who is late is made up for."""
AWAY: Final = small_plan(
    name="whoever is away is missed",
    rounds=3,
    cohort={"kind": "uniform", "size": 2},
    devices={"preset": "hospitals"},  # as above
    schedule={"kind": "sync", "report_goal": 2, "round_deadline": _DEADLINE},
    features={"label": "disease", "scaling": "none"},
    evaluation={"federated": False},
)
"""Training only, and a goal that nobody on top makes up for: with outages, rounds are abandoned."""
_SUMS: Final[dict[str, Any]] = {
    "minimum_cohort": 4,
    "minimum_survivors": 4,
    "maximum_cohort": 4,
    "max_weight": 300.0,
    "phase_deadline": 30.0,
}
"""Of all hospitals or none: a sum that somebody is missing from is given up, and made once more."""
SECURE: Final = small_plan(
    name="only the sum is seen",
    rounds=3,
    secure_aggregation=_SUMS,
    **{**WITH_STATE, "transforms": [{"kind": "weigh-by-size"}]},
)
"""Full participation under secure sums: the model is the same where clients round by the coins of the seed."""
ONESHOT: Final = replace(
    SECURE,
    name="decryptors remove the masks",
    secure_aggregation=SecureAggregation(
        **_SUMS,
        protocol="oneshot-seeds",
        decryptors=tuple(Decryptor(name=each, url="https://localhost", operator=each) for each in ("north", "south")),
    ),
)
"""As above, by one upload of each client and the decryptors of two operators: the campaign's own, when it runs."""
AUTHORITY: Final = replace(
    SECURE,
    name="an authority draws the graph",
    secure_aggregation=SecureAggregation(
        **_SUMS,
        protocol="secagg-plus",
        expected_dropout=0.0,
        registrar="authority",
        beacon="authority",
        authority=Authority(url="https://localhost", operator="notary", key="the campaign's own"),
    ),
)
"""As above, on a graph that the campaign's own authority draws: of two neighbours, as against a curious server. One
that is safe from a server that lies has ten clients; it is drawn, kept and told in the same way."""
_NOISE: Final[dict[str, Any]] = {"clip_norm": 1.0, "delta": 1e-5, "noise_multiplier": 2.0}
PRIVATE: Final = small_plan(
    name="each round is charged",
    rounds=3,
    cohort={"kind": "uniform", "size": 2},
    devices={"preset": "hospitals"},  # as above
    schedule={"kind": "sync", "report_goal": 2, "round_deadline": _DEADLINE},
    features={"label": "disease", "scaling": "declared"},
    evaluation={"federated": False},
    transforms=[],
    aggregator={"kind": "fixed-mean", "divisor": 2},
    privacy=_NOISE,
)
"""Noise by the server, independent: with outages, attempts are given up, and what they reserved with them."""
CORRELATED: Final = replace(
    PRIVATE,
    name="the run is charged as a whole",
    cohort=MinSeparation(size=1, rounds=2),
    schedule=Sync(report_goal=1, round_deadline=_DEADLINE),
    aggregator=FixedMean(divisor=1.0),
    privacy=Privacy(**_NOISE, mechanism="banded-matrix"),
)
"""Correlated noise: one charge, and a row of noise for each model, whatever attempt gave it."""
