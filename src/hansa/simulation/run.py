"""Running a plan: ``run``, ``resume``, ``replay``. A run lives in a folder and ends with a summary and a report."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from hansa.algorithms.plan import Plan
from hansa.core.errors import PlanError, Problem, RunError
from hansa.core.ledger import LedgerFile
from hansa.reporting.report import render_report
from hansa.reporting.run_folder import (
    CHECKPOINT,
    ENVIRONMENT,
    MODEL,
    PLAN,
    REPLAY,
    REPORT,
    RunFolder,
    describe_environment,
    new_run_id,
)
from hansa.simulation import auto
from hansa.simulation.baselines import run_baselines
from hansa.simulation.choice import AUTO, Choice, asked_for
from hansa.simulation.engine import Callback, Engine
from hansa.simulation.identity import differences, environment_changes, identity_of, prepare_again, where_it_began
from hansa.simulation.preparation import Prepared, prepare
from hansa.simulation.summary import charged, summarise
from hansa.training.kernels import Kernels, use
from hansa.wire.models import model_bytes, sha256
from hansa.wire.plans import write_plan

if TYPE_CHECKING:
    from hansa.simulation.charge import Charge


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


def run(  # noqa: PLR0913 - where, how and watched by whom
    plan: Plan,
    *,
    out: Path | str | None = None,
    executor: str = AUTO,
    workers: int | None = None,
    chunk: int | None = None,
    device: str | None = None,
    ledger: LedgerFile | None = None,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Run a plan in simulation, in a new folder (default: runs/ and a new run id), and return its result.

    ``executor`` computes the clients' updates, ``chunk`` clients at once on each of ``workers``; torch modules train
    on ``device`` ("cuda", for one) if it is given.

    With ``ledger`` the model is meant for release: the whole run is charged before its first round, or refused
    (HANSA-BUDGET-OVERDRAWN), and its noise is secret, so that the run cannot be repeated.

    Raises HansaError: PlanError, DataError, ModelError before the first round, RunError and DivergenceError later.
    """
    if not isinstance(plan, Plan):
        raise PlanError(
            [Problem("plan", f"must be a Plan, not {type(plan).__name__}; hansa.read_plan(path) reads one.")]
        )
    asked = asked_for(executor, workers=workers, chunk=chunk, device=device)
    prepared = prepare(plan)
    run_id = new_run_id()
    with nullcontext() if ledger is None else _charged(ledger, prepared, run_id) as charge:
        choice = _with_kind(asked or auto.choose(prepared, device or ""), prepared)
        folder = RunFolder.create(Path(out) if out is not None else Path("runs") / run_id)
        folder.write(PLAN, write_plan(prepared.plan))
        with folder.alone():
            folder.write(ENVIRONMENT, _json(describe_environment(choice.text)))
            identity = identity_of(prepared, choice.as_json(), run_id)
            folder.write(REPLAY, _json(identity if charge is None else {**identity, "ledger": charge.identity}))
            return _execute(_engine(prepared, folder, choice, callbacks, charge))


def _charged(ledger: LedgerFile, prepared: Prepared, run_id: str, *, resumed: bool = False) -> Charge:
    try:
        from hansa.simulation.charge import Charge  # noqa: PLC0415 - a database, for runs that are charged
    except ModuleNotFoundError as error:
        raise RunError(
            "HANSA-EXTRA-MISSING",
            rule="A ledger needs a database, and the accountant.",
            found=f"{error.name} is not installed.",
            action='Install it with: pip install "hansa[dp,server]".',
        ) from error
    return Charge(ledger, prepared, run_id, resumed=resumed)


def _engine(
    prepared: Prepared, folder: RunFolder, choice: Choice, callbacks: Sequence[Callback], charge: Charge | None
) -> Engine:
    """Return the engine of a run; one that is charged draws in secret, and has begun: it is spent from here on."""
    if charge is None:
        return Engine(prepared, folder, choice, tuple(callbacks))
    charge.began = True
    secret = replace(charge.prepared, notes=prepared.notes)
    return Engine(secret, folder, choice, tuple(callbacks), charge)


def _with_kind(choice: Choice, prepared: Prepared) -> Choice:
    """Return a choice with how the clients of a chunk train, found on the model's first values."""
    plan = prepared.plan
    with threadpool_limits(limits=1), use(Kernels(device=Kernels(**choice.kernels).device)):
        return replace(choice, kind=plan.trainer.batching(plan.model, prepared.data.signature)[0])


def _other_kind(choice: Choice, prepared: Prepared) -> tuple[str, ...]:
    """Return, in words, that clients train together in another way than they did, if they do."""
    now = _with_kind(choice, prepared).kind
    if choice.kind in ("", now):
        return ()
    return (f"clients of a chunk trained as {choice.kind!r} and train as {now!r}",)


def resume(path: Path | str, *, callbacks: Sequence[Callback] = ()) -> RunResult:
    """Go on with a run that was interrupted, from its last closed round, to the same final model.

    A note says so where the environment is not the one in which it began: the last bits may then differ.
    """
    folder = RunFolder.open(Path(path).absolute())
    identity = _identity(folder)
    if identity["files"]:
        return RunResult(folder.path, folder.summary())
    with folder.alone(), where_it_began(identity):
        prepared, choice = prepare_again(folder, identity), _choice(folder, identity)
        changes = (*environment_changes(folder), *_other_kind(choice, prepared))
        notes = (f"resumed in another environment: {change}" for change in changes)
        prepared = replace(prepared, notes=(*prepared.notes, *notes))
        with _charged_again(identity, prepared) as charge:
            return _execute(_engine(prepared, folder, choice, callbacks, charge))


def _charged_again(identity: Mapping[str, Any], prepared: Prepared) -> AbstractContextManager[Charge | None]:
    """Return the account of a run that is charged. Raises RunError where its noise cannot go on."""
    if "ledger" not in identity:
        return nullcontext()
    charge = _charged(LedgerFile(**identity["ledger"]), prepared, identity["run_id"], resumed=True)
    if not charge.resumable:
        with charge:
            raise _secret(
                "Correlated noise goes on under one key, which is kept nowhere and ended with the process that had it.",
                "Run the plan again, in another folder: it is charged anew.",
            )
    return charge


@dataclass(frozen=True)
class Replayed:
    """What a replay found: the names of changed files, and what came out differently (both empty if exact)."""

    changed: tuple[str, ...]
    differences: tuple[str, ...]
    model_sha256: str | None


def replay(path: Path | str, *, callbacks: Sequence[Callback] = ()) -> Replayed:
    """Run a finished run's plan again and compare, bit for bit. Changed files are named, and nothing is run."""
    folder = RunFolder.open(Path(path).absolute())
    identity = _identity(folder)
    if not identity["files"]:
        folder.summary()
    changed = tuple(folder.changed_files())
    if changed:
        return Replayed(changed, (), None)
    if "ledger" in identity:
        raise _secret(
            "Its files are as it wrote them; but its noise came from the operating system's generator, and drawing it "
            "again would undo the privacy that was paid for.",
            "Compare digests: replay.json names them.",
        )
    with where_it_began(identity), tempfile.TemporaryDirectory(prefix="hansa-replay-") as temporary:
        prepared, choice = prepare_again(folder, identity), _choice(folder, identity)
        again = RunFolder.create(Path(temporary) / "run")
        for name in (PLAN, ENVIRONMENT):
            again.write(name, folder.read(name))
        again.write(REPLAY, _json({**identity, "files": {}}))
        result = _execute(Engine(prepared, again, choice, tuple(callbacks)))
        found = differences(folder, again)
        found = (*_other_kind(choice, prepared), *found) if found else ()
        return Replayed((), found, result.summary["model_sha256"])


def _execute(engine: Engine) -> RunResult:
    """Run to the end, then write the model, the baselines, the summary and the report.

    On one thread: the order in which a matrix product adds up must not depend on how many processors are free.
    """
    device = Kernels(**engine.choice.kernels).device
    with threadpool_limits(limits=1), use(Kernels(device=device)):
        return _run_and_report(engine)


def _run_and_report(engine: Engine) -> RunResult:
    prepared, folder = engine.prepared, engine.folder
    plan = prepared.plan
    about = {
        "name": plan.name,
        "notes": prepared.notes,
        "folder": str(folder.path),
        "computed": (engine.choice.text, engine.choice.why),
    }
    engine.tell({"event": "start", "rounds": plan.rounds, **about})
    state, stopped = engine.run()
    model = model_bytes(plan, state)
    folder.write(MODEL, model)
    engine.tell({"event": "baselines", "baselines": plan.evaluation.baselines})
    baselines = run_baselines(prepared, state.round)
    identity = {**_identity(folder), "model_sha256": sha256(model), "rounds": state.round}
    summary = summarise(prepared, folder, state, identity, engine.seconds)
    summary |= {"stopped_because": stopped, "baselines": baselines}
    if engine.charge is not None:
        summary["privacy"] |= charged(engine.charge.end(state.round, stopped))
    folder.append_events([{"event": "summary", **summary}])
    report = render_report(
        summary=summary,
        events=[event for event in folder.events() if event["event"] != "summary"],
        plan_text=folder.read(PLAN),
        environment=folder.read_json(ENVIRONMENT),
    )
    folder.write(REPORT, report)
    folder.write(REPLAY, _json({**identity, "files": folder.digests()}))
    shutil.rmtree(folder.path / CHECKPOINT)
    return RunResult(folder.path, summary)


def _identity(folder: RunFolder) -> dict[str, Any]:
    identity = folder.read_json(REPLAY)
    if not isinstance(identity.get("files"), Mapping):
        raise _no_identity(folder)
    return identity


def _choice(folder: RunFolder, identity: Mapping[str, Any]) -> Choice:
    try:
        return Choice.from_json(identity["executor"])
    except (TypeError, LookupError) as error:
        raise _no_identity(folder) from error


def _no_identity(folder: RunFolder) -> RunError:
    return RunError(
        "HANSA-RUN-CHANGED",
        rule=f"{REPLAY} says what a run was.",
        found=f"In {folder.path} it does not.",
        action="Restore the file, or run the plan again.",
    )


def _secret(found: str, action: str) -> RunError:
    return RunError(
        "HANSA-RUN-SECRET",
        rule="The noise of a run that was charged to a ledger is drawn once.",
        found=found,
        action=action,
    )


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
