"""The life of runs: opens rounds, freezes them, folds and closes them, or gives them up and tries again.

Each transition is one transaction. A replica looks after the runs whose lease it holds; another takes over when the
lease ends, reads the same rows and goes on from there. Nothing that matters is kept here: a coordinator may die at any
instant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import structlog

from hansa.algorithms.stopping import stopping_reason
from hansa.core.errors import DivergenceError, HansaError, StoreConflictError, StoreError
from hansa.core.killpoints import reached
from hansa.core.ring import RingVector
from hansa.server import (
    buffered_runs,
    closing,
    lifecycle,
    partial_sums,
    private_rounds,
    round_changes,
    secure_moves,
)
from hansa.server.contexts import RunContext, store_state
from hansa.server.leaving import tell
from hansa.server.measures import ROUND_SECONDS, ROUNDS
from hansa.server.opening import NotYet, open_next, posted, wait
from hansa.server.reading import UNREADABLE, BrokenUpdateError
from hansa.server.rounds_at_rest import round_name, round_prefix
from hansa.server.services import Services
from hansa.store.records import Release, Report, Round, Run

_LOG: Final = structlog.get_logger("hansa.coordinator")
_FAILURES: Final = 5
"""Failures one after another that pause a run."""
_AFTER_FAILURE: Final = 1.0
_LONGEST_REST: Final = 10.0
"""Seconds, at most, until a run that failed is looked after again."""
_PASSING: Final = frozenset({"HANSA-SERVER-BUSY", "HANSA-SERVER-STORAGE"})
"""What the run has no part in, and what passes: it is tried again and again."""


@dataclass
class Coordinator:
    """Looks after the runs that this replica has leased."""

    services: Services
    contexts: dict[str, RunContext] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    resting: dict[str, float] = field(default_factory=dict)
    """Runs that failed -> when to try again, in the loop's time."""

    async def run(self, stop: asyncio.Event) -> None:
        """Look after runs until told to stop, then give the leases back."""
        settings = self.services.settings
        keeping = asyncio.create_task(self._keep_leases(stop))
        while not stop.is_set():
            self.services.board.changed.clear()
            pause = settings.tick_seconds
            try:
                await self.tick()
            except Exception as error:  # noqa: BLE001 - the next tick reads everything anew
                _LOG.error("tick failed", error=error.code if isinstance(error, HansaError) else type(error).__name__)
                pause = max(pause, _AFTER_FAILURE)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.services.board.changed.wait()
        await keeping
        async with self.services.store.transaction() as rows:
            await rows.runs.release(settings.replica_name)

    async def _keep_leases(self, stop: asyncio.Event) -> None:
        """Renew the leases also while a fold takes longer than they last."""
        while not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self.services.settings.lease_seconds / 3):
                    await stop.wait()
                    return
            with suppress(HansaError):
                await self._lease()

    async def _lease(self) -> list[Run]:
        settings, now = self.services.settings, self.services.clock.now()
        async with self.services.store.transaction() as rows:
            return await rows.runs.lease(settings.replica_name, now=now, seconds=settings.lease_seconds, limit=1000)

    async def tick(self) -> None:
        """Take up the runs that are free, and take each as far as it goes."""
        leased = await self._lease()
        for kept in (self.contexts, self.failures, self.resting):  # a model of each run that another looks after now
            for run in kept.keys() - {run.id for run in leased}:
                kept.pop(run)
        if leased:
            reached("coordinator.leased")
        results = await asyncio.gather(*(self._look_after(run) for run in leased), return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                raise error

    async def _look_after(self, run: Run) -> None:
        if asyncio.get_running_loop().time() < self.resting.get(run.id, 0.0):
            return
        try:
            while not self.services.stopping.is_set() and await self.step(run.id):
                pass
            self.failures.pop(run.id, None)
            self.resting.pop(run.id, None)
        except StoreConflictError:
            self.contexts.pop(run.id, None)  # another replica, or the operator, was first: look again at the next tick
        except DivergenceError as error:
            await self._end(run.id, "failed", str(error))
        except HansaError as error:
            await self._failed(run.id, error.code, str(error))
        except Exception as error:  # noqa: BLE001 - a run that cannot be served must not end the others
            _LOG.exception("run failed", run=run.id)
            await self._failed(run.id, "HANSA-INTERNAL", type(error).__name__)

    async def step(self, run_id: str) -> bool:
        """Make the next move of a run; return False when there is nothing to do but wait."""
        services = self.services
        async with services.store.reading() as rows:
            run = await rows.runs.get(run_id)
            open_rounds = await rows.rounds.open_of(run_id) if run is not None else []
        if run is None or (run.state != "running" and not open_rounds):
            return False
        context = await self._context(run)
        if run.state in ("cancelled", "finished", "failed"):
            await self._abandon(open_rounds[0], f"the run is {run.state}")
            return True
        schedule: Any = context.plan.schedule
        if not schedule.synchronous:
            return await self._buffered(context, open_rounds)
        if not open_rounds:
            return await self._open(context)
        secure = context.plan.secure_aggregation is not None
        return await (self._move_secure if secure else self._move)(context, open_rounds[0])

    async def _buffered(self, context: RunContext, open_rounds: list[Round]) -> bool:
        """Make the next move of a run whose clients train all the time; statistics and evaluations are beside it."""
        beside = [each for each in open_rounds if each.id.kind != "training"]
        training = [each for each in open_rounds if each.id.kind == "training"]
        if beside and await self._move(context, beside[0]):
            return True
        if context.run.state != "running":
            return False  # what is open stays so: a report that comes is counted when the run goes on
        upcoming = lifecycle.upcoming(context.plan, context.run)
        if not beside and (upcoming is None or upcoming.kind != "training"):
            await self._open(context)
        if upcoming is None or upcoming.kind == "statistics":
            return False
        if context.run.round >= context.plan.rounds or context.run.notes.get("stopping") is not None:
            return False
        try:
            turn = await buffered_runs.look(self.services, context, training)
        except BrokenUpdateError as error:
            await self._refuse(error.report)
            return True
        for round_ in turn.drained:
            await self._sweep(round_)
        if turn.context is not None:
            self.contexts[context.run.id] = self.services.contexts.hold(turn.context)
        return turn.context is not None

    async def _context(self, run: Run) -> RunContext:
        known = self.contexts.get(run.id)
        if known is not None and (known.run.model, known.run.slots, known.run.round) == (
            run.model,
            run.slots,
            run.round,
        ):
            return replace(known, run=run)
        context = self.contexts[run.id] = await self.services.contexts.of(run)
        return context

    async def _open(self, context: RunContext) -> bool:
        """Open the run's next round, or end the run. False where it must wait for clients."""
        upcoming = lifecycle.upcoming(context.plan, context.run)
        if upcoming is None:
            await self._end(
                context.run.id, "finished", context.run.notes.get("stopping") or "the last round of the plan"
            )
            return False
        opened = await open_next(self.services, context, upcoming)
        if isinstance(opened, NotYet):
            if opened.pause is not None:
                await self._pause(context.run.id, opened.pause)
            elif not opened.passing and opened.why != context.run.why:
                await wait(self.services, context.run, opened.why)
            return False
        reached("coordinator.round.opened")
        self.services.board.post(posted(self.services, context, opened.round), opened.assigned)
        return False

    async def _move(self, context: RunContext, round_: Round) -> bool:
        services, now = self.services, self.services.clock.now()
        async with services.store.reading() as rows:
            fates = await rows.rounds.count_fates(round_.id)
        try:
            if lifecycle.waits(context.plan, round_, fates, now=now):
                if await partial_sums.fold(services, context, round_, reported=fates.get("reported", 0)):
                    services.board.changed.set()  # more may wait, but other runs have their turn first
                return False
            return await self._go_on(context, round_, now)
        except BrokenUpdateError as error:
            await self._abandon_broken(round_, error)
        except StoreError as error:
            if error.code not in UNREADABLE:
                raise
            await self._abandon(round_, f"its updates cannot be read: {error.code}")
        return True

    async def _go_on(self, context: RunContext, round_: Round, now: float) -> bool:
        """Take a round on that need not wait, as far as its machine says."""
        services = self.services
        async with services.store.reading() as rows:
            assigned = await rows.rounds.assigned(round_.id)
            reports = await rows.reports.of(round_.id)
        todo = lifecycle.move(context.plan, round_, assigned, reports, now=now)
        if todo == "wait":
            return False
        if todo == "collect":
            async with services.store.transaction() as rows:
                await rows.rounds.change(lifecycle.advance(round_, "collecting"))
                await round_changes.tell(rows, round_, "round.collecting", at=now)
            reached("coordinator.round.collecting")
            return True
        if todo == "freeze":
            await self._freeze(round_)
            return True
        if todo == "abandon":
            await self._abandon(round_, lifecycle.why_given_up(assigned, reports))
            return True
        await self._close(context, round_, reports)
        return True

    async def _move_secure(self, context: RunContext, round_: Round) -> bool:
        """Make the next move of a round whose server learns a sum: its machine says which."""
        if (ending := await secure_moves.look(self.services, context, round_)) is None:
            return False
        if ending.totals is None:
            await self._abandon(ending.round, ending.why)
        else:
            await self._close(context, ending.round, ending.reports, totals=ending.totals)
        return True

    async def _freeze(self, round_: Round) -> None:
        reached("coordinator.round.freezing")
        async with self.services.store.transaction() as rows:
            await round_changes.freeze(rows, round_, self.services.clock.now())
        self.services.board.take_down(round_.id)
        reached("coordinator.round.frozen")

    async def _close(
        self,
        context: RunContext,
        round_: Round,
        reports: Sequence[Report],
        totals: Sequence[tuple[RingVector, int]] | None = None,
    ) -> None:
        services, now = self.services, self.services.clock.now()
        key = await asyncio.to_thread(services.keys.unwrap, round_name(round_.id), round_.key)
        noise_key = await private_rounds.noise_key(services.keys, context)
        round_ = await private_rounds.mark_drawn(services.store, context, round_)
        try:
            if totals is None:
                closed = await closing.close(
                    context,
                    round_,
                    reports,
                    blobs=services.blobs,
                    key=key,
                    largest_norm=services.settings.largest_update_norm,
                    now=now,
                    noise_key=noise_key,
                )
            else:
                closed = await closing.close_sum(context, round_, reports, totals=totals, now=now, noise_key=noise_key)
        except BrokenUpdateError as error:
            await self._abandon_broken(round_, error)
            return
        except DivergenceError as error:
            async with services.store.transaction() as rows:  # that it diverged, and how far, is told of a noised sum
                await private_rounds.freeze(rows, round_, now)
            if totals is not None or not (
                found := await closing.exploded(
                    context,
                    round_,
                    reports,
                    blobs=services.blobs,
                    key=key,
                    largest_norm=services.settings.largest_update_norm,
                )
            ):
                raise
            await self._abandon(round_, f"a few updates were of another size [{error.code}]", suspended=found)
            return
        except HansaError as error:
            if error.code != "HANSA-SUM-RANGE":
                raise
            async with services.store.transaction() as rows:
                await private_rounds.count(rows, context, round_)
            await self._abandon(round_, f"{error} [{error.code}]")
            return
        reached("coordinator.round.folded")
        model, slots, size = await store_state(services.blobs, closed.state)
        reached("coordinator.round.model-written")
        notes = closing.next_notes(context, closed)
        reason = stopping_of(context, notes)
        if reason is not None:
            notes["stopping"] = reason
        number = round_.id.round if round_.id.kind == "training" else context.run.round
        numbers = np.array([int(each) for each in round_.notes["survivors"]], dtype=np.int64)
        async with services.store.transaction() as rows:
            await rows.rounds.change(lifecycle.advance(round_, "closed", closed_at=now, report=closed.event))
            run = await rows.runs.change(replace(context.run, model=model, slots=slots, round=number, notes=notes))
            if totals is not None:
                await round_changes.leave_others(rows, round_, reports)
            await rows.rounds.set_fates(round_.id, {report.client: "included" for report in reports})
            if round_.id.kind == "training":
                await rows.participation.record(run.id, numbers, number)
                await rows.releases.add(Release(run.tenant, run.id, number, model, "candidate", now))
                await private_rounds.settle(rows, context, round_, cohort=len(reports), released=model, now=now)
            await round_changes.tell(rows, round_, "round.closed", at=now, **round_changes.counts(closed.event))
        self.contexts[run.id] = services.contexts.hold(context.with_state(run, closed.state, size))
        _LOG.info("round closed", run=run.id, round=number, kind=round_.id.kind, cohort=len(reports))
        ROUNDS.labels(round_.id.kind, "closed").inc()
        ROUND_SECONDS.labels(round_.id.kind).observe(now - round_.opened_at)
        reached("coordinator.round.closed")
        await self._sweep(round_)

    async def _refuse(self, report: Report) -> None:
        """Take out of a buffer an update that cannot be counted, and its client.

        Raises StoreConflictError where it was decided about already: another replica has counted and removed it.
        """
        async with self.services.store.transaction() as rows:
            assigned = await rows.rounds.assignment(report.round, report.client, for_change=True)
            if assigned is None or assigned.fate != "reported":
                raise StoreConflictError("A report")
            await rows.rounds.set_fates(report.round, {report.client: "refused"})
            left = await round_changes.suspend(rows, report.round, report.client, self.services.clock.now())
        self.services.clients.drop(report.client)
        tell(self.services.board, report.client, left)

    async def _sweep(self, round_: Round) -> None:
        """Remove what a round needs no more: the sealed updates, then the key. What is missed here, retention finds."""
        blobs = self.services.blobs
        self.services.sums.drop(round_.id)
        async with self.services.store.transaction() as rows:
            await rows.sums.remove(round_.id)
        for name in await blobs.names(round_prefix(round_.id)):
            await blobs.delete(name)
        reached("coordinator.round.swept")
        await asyncio.to_thread(self.services.keys.destroy, round_name(round_.id))

    async def _abandon(self, round_: Round, why: str, *, suspended: Sequence[str] = ()) -> None:
        """Give up an attempt: the model stays as it is, and the round is opened again with a fresh cohort.

        ``suspended``: whose updates are the reason. Nothing is written where another replica has closed the round.
        """
        services, now = self.services, self.services.clock.now()
        async with services.store.transaction() as rows:
            await round_changes.abandon(rows, round_, why, now)
            left = {client: await round_changes.suspend(rows, round_.id, client, now) for client in suspended}
            await round_changes.tell(rows, round_, "round.abandoned", at=now, why=why)
        for client, rounds in left.items():
            services.clients.drop(client)
            tell(services.board, client, rounds)
        services.board.take_down(round_.id)
        _LOG.warning("round abandoned", run=round_.id.run, round=round_.id.round, attempt=round_.id.attempt, why=why)
        ROUNDS.labels(round_.id.kind, "abandoned").inc()
        reached("coordinator.round.abandoned")
        await self._sweep(round_)

    async def _abandon_broken(self, round_: Round, error: BrokenUpdateError) -> None:
        """Give up an attempt for an update that cannot be counted, and take out its client."""
        why = f"an update was not what was acknowledged [{error.code}]"
        await self._abandon(round_, why, suspended=[error.report.client])

    async def _end(self, run_id: str, state: str, why: str) -> None:
        now = self.services.clock.now()
        async with self.services.store.transaction() as rows:
            run = await rows.runs.get(run_id, for_change=True)
            if run is None or run.state != "running":
                return
            for round_ in await rows.rounds.open_of(run_id):
                await round_changes.abandon(rows, round_, why, now)
                self.services.board.take_down(round_.id)
            await rows.runs.change(replace(run, state=state, why=why, ended_at=now))  # type: ignore[arg-type]
            await private_rounds.end(rows, run, why, now)
            await rows.events.add(f"run.{state}", tenant=run.tenant, at=now, run=run_id, detail={"why": why})
        reached("coordinator.run.ended")
        self.contexts.pop(run_id, None)
        _LOG.info("run ended", run=run_id, state=state)

    async def _pause(self, run_id: str, why: str) -> None:
        now = self.services.clock.now()
        async with self.services.store.transaction() as rows:
            run = await rows.runs.get(run_id, for_change=True)
            if run is not None and run.state == "running":
                await rows.runs.change(replace(run, state="paused", why=why))
                await rows.events.add("run.paused", tenant=run.tenant, at=now, run=run_id, detail={"why": why})
        _LOG.warning("run paused", run=run_id, why=why)

    async def _failed(self, run_id: str, code: str, what: str) -> None:
        """Take note of a failure; a run that fails again and again is paused for the operator.

        It is not for what passes by itself: a database that is away, a full disk.
        """
        self.contexts.pop(run_id, None)
        self.failures[run_id] = self.failures.get(run_id, 0) + 1
        rest = min(_LONGEST_REST, 0.1 * 2.0 ** min(self.failures[run_id], 16))
        self.resting[run_id] = asyncio.get_running_loop().time() + rest
        _LOG.error("run not served", run=run_id, code=code, what=what, seconds=rest)
        if self.failures[run_id] >= _FAILURES and code not in _PASSING:
            self.failures.pop(run_id)
            self.resting.pop(run_id)
            await self._pause(run_id, f"[{code}] {what}")


def stopping_of(context: RunContext, notes: Mapping[str, Any]) -> str | None:
    """Return why a run stops after a round, if a rule of the plan says so."""
    name = (context.plan.stopping.metric or "").partition(".")[2]
    higher = next((metric.higher_is_better for metric in context.metrics if metric.name == name), True)
    return stopping_reason(context.plan.stopping, notes.get("watched", []), higher_is_better=higher)
