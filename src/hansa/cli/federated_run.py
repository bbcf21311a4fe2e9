"""A finished run of a federation as a run folder: what the operator sees, and what the sites of this machine know.

Only somebody who owns the sites' folders can add their own rows; an operator has the sums alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from hansa.core.nouns import Scaling, ServerState
from hansa.evaluation.metrics import Metric
from hansa.reporting.report import render_report
from hansa.reporting.run_folder import ENVIRONMENT, MODEL, PLAN, REPLAY, RunFolder, describe_environment
from hansa.simulation.baselines import run_baselines
from hansa.simulation.preparation import Prepared
from hansa.simulation.summary import describe_data
from hansa.wire.models import model_bytes, sha256
from hansa.wire.plans import write_plan
from hansa.wire.server_models import ServedModel

OWN_ROWS: Final = "own_metrics.jsonl"
KNOWN_TO_SITES: Final = "rows of single hospitals are from their own folders: each is known to that hospital only"
POOLED: Final = "baselines need pooled data: for comparison only"


def write_run(  # noqa: PLR0913 - what the operator and the sites know
    path: Path,
    prepared: Prepared,
    run: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    *,
    model: bytes,
    states: Mapping[str, Path],
) -> tuple[dict[str, Any], RunFolder]:
    """Write a run folder with its report; return the summary. ``states`` are the folders of the sites by name."""
    folder = RunFolder.create(path)
    own = {name: own_rows(state, str(run["id"])) for name, state in states.items()}
    events = list(events_of(rounds, prepared.metrics, own))
    content = model_bytes(prepared.plan, _state(prepared, run, model))
    folder.write(PLAN, write_plan(prepared.plan))
    folder.write(ENVIRONMENT, _json(describe_environment("a federation on this machine, over TLS")))
    folder.write(MODEL, content)
    summary = summarise(prepared, run, events, content)
    folder.append_events([*events, {"event": "summary", **summary}])
    report = render_report(
        summary=summary,
        events=events,
        plan_text=folder.read(PLAN),
        environment=folder.read_json(ENVIRONMENT),
    )
    folder.write("report.html", report)
    identity = {"run_id": run["id"], "plan_sha256": prepared.plan_sha256, "model_sha256": sha256(content)}
    folder.write(REPLAY, _json({**identity, "federation": True, "files": folder.digests()}))
    return summary, folder


def own_rows(state: Path, run: str) -> dict[int, dict[str, Any]]:
    """Return what a site measured of a run on its own examples: round -> metrics."""
    path = state / OWN_ROWS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [row for row in map(json.loads, lines) if row["run"] == run]
    return {int(row["round"]): row for row in rows}


def events_of(
    rounds: Sequence[Mapping[str, Any]], metrics: Sequence[Metric], own: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> Sequence[dict[str, Any]]:
    """Return a run's events as metrics.jsonl has them."""
    events: list[dict[str, Any]] = []
    closed = [each for each in reversed(rounds) if each["state"] == "closed"]
    last = max((each["round"] for each in closed if each["kind"] == "evaluation"), default=0)
    for each in closed:
        if each["kind"] == "training":
            events.append(dict(each["report"]))
        elif each["kind"] == "evaluation":
            number = int(each["round"])
            rows = {name: measured[number] for name, measured in own.items() if number in measured}
            events.append(_evaluation(each["report"], metrics, rows))
            if number in (0, last):
                clients = [{"client": name, **_figures(row, metrics)} for name, row in rows.items()]
                events.append({"event": "clients", "round": number, "part": "test", "clients": clients})
    return events


def _evaluation(
    report: Mapping[str, Any], metrics: Sequence[Metric], rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    federated: dict[str, Any] = {}
    for metric in metrics:
        known = [row[metric.name] for row in rows.values() if row.get(metric.name) is not None]
        worst = (min if metric.higher_is_better else max)(known, default=None)
        federated[metric.name] = {
            **report["federated"].get(metric.name, {}),
            "mean": fmean(known) if known else None,
            "worst_client": worst,
            "worst_10_percent": worst,
            "clients": len(known),
            "undefined": len(rows) - len(known),
        }
    absent = {"central": None, "validation": None, "held_out_clients": None}
    return {"event": "evaluation", "round": report["round"], "federated": federated, **absent}


def summarise(
    prepared: Prepared, run: Mapping[str, Any], events: Sequence[Mapping[str, Any]], model: bytes
) -> dict[str, Any]:
    """Return the summary of a run, with the baselines that its plan asks for."""
    training = [event for event in events if event["event"] == "round"]
    measured = [event for event in events if event["event"] == "evaluation"][-1]
    clients = [event["clients"] for event in events if event["event"] == "clients"]
    seconds = [event["seconds"] for event in training]
    updates = sum(event["cohort"] for event in training)
    notes = [KNOWN_TO_SITES, *([POOLED] if prepared.plan.evaluation.baselines else []), *prepared.notes]
    return {
        "run_id": run["id"],
        "name": prepared.plan.name,
        "plan_sha256": prepared.plan_sha256,
        "model_sha256": sha256(model),
        "data_sha256": prepared.data.sha256,
        "rounds": run["round"],
        "metrics": {
            **{part: measured[part] for part in ("central", "federated", "validation", "held_out_clients")},
            "per_client": clients[-1] if clients else [],
        },
        "auc_error": None,
        "seconds_per_round": sorted(seconds)[len(seconds) // 2] if seconds else None,
        "client_updates_per_second": updates / max(sum(seconds), 1e-9),
        "bytes_up_per_client": sum(event["bytes_up"] for event in training) / max(len(training), 1),
        "bytes_down_per_client": training[-1]["bytes_down"] if training else 0.0,
        "peak_rss_mb": None,
        "simulated": None,
        "notes": notes,
        "data": describe_data(prepared),
        "stopped_because": run["why"],
        "baselines": run_baselines(prepared, int(run["round"])),
    }


def _figures(row: Mapping[str, Any], metrics: Sequence[Metric]) -> dict[str, Any]:
    return {"examples": row["examples"], **{metric.name: row.get(metric.name) for metric in metrics}}


def _state(prepared: Prepared, run: Mapping[str, Any], model: bytes) -> ServerState:
    served = ServedModel.from_bytes(model, prepared.first.layout.size)
    features: Scaling | None = served.features
    return ServerState(int(run["round"]), prepared.first.layout, served.values, features)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
