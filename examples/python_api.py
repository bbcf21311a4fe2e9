"""A plan in Python: the same pieces as in a file, and callbacks that watch.

Run it with ``python examples/python_api.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hansa


def watch(event: Mapping[str, Any]) -> bool:
    """Print every evaluation; return True to stop the run once it is good enough."""
    if event["event"] != "evaluation":
        return False
    auc = event["federated"]["auc"]["overall"]
    print(f"round {event['round']:2}: AUC {auc:.3f}")
    return auc > 0.95


def main() -> None:
    """Run FedProx on the heart data; print the result of the last evaluation and of each hospital alone."""
    plan = hansa.recipe(
        "fedprox",
        mu=0.1,
        name="heart disease, from Python",
        rounds=20,
        data={"source": "heart", "test_fraction": 0.25},
        model={"factory": "hansa.training.linear:logistic"},
        trainer={
            "kind": "linear",
            "epochs": 2,
            "batch_size": 16,
            "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        },
        evaluation={"every": 5, "metrics": ["auc"], "baselines": ["local-only"]},
    )
    result = hansa.run(plan, callbacks=[watch])
    for client in result.summary["baselines"]["local_only"]["clients"]:
        print(f"{client['client']} alone: AUC {client['overall']['auc']:.3f} on all held-out patients")
    print(f"report: {result.report}")


if __name__ == "__main__":
    main()
