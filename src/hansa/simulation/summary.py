"""The summary of a finished run: what ``--json`` prints, and what reports and comparisons read."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

import numpy as np

from hansa.algorithms.example_checks import example_privacy_of
from hansa.algorithms.plan import Plan
from hansa.algorithms.secure_sums import training_code
from hansa.core.ledger import Balance
from hansa.core.nouns import ServerState
from hansa.reporting.run_folder import RunFolder
from hansa.simulation.preparation import Prepared
from hansa.simulation.secure_sum import cut_notes, summary_of
from hansa.simulation.timeline import simulated

_NAMED_CLIENTS: Final = 1000
_ROWS_AT_ONCE: Final = 8192


def summarise(
    prepared: Prepared, folder: RunFolder, state: ServerState, identity: Mapping[str, Any], seconds: Sequence[float]
) -> dict[str, Any]:
    """Return the summary of a run whose last rounds took ``seconds`` each, checkpoints included.

    A run that was resumed after its last round has no rounds of its own to time; what the others noted then serves.
    """
    events = folder.events()
    rounds = [event for event in events if event["event"] == "round"]
    measured = [event for event in events if event["event"] == "evaluation"][-1]
    rows = [event["clients"] for event in events if event["event"] == "clients"]
    timed = rounds[len(rounds) - len(seconds) :] if seconds else rounds
    spent = list(seconds) or [event["seconds"] for event in rounds]
    up = sum(event["bytes_up"] * event["cohort"] for event in rounds)
    updates = sum(event["cohort"] for event in rounds)
    secure, private = summary_of(prepared.plan, rounds), _private(prepared)
    return {
        "run_id": identity["run_id"],
        "name": prepared.plan.name,
        "plan_sha256": prepared.plan_sha256,
        "model_sha256": identity["model_sha256"],
        "data_sha256": prepared.data.sha256,
        "rounds": state.round,
        "metrics": {
            **{part: measured[part] for part in ("central", "federated", "validation", "held_out_clients")},
            "per_client": rows[-1] if rows else [],
        },
        "auc_error": ((measured["federated"] or {}).get("auc") or {}).get("auc_error"),
        "seconds_per_round": median(spent) if spent else None,
        "client_updates_per_second": sum(event["cohort"] for event in timed) / max(sum(spent), 1e-9),
        "bytes_up_per_client": up / max(updates, 1),
        "bytes_down_per_client": float(state.model.nbytes),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "simulated": simulated(prepared, rounds),
        "secure_aggregation": secure,
        "privacy": private,
        "example_privacy": _examples(prepared.plan),
        "notes": [*prepared.notes, *cut_notes(secure)],
        "data": describe_data(prepared),
    }


def _private(prepared: Prepared) -> dict[str, Any] | None:
    """Return what the run's privacy would cost; None without any."""
    if prepared.plan.privacy is None:
        return None
    from hansa.reporting.privacy_sentences import HYPOTHETICAL, told  # noqa: PLC0415 - cryptography, where it is used

    return {
        **(told(prepared.plan, training_code(prepared.plan, prepared.first.layout)) or {}),
        "ledger": None,
        "meaning": HYPOTHETICAL,
    }


def charged(balance: Balance) -> dict[str, Any]:
    """Return what is told of a run's privacy where it was charged to a ledger, whose balance is this after it."""
    from hansa.reporting.privacy_sentences import charged_meaning  # noqa: PLC0415 - as above

    ledger = {
        "scope": balance.scope,
        "limit": balance.limit,
        "epsilon_charged": balance.charged,
        "epsilon_reference": balance.reference,
        "remaining": balance.remaining,
    }
    return {"ledger": ledger, "meaning": charged_meaning(balance)}


def _examples(plan: Plan) -> dict[str, Any] | None:
    """Return what the run costs every single example; None where nothing protects them."""
    if example_privacy_of(plan.trainer) is None:
        return None
    from hansa.reporting.example_sentences import SIMULATED, told_examples  # noqa: PLC0415 - as above

    return {**(told_examples(plan) or {}), "meaning": SIMULATED}


def describe_data(prepared: Prepared) -> dict[str, Any]:
    """Return what the report tells of the data: sizes and labels of the first clients."""
    datasets = prepared.data.train
    some = np.arange(min(prepared.population, _NAMED_CLIENTS))
    described: dict[str, Any] = {
        "source": prepared.plan.data.source if prepared.plan.data else "",
        "clients": prepared.population,
        "sizes": datasets.sizes(some).tolist(),
        "names": [datasets.names[ordinal] for ordinal in some.tolist()],
        "class_names": list(prepared.data.class_names),
        "label_counts": [],
    }
    classes = prepared.data.signature.classes
    if 0 < classes <= 100:
        for part in prepared.clients(some, None).parts(rows=_ROWS_AT_ONCE, clients=_NAMED_CLIENTS):
            labels = part.all_labels().astype(np.int64)
            described["label_counts"] += [
                np.bincount(row[:size], minlength=classes).tolist()
                for row, size in zip(labels, part.sizes.tolist(), strict=True)
            ]
    return described
