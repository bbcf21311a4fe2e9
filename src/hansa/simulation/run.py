"""Running a plan: ``run``, ``resume``, ``replay``. A run lives in a folder and ends with a summary and a report."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hansa.algorithms.plan import Plan
from hansa.core.errors import RunError
from hansa.core.nouns import ServerState
from hansa.reporting.report import render_report
from hansa.reporting.run_folder import (
    ENVIRONMENT,
    METRICS,
    MODEL,
    PLAN,
    REPLAY,
    REPORT,
    RunFolder,
    describe_environment,
    new_run_id,
)
from hansa.simulation.baselines import run_baselines
from hansa.simulation.engine import CHECKPOINT, Callback, Engine
from hansa.simulation.executors import executor_named
from hansa.simulation.preparation import Prepared, prepare
from hansa.wire.models import model_bytes, sha256
from hansa.wire.plans import read_plan, write_plan

_NAMED_CLIENTS = 1000


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder and its summary (what ``--json`` prints)."""

    path: Path
    summary: dict[str, Any]

    @property
    def report(self) -> Path:
        """Return the path of the report."""
        return self.path / REPORT

    @property
    def model(self) -> Path:
        """Return the path of the model file."""
        return self.path / MODEL


def run(
    plan: Plan, *, out: Path | str | None = None, executor: str = "serial", callbacks: Sequence[Callback] = ()
) -> RunResult:
    """Run a plan in simulation, in a new folder (default: runs/ and a new run id), and return its result.

    Raises HansaError: PlanError, DataError, ModelError before the first round, RunError and DivergenceError later.
    """
    computing = executor_named(executor)
    prepared = prepare(plan)
    run_id = new_run_id()
    folder = RunFolder.create(Path(out) if out is not None else Path("runs") / run_id)
    with _storage(folder):
        folder.write(PLAN, write_plan(prepared.plan))
        folder.write(ENVIRONMENT, _json(describe_environment(executor)))
        folder.write(REPLAY, _json(_identity(prepared, executor, run_id)))
        return _execute(Engine(prepared, folder, computing, tuple(callbacks)))


def resume(path: Path | str, *, callbacks: Sequence[Callback] = ()) -> RunResult:
    """Go on with a run that was interrupted, from its last closed round, to the same final model."""
    folder = RunFolder.open(Path(path))
    identity = folder.read_json(REPLAY)
    if identity.get("files"):
        return RunResult(folder.path, folder.summary())
    prepared = _prepare_again(folder, identity)
    with _storage(folder):
        return _execute(Engine(prepared, folder, executor_named(identity["executor"]), tuple(callbacks)))


@dataclass(frozen=True)
class Replayed:
    """What a replay found: the names of changed files, and what came out differently (both empty if exact)."""

    changed: tuple[str, ...]
    differences: tuple[str, ...]
    model_sha256: str | None


def replay(path: Path | str, *, callbacks: Sequence[Callback] = ()) -> Replayed:
    """Run a finished run's plan again and compare, bit for bit. Changed files are named, and nothing is run."""
    folder = RunFolder.open(Path(path))
    identity = folder.read_json(REPLAY)
    if not identity.get("files"):
        folder.summary()
    changed = tuple(folder.changed_files())
    if changed:
        return Replayed(changed, (), None)
    prepared = _prepare_again(folder, identity)
    with tempfile.TemporaryDirectory(prefix="hansa-replay-") as temporary:
        again = RunFolder.create(Path(temporary) / "run")
        for name in (PLAN, ENVIRONMENT):
            again.write(name, folder.read(name))
        again.write(REPLAY, _json({**identity, "files": {}}))
        result = _execute(Engine(prepared, again, executor_named(identity["executor"]), tuple(callbacks)))
        differences = _differences(folder, again)
    return Replayed((), differences, result.summary["model_sha256"])


def _execute(engine: Engine) -> RunResult:
    """Run to the end, then write the model, the baselines, the summary and the report."""
    prepared, folder = engine.prepared, engine.folder
    plan = prepared.plan
    about = {"name": plan.name, "notes": prepared.notes, "folder": str(folder.path)}
    engine.tell({"event": "start", "rounds": plan.rounds, **about})
    state, stopped = engine.run()
    model = model_bytes(prepared.plan, state)
    folder.write(MODEL, model)
    engine.tell({"event": "baselines", "baselines": plan.evaluation.baselines})
    baselines = run_baselines(prepared, state.round)
    identity = {**folder.read_json(REPLAY), "model_sha256": sha256(model), "rounds": state.round}
    summary = _summarise(prepared, folder, state, identity) | {"stopped_because": stopped, "baselines": baselines}
    folder.append_events([{"event": "summary", **summary}])
    events = folder.events()
    report = render_report(
        summary=summary,
        events=[event for event in events if event["event"] != "summary"],
        plan_text=folder.read(PLAN),
        environment=folder.read_json(ENVIRONMENT),
    )
    folder.write(REPORT, report)
    folder.write(REPLAY, _json({**identity, "files": folder.digests()}))
    shutil.rmtree(folder.path / CHECKPOINT)
    return RunResult(folder.path, summary)


def _summarise(prepared: Prepared, folder: RunFolder, state: ServerState, identity: dict[str, Any]) -> dict[str, Any]:
    events = folder.events()
    rounds = [event for event in events if event["event"] == "round"]
    measured = [event for event in events if event["event"] == "evaluation"][-1]
    rows = [event["clients"] for event in events if event["event"] == "clients"]
    seconds = [event["seconds"] for event in rounds]
    up = sum(event["bytes_up"] * event["cohort"] for event in rounds)
    updates = sum(event["cohort"] for event in rounds)
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
        "seconds_per_round": median(seconds) if seconds else None,
        "client_updates_per_second": updates / max(sum(seconds), 1e-9),
        "bytes_up_per_client": up / max(updates, 1),
        "bytes_down_per_client": float(state.model.nbytes),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "notes": list(prepared.notes),
        "data": _describe_data(prepared),
    }


def _describe_data(prepared: Prepared) -> dict[str, Any]:
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
        for ordinal in some.tolist():
            _, labels = prepared.clients(np.array([ordinal]), None).everything()
            described["label_counts"].append(np.bincount(labels[0], minlength=classes).tolist())
    return described


def _identity(prepared: Prepared, executor: str, run_id: str) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "executor": executor,
        "seed": prepared.plan.seed,
        "plan_sha256": prepared.plan_sha256,
        "data_sha256": prepared.data.sha256,
        "files": {},
    }


def _prepare_again(folder: RunFolder, identity: dict[str, Any]) -> Prepared:
    """Prepare a run folder's plan; raise RunError if the plan or the data are not what they were."""
    prepared = prepare(read_plan(folder.path / PLAN))
    found = {"plan_sha256": prepared.plan_sha256, "data_sha256": prepared.data.sha256}
    for what, digest in found.items():
        if identity.get(what) != digest:
            raise RunError(
                "HANSA-RUN-CHANGED",
                rule="A run goes on, or is repeated, with the same plan and data.",
                found=f"{what} was {identity.get(what)} and is {digest}.",
                action="Restore " + (f"{PLAN}." if what == "plan_sha256" else "the data, at the path in the plan."),
            )
    return prepared


_TIMED = ("seconds", "seconds_per_round", "client_updates_per_second", "peak_rss_mb")


def _differences(folder: RunFolder, again: RunFolder) -> tuple[str, ...]:
    """Return what two runs of one plan have that differs, measured times and memory aside."""
    differences = [MODEL] if folder.digests()[MODEL] != again.digests()[MODEL] else []
    before, after = folder.events(), again.events()
    if len(before) != len(after):
        differences.append(f"{METRICS}: {len(before)} lines, then {len(after)}")
    for number, (one, other) in enumerate(zip(before, after, strict=False), start=1):
        keys = sorted(key for key in {*one, *other} - {*_TIMED} if one.get(key) != other.get(key))
        if keys:
            differences.append(f"{METRICS} line {number}: {', '.join(keys)}")
    return tuple(differences)


@contextmanager
def _storage(folder: RunFolder) -> Iterator[None]:
    """Turn a full or failing disk into an error that says what is kept."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        kept = (folder.path / CHECKPOINT / "checkpoint.safetensors").exists()
        raise RunError(
            "HANSA-RUN-STORAGE",
            rule="A run writes every round to its folder.",
            found=f"{folder.path} could not be written: {reason}. "
            + ("The last closed round is kept." if kept else "No round was closed yet."),
            action="Make room, then " + (f"hansa run --resume {folder.path}" if kept else "run the plan again."),
        ) from error


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
