"""Operator API: jobs, runs and rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request

from hansa.core.errors import RefusedError, StoreConflictError
from hansa.server import operator_bodies as bodies
from hansa.server import private_rounds
from hansa.server.opening import RESUMED
from hansa.server.operator_access import allowed, refusals, services_of
from hansa.server.operator_tenant import Limit, event_body, shown_to
from hansa.server.operator_types import Id
from hansa.server.rounds_at_rest import descriptor_name
from hansa.server.submissions import Submission, not_found, submit
from hansa.store.records import Job, Kind, Round, RoundKey, Run, RunState, Token
from hansa.store.store import Rows
from hansa.wire.jobs import JobDescriptor, layout_to_mapping

router = APIRouter()

Reading = Annotated[Token, Depends(allowed("runs.read"))]
ReadingJobs = Annotated[Token, Depends(allowed("jobs.read"))]
Submitting = Annotated[Token, Depends(allowed("jobs.submit"))]
Controlling = Annotated[Token, Depends(allowed("runs.control"))]

_TRIES: Final = 8
"""How often a change of a run is tried again when the coordinator changed it in between."""
_ENDED: Final[frozenset[RunState]] = frozenset(("cancelled", "finished", "failed"))


@router.post("/jobs", operation_id="submitJob", tags=["jobs"], status_code=201, responses=refusals(404, 409, 507))
async def submit_job(request: Request, token: Submitting, wanted: bodies.JobRequest) -> bodies.Submitted:
    """Submit a plan: it is checked whole, and its run begins at once. The initial model is uploaded before."""
    services = services_of(request)
    submission = Submission(**wanted.model_dump())
    job, run, storage = await submit(services, token, submission)
    return bodies.Submitted(
        job=_job(job, wanted.population),
        run=_run(job, run, wanted.population),
        round_bytes=None if storage is None else storage.total,
    )


@router.get("/jobs", operation_id="listJobs", tags=["jobs"], responses=refusals())
async def list_jobs(request: Request, token: ReadingJobs, limit: Limit = 100) -> bodies.Jobs:
    """List the newest jobs."""
    async with services_of(request).store.reading() as rows:
        found = await rows.jobs.of(token.tenant, limit)
        names = await _population_names(rows, token)
    return bodies.Jobs(jobs=[_job(each, names[each.population]) for each in found])


@router.get("/jobs/{job}", operation_id="getJob", tags=["jobs"], responses=refusals(404))
async def get_job(request: Request, token: ReadingJobs, job: Id) -> bodies.JobWhole:
    """Show one job with its plan, and what else its clients are told."""
    services = services_of(request)
    async with services.store.reading() as rows:
        found = await rows.jobs.get(job)
        if found is None or found.tenant != token.tenant:
            raise not_found(f"job {job!r}")
        names = await _population_names(rows, token)
    content = [chunk async for chunk in services.blobs.read(descriptor_name(found.descriptor), 0, None)]
    described = JobDescriptor.from_bytes(b"".join(content))
    return bodies.JobWhole(
        **_job(found, names[found.population]).model_dump(),
        plan=dict(found.plan),
        signature={**asdict(described.signature), "shape": list(described.signature.shape)},
        layout=layout_to_mapping(described.layout),
        purpose=described.purpose,
    )


@router.get("/runs", operation_id="listRuns", tags=["runs"], responses=refusals())
async def list_runs(
    request: Request,
    token: Reading,
    state: Annotated[RunState | None, Query(description="only those in this state")] = None,
    limit: Limit = 100,
) -> bodies.Runs:
    """List the newest runs."""
    async with services_of(request).store.reading() as rows:
        found = await rows.runs.of(token.tenant, state=state, limit=limit)
        return bodies.Runs(runs=[await _shown(rows, token, each) for each in found])


@router.get("/runs/{run}", operation_id="getRun", tags=["runs"], responses=refusals(404))
async def get_run(request: Request, token: Reading, run: Id) -> bodies.RunBody:
    """Show one run."""
    async with services_of(request).store.reading() as rows:
        return await _shown(rows, token, await owned(rows, token, run))


@router.post("/runs/{run}/pause", operation_id="pauseRun", tags=["runs"], responses=refusals(404, 409))
async def pause_run(
    request: Request, token: Controlling, run: Id, reason: bodies.Reason | None = None
) -> bodies.RunBody:
    """Pause a run: it opens no more rounds until it is resumed; an open round goes on to its end."""
    return await _to_state(request, token, run, "paused", reason)


@router.post("/runs/{run}/resume", operation_id="resumeRun", tags=["runs"], responses=refusals(404, 409))
async def resume_run(
    request: Request, token: Controlling, run: Id, reason: bodies.Reason | None = None
) -> bodies.RunBody:
    """Let a paused run go on from its last closed round."""
    return await _to_state(request, token, run, "running", reason)


@router.post("/runs/{run}/cancel", operation_id="cancelRun", tags=["runs"], responses=refusals(404, 409))
async def cancel_run(
    request: Request, token: Controlling, run: Id, reason: bodies.Reason | None = None
) -> bodies.RunBody:
    """End a run now. Its models stay."""
    return await _to_state(request, token, run, "cancelled", reason)


@router.put("/runs/{run}/priority", operation_id="prioritiseRun", tags=["runs"], responses=refusals(404, 409))
async def prioritise_run(
    request: Request, token: Controlling, run: Id, wanted: bodies.PriorityRequest
) -> bodies.RunBody:
    """Let a run go before or after others of its population."""

    def change(found: Run, _now: float) -> Run:
        if found.state in _ENDED:
            raise _unfit_state(found, "given a priority")
        return replace(found, priority=wanted.priority)

    return await _change(request, token, run, change, ("run.priority", {"priority": wanted.priority}))


@router.get("/runs/{run}/rounds", operation_id="listRounds", tags=["rounds"], responses=refusals(404))
async def list_rounds(request: Request, token: Reading, run: Id, limit: Limit = 100) -> bodies.Rounds:
    """List the newest rounds of a run, each attempt with its participation funnel."""
    async with services_of(request).store.reading() as rows:
        found = await owned(rows, token, run)
        return bodies.Rounds(rounds=[await round_body(rows, each) for each in await rows.rounds.of(found.id, limit)])


@router.get(
    "/runs/{run}/rounds/{kind}/{number}/{attempt}/clients",
    operation_id="listCohort",
    tags=["rounds"],
    responses=refusals(404),
)
async def list_cohort(  # noqa: PLR0913, PLR0917 - the name of a round
    request: Request,
    token: Annotated[Token, Depends(allowed("clients.read"))],
    run: Id,
    kind: Kind,
    number: Annotated[int, Path(ge=0, le=10**9)],
    attempt: Annotated[int, Path(ge=0, le=10**9)],
) -> bodies.Cohort:
    """List who was picked for one attempt of a round, and what became of each."""
    async with services_of(request).store.reading() as rows:
        found = await owned(rows, token, run)
        key = RoundKey(found.id, kind, number, attempt)
        if await rows.rounds.get(key) is None:
            raise not_found("such round of this run")
        assigned = await rows.rounds.assigned(key)
    return bodies.Cohort(
        clients=[bodies.AssignedBody(client=each.client, number=each.number, fate=each.fate) for each in assigned]
    )


@router.get("/runs/{run}/events", operation_id="listRunEvents", tags=["events"], responses=refusals(404))
async def list_run_events(request: Request, token: Reading, run: Id, limit: Limit = 100) -> bodies.Events:
    """List the newest events of a run, the oldest of them first."""
    async with services_of(request).store.reading() as rows:
        found = await owned(rows, token, run)
        events = sorted(await rows.events.of_run(found.id, limit), key=lambda event: event.number)
    return bodies.Events(
        events=[event_body(shown_to(token, each)) for each in events], next=events[-1].number if events else 0
    )


async def _to_state(
    request: Request, token: Token, run: str, state: RunState, reason: bodies.Reason | None
) -> bodies.RunBody:
    why = "" if reason is None else reason.why

    def change(found: Run, now: float) -> Run:
        if found.state == state:
            return found
        if found.state in _ENDED:
            raise _unfit_state(found, f"made {state}")
        notes = {**found.notes, RESUMED: now} if state == "running" and found.state == "paused" else found.notes
        return replace(found, state=state, why=why or None, notes=notes, ended_at=now if state == "cancelled" else None)

    kinds = {"paused": "run.paused", "running": "run.resumed", "cancelled": "run.cancelled"}
    return await _change(request, token, run, change, (kinds[state], {"why": why}))


async def _change(
    request: Request, token: Token, run: str, change: Callable[[Run, float], Run], event: tuple[str, dict[str, Any]]
) -> bodies.RunBody:
    """Change a run as its row is when it is written; nothing is written where it is so already."""
    services = services_of(request)
    for _ in range(_TRIES):
        try:
            now = services.clock.now()
            async with services.store.transaction() as rows:
                found = await owned(rows, token, run)
                changed = change(found, now)
                if changed != found:
                    changed = await rows.runs.change(changed)
                    detail = {**event[1], "by": token.name}
                    if changed.state == "cancelled":
                        await private_rounds.end(rows, changed, "the run is cancelled", now)
                    await rows.events.add(event[0], tenant=token.tenant, at=now, run=run, detail=detail)
                shown = await _shown(rows, token, changed)
        except StoreConflictError:
            continue
        services.board.changed.set()
        return shown
    raise StoreConflictError(f"run {run}")


def _unfit_state(run: Run, what: str) -> RefusedError:
    return RefusedError(
        "HANSA-RUN-STATE",
        rule="A run that ended is not changed any more.",
        found=f"It is {run.state} and cannot be {what}.",
        action="Submit the job again.",
    )


async def owned(rows: Rows, token: Token, run: str) -> Run:
    """Return a run of the caller's tenant. Raises RefusedError where there is none with that id."""
    found = await rows.runs.get(run)
    if found is None or found.tenant != token.tenant:
        raise not_found(f"run {run!r}")
    return found


async def _shown(rows: Rows, token: Token, run: Run) -> bodies.RunBody:
    job = await rows.jobs.get(run.job)
    if job is None:
        raise not_found(f"run {run.id!r}")
    names = await _population_names(rows, token)
    return _run(job, run, names[run.population])


async def _population_names(rows: Rows, token: Token) -> dict[str, str]:
    return {each.id: each.name for each in await rows.populations.of(token.tenant)}


def _job(job: Job, population: str) -> bodies.JobBody:
    return bodies.JobBody(
        id=job.id,
        name=job.name,
        population=population,
        plan_sha256=job.plan_sha256,
        descriptor=job.descriptor,
        model=job.model,
        eligibility=job.eligibility,
        priority=job.priority,
        submitted_by=job.submitted_by,
        submitted_at=job.submitted_at,
    )


def _run(job: Job, run: Run, population: str) -> bodies.RunBody:
    return bodies.RunBody(
        id=run.id,
        job=job.id,
        name=job.name,
        population=population,
        state=run.state,
        round=run.round,
        rounds=int(job.plan["rounds"]),
        model=run.model,
        priority=run.priority,
        started_at=run.started_at,
        ended_at=run.ended_at,
        why=run.why,
    )


async def round_body(rows: Rows, round_: Round) -> bodies.RoundBody:
    """Return a round as the API shows it, with what became of those who were picked."""
    assigned = await rows.rounds.assigned(round_.id)
    fates = Counter[str](each.fate or "open" for each in assigned)
    return bodies.RoundBody(
        kind=round_.id.kind,
        round=round_.id.round,
        attempt=round_.id.attempt,
        state=round_.state,
        model=round_.model,
        opened_at=round_.opened_at,
        deadline=round_.deadline,
        closed_at=round_.closed_at,
        funnel=bodies.Funnel(
            eligible=round_.population, picked=round_.cohort_size, included=fates["included"], fates=dict(fates)
        ),
        report=None if round_.report is None else dict(round_.report),
    )
