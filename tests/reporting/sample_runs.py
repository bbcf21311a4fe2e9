"""Made-up runs for the tests of the report, in the form that a run writes."""

from __future__ import annotations

import math
import random
from typing import Any

HEART_PLAN = """\
name = "Heart disease across four hospitals"
seed = 7
rounds = 40

[data]
source = "heart"
partition = { kind = "natural" }
test_fraction = 0.25

[features]
label = "num"
scaling = "federated"

[model]
factory = "hansa.training.linear:logistic"

[trainer]
kind = "linear"
epochs = 1
batch_size = 16
optimizer = { kind = "sgd", learning_rate = 0.1 }

[cohort]
kind = "full"

[[transforms]]
kind = "weigh-by-size"

[evaluation]
every = 5
metrics = ["auc", "accuracy", "loss"]
baselines = ["local-only", "centralised"]
"""

ENVIRONMENT = {
    "hansa": "0.1.0",
    "python": "3.11.2",
    "numpy": "2.4.6",
    "platform": "Linux-6.1-x86_64",
    "cpu": "2 cores",
    "executor": "serial",
}

HOSPITALS = {
    "Cleveland": (75, 0.897, 0.905, 0.899),
    "Hungary": (73, 0.881, 0.872, 0.884),
    "Switzerland": (31, 0.712, 0.688, 0.705),
    "VA Long Beach": (50, 0.742, 0.751, 0.748),
}


def _score(overall: float, low: float, clients: int, undefined: int = 0) -> dict[str, Any]:
    return {
        "overall": overall,
        "mean": overall - 0.06,
        "worst_client": low,
        "worst_10_percent": low,
        "clients": clients,
        "undefined": undefined,
    }


def _round(number: int, cohort: int, model: int) -> dict[str, Any]:
    return {
        "event": "round",
        "round": number,
        "cohort": cohort,
        "train_loss": 0.36 + 0.33 * math.exp(-number / 8),
        "update_norm": 0.8 * math.exp(-number / 12) + 0.02,
        "model_norm": 1.2,
        "seconds": 0.012,
        "bytes_up": model,
        "bytes_down": model,
    }


def _evaluation(number: int, clients: int, undefined: int = 0, **parts: Any) -> dict[str, Any]:
    grown = 1 - math.exp(-number / 6)
    federated = {
        "auc": _score(0.5 + 0.399 * grown, 0.5 + 0.21 * grown, clients, undefined),
        "accuracy": _score(0.45 + 0.38 * grown, 0.4 + 0.3 * grown, clients),
        "loss": _score(0.69 - 0.30 * grown, 0.69 - 0.12 * grown, clients),
    }
    empty = {"central": None, "validation": None, "held_out_clients": None}
    return {"event": "evaluation", "round": number, **empty, "federated": federated, **parts}


def heart_run() -> dict[str, Any]:
    """Return a run over four hospitals with both baselines, where federation gains little on own examples."""
    after = [
        {"client": name, "examples": size, "auc": fed, "accuracy": fed - 0.08, "loss": 1.1 - fed}
        for name, (size, fed, _, _) in HOSPITALS.items()
    ]
    before = [
        {"client": name, "examples": size, "auc": 0.5, "accuracy": 0.42 + size / 900, "loss": 0.693}
        for name, (size, *_) in HOSPITALS.items()
    ]
    alone = [
        {
            "client": name,
            "overall": {"auc": own - 0.03, "accuracy": 0.74, "loss": 0.61},
            "own": {"auc": own, "accuracy": own - 0.09, "loss": 1.14 - own},
        }
        for name, (_, _, own, _) in HOSPITALS.items()
    ]
    pooled = [
        {"client": name, "auc": value, "accuracy": value - 0.07, "loss": 1.1 - value}
        for name, (*_, value) in HOSPITALS.items()
    ]
    evaluations = [_evaluation(number, 4) for number in range(0, 41, 5)]
    last = evaluations[-1]["federated"]
    last["auc"] = _score(0.899, 0.712, 4) | {"mean": 0.808}
    summary = {
        "run_id": "20260211-142210-heart-7f3a",
        "name": "Heart disease across four hospitals",
        "plan_sha256": "9c1e" * 16,
        "model_sha256": "41d0" * 16,
        "data_sha256": "b7a2" * 16,
        "rounds": 40,
        "stopped_because": "all rounds were done",
        "metrics": {
            "central": None,
            "federated": last,
            "held_out_clients": None,
            "validation": None,
            "per_client": after,
            "auc_error": 0.0007,
        },
        "baselines": {
            "local_only": {
                "clients": alone,
                "overall": {
                    "auc": {"mean": 0.839, "worst": 0.741, "best": 0.887},
                    "accuracy": {"mean": 0.741, "worst": 0.66, "best": 0.81},
                    "loss": {"mean": 0.61, "worst": 0.9, "best": 0.44},
                },
                "own": {"auc": {"mean": 0.804}, "accuracy": {"mean": 0.714}, "loss": {"mean": 0.336}},
                "trained_clients": 4,
                "of": 4,
            },
            "centralised": {
                "overall": {"auc": 0.901, "accuracy": 0.831, "loss": 0.389},
                "central": None,
                "per_client": pooled,
            },
        },
        "seconds_per_round": 0.0121,
        "client_updates_per_second": 331.4,
        "bytes_up_per_client": 120,
        "bytes_down_per_client": 112,
        "peak_rss_mb": 86.2,
        "notes": ["Switzerland: 5 of 92 training examples are of class absent."],
        "data": {
            "source": "heart",
            "clients": 4,
            "sizes": [228, 221, 92, 150],
            "names": list(HOSPITALS),
            "class_names": ["absent", "present"],
            "label_counts": [[123, 105], [141, 80], [5, 87], [38, 112]],
        },
    }
    events: list[dict[str, Any]] = [{"event": "clients", "round": 0, "part": "test", "clients": before}]
    events += [_round(number, 4, 120) for number in range(1, 41)] + evaluations
    events.append({"event": "clients", "round": 40, "part": "test", "clients": after})
    return {"summary": summary, "events": events, "plan_text": HEART_PLAN, "environment": ENVIRONMENT}


def many_run(clients: int = 5000, rounds: int = 300) -> dict[str, Any]:
    """Return a run over many clients, with undefined AUCs, server's examples and clients that never train."""
    draw = random.Random(1)  # noqa: S311 - a picture, not a secret
    events: list[dict[str, Any]] = [
        _round(number, 100 + draw.randint(-9, 9), 813_672) for number in range(1, rounds + 1)
    ]
    undefined = clients // 50
    for number in range(0, rounds + 1, 10):
        grown = 1 - math.exp(-number / 60)
        central = {"accuracy": 0.1 + 0.87 * grown, "loss": 2.3 - 2.1 * grown, "auc": None}
        held = {name: _score(value, value - 0.1, 50) for name, value in (("auc", 0.5 + 0.4 * grown), ("accuracy", 0.4))}
        events.append(_evaluation(number, clients, undefined, central=central, held_out_clients=held))

    def rows(centre: float) -> list[dict[str, Any]]:
        return [
            {
                "client": f"client-{position:05d}",
                "examples": draw.randint(4, 60),
                "auc": None if position % 50 == 0 else min(1.0, max(0.0, draw.gauss(centre, 0.07))),
                "accuracy": min(1.0, max(0.0, draw.gauss(centre - 0.08, 0.09))),
                "loss": abs(draw.gauss(1 - centre, 0.1)),
            }
            for position in range(clients)
        ]

    before, after = rows(0.5), rows(0.86)
    events += [
        {"event": "clients", "round": 0, "part": "test", "clients": before},
        {"event": "clients", "round": rounds, "part": "test", "clients": after},
    ]
    sizes = [int(draw.lognormvariate(4, 0.8)) + 1 for _ in range(min(clients, 1000))]
    last = next(event for event in reversed(events) if event["event"] == "evaluation")
    alone = [
        {"client": row["client"], "overall": {"auc": 0.6, "accuracy": 0.5}, "own": {"auc": 0.83, "accuracy": 0.8}}
        for row in after[1:17]
    ]
    summary = heart_run()["summary"] | {
        "run_id": "20260211-150000-digits-77aa",
        "name": "Digits over many writers",
        "rounds": rounds,
        "metrics": {
            "central": last["central"],
            "federated": last["federated"],
            "held_out_clients": last["held_out_clients"],
            "validation": None,
            "per_client": after,
        },
        "baselines": {
            "local_only": {
                "clients": alone,
                "overall": {"auc": {"mean": 0.6, "worst": 0.55, "best": 0.66}},
                "own": {"auc": {"mean": 0.83}},
                "trained_clients": 16,
                "of": clients,
            },
            "centralised": None,
        },
        "notes": [],
        "data": {
            "source": "npz",
            "clients": clients,
            "sizes": sizes,
            "names": [row["client"] for row in after[: len(sizes)]],
            "class_names": [str(digit) for digit in range(10)],
            "label_counts": [[int(draw.random() ** 6 * size) for _ in range(10)] for size in sizes],
        },
    }
    plan = HEART_PLAN.replace("rounds = 40", f"rounds = {rounds + 100}")
    return {"summary": summary, "events": events, "plan_text": plan, "environment": ENVIRONMENT}


def bare_run() -> dict[str, Any]:
    """Return a run of three rounds without any evaluation or baseline."""
    summary = {"run_id": "bare", "name": "bare", "rounds": 3, "stopped_because": "all rounds were done"}
    summary |= {"metrics": {"central": None, "federated": None}, "data": {"clients": 3, "sizes": [4, 5, 6]}}
    events = [_round(number, 3, 64) for number in (1, 2, 3)]
    return {"summary": summary, "events": events, "plan_text": 'name = "bare"\nrounds = 3\n', "environment": {}}
