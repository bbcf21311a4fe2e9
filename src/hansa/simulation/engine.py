"""The engine: rounds until the plan is done, with a checkpoint after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hansa.algorithms import divergence
from hansa.algorithms.fold import Collector, one_after_another
from hansa.algorithms.rounds import clip_facts, close_round
from hansa.algorithms.stopping import stopping_reason
from hansa.core.layout import Array
from hansa.core.nouns import RoundReport, ServerState
from hansa.reporting.run_folder import CHECKPOINT, RunFolder, storing
from hansa.simulation.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from hansa.simulation.choice import Choice, executor_of
from hansa.simulation.client_store import ClientStore, Journal
from hansa.simulation.executors import Executor
from hansa.simulation.interruption import Interruption
from hansa.simulation.measuring import Measured, measure
from hansa.simulation.memory import give_back_memory
from hansa.simulation.preparation import Prepared, federated_scaling
from hansa.simulation.secure_sum import collector_of, cut_counts
from hansa.simulation.timeline import timeline_of
from hansa.simulation.work import Timeline

if TYPE_CHECKING:
    from hansa.simulation.charge import Charge  # it needs a database, which most runs do not

_LONG_SECONDS: Final = 1.0
"""After training that takes longer, the memory that it needed is given back: beside it that takes little time."""

Callback = Callable[[Mapping[str, Any]], bool | None]
"""Watches a run's events. It may stop the run by returning True; it cannot change its state."""


@dataclass(frozen=True)
class ClosedRound:
    """What one simulated round gave: the next state, its report, the journal to apply, and its cost."""

    state: ServerState
    report: RoundReport
    journal: Journal
    bytes_up: float
    seconds: float
    facts: Mapping[str, Any]

    def event(self) -> dict[str, Any]:
        """Return the round as a line of metrics.jsonl."""
        return {
            "event": "round",
            "round": self.report.round,
            "cohort": self.report.count,
            "train_loss": self.report.train_loss,
            "update_norm": self.report.update_norm,
            "model_norm": self.report.model_norm,
            "seconds": self.seconds,
            "bytes_up": self.bytes_up,
            "bytes_down": float(self.state.model.nbytes),
            **self.facts,
        }


def simulate_round(
    prepared: Prepared, timeline: Timeline, state: ServerState, store: ClientStore, executor: Executor
) -> ClosedRound:
    """Run one round: open it, map ``client_update`` over the cohort, fold, close it.

    A cohort in parts (a buffer of several model versions) is folded part by part, in their order.
    """
    began = time.perf_counter()
    plan, opened = prepared.plan, timeline.open(state, store)
    journal = store.journal(state.round + 1, opened.cohort)
    bytes_up, before = 0.0, 0
    collections: list[Collector] = []
    for part in opened.parts:
        cohort = part.assignment.cohort
        with storing(store.folder.parent):
            collected = collector_of(
                plan, part.assignment, prepared.streams, store.folder, noise_key=prepared.noise_key
            )
        for partial in executor.partials(prepared, part.assignment, store.states, part.factors):
            bytes_up += partial.bytes_up
            collected.merge(partial.collected)
            journal.write(before + partial.position, partial.states)
            del partial  # its room is needed while the next one is awaited
        collections = [one_after_another([*collections, collected])]
        before += len(cohort)
    aggregate = collections[0].finish(plan.aggregator, store.size)
    if time.perf_counter() - began > _LONG_SECONDS:
        give_back_memory()
    closed, report = close_round(plan, state, aggregate)
    each = bytes_up / max(1, before)
    facts = {**opened.facts, **cut_counts(plan, aggregate), **clip_facts(plan, state)}
    return ClosedRound(closed, report, journal, each, time.perf_counter() - began, facts)


@dataclass
class Engine:
    """One run in its folder. What must survive a crash is in the checkpoint, and nowhere else."""

    prepared: Prepared
    folder: RunFolder
    choice: Choice
    callbacks: tuple[Callback, ...] = ()
    charge: Charge | None = None
    executor: Executor = field(init=False)
    state: ServerState = field(init=False)
    store: ClientStore = field(init=False)
    early_norms: list[float] = field(default_factory=list)
    watched: list[float | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    timeline: Timeline = field(init=False)

    @np.errstate(over="ignore", invalid="ignore")  # what overflows is found, and explained, by divergence.check
    def run(self) -> tuple[ServerState, str]:
        """Run, or go on, until the last round or a stopping rule; return the last state and why it is the last."""
        plan = self.prepared.plan
        plan.trainer.batching(plan.model, self.prepared.data.signature)  # found on first values, a resumed run's too
        give_back_memory()  # of trials
        self.executor = executor_of(self.choice)
        self._begin()
        with closing(self.executor), closing(self.store), self._interruption() as interruption:
            stopped = self._look(None)
            while stopped is None:
                stopped = self._look(self._round())
                if stopped is None:
                    interruption.after_round(self.state.round)
        return self.state, stopped

    def _begin(self) -> None:
        """Take up the last checkpoint, or make the first."""
        working = self.folder.path / CHECKPOINT
        with storing(self.folder.path):
            working.mkdir(exist_ok=True)
        self.store = ClientStore(working, self.prepared.data.train.names, self.prepared.first_rows)
        checkpoint = read_checkpoint(working, self.prepared.first)
        if checkpoint is not None:
            self.state = checkpoint.state
            self.early_norms, self.watched = checkpoint.notes["early_norms"], checkpoint.notes["watched"]
            self.folder.cut_events(checkpoint.notes["events"])
            self.store.restore(self.state.round)
            self.timeline = timeline_of(self.prepared, self.state.round, checkpoint.notes.get("timeline"))
            return
        self.timeline = timeline_of(self.prepared)
        self.folder.cut_events(0)
        self.store.restore(0)
        self.state = replace(self.prepared.first, features=federated_scaling(self.prepared))
        self._commit([], np.zeros(0, dtype=np.int64))

    def _round(self) -> str | None:
        """Simulate one round and close it for good; return why the run stops, if a callback asked for it."""
        began = time.perf_counter()
        closed = simulate_round(self.prepared, self.timeline, self.state, self.store, self.executor)
        if self.charge is not None:  # before anything of the round is written or told
            self.charge.commit(closed.state, closed.report)
        self.early_norms = divergence.check(self.prepared.plan, closed.report, self.early_norms)
        self.state = closed.state
        closed.journal.close()
        self._commit([closed.event()], closed.journal.cohort)
        self.seconds.append(time.perf_counter() - began)
        return self.tell(closed.event())

    def _commit(self, events: list[dict[str, Any]], cohort: Array) -> None:
        """Close a round: its events, then the checkpoint in one rename, which makes the clients' new rows current."""
        length = self.folder.append_events(events, durable=False)
        notes = {
            "events": length,
            "early_norms": self.early_norms,
            "watched": self.watched,
            "timeline": self.timeline.notes(),
        }
        write_checkpoint(self.store.folder, Checkpoint(self.state, notes))
        self.store.apply(self.state.round, cohort)

    def _look(self, asked: str | None) -> str | None:
        """Evaluate the state where that is due; return why the run stops here (``asked``, if it was), or None.

        What is found follows from the state, so a run that was killed here looks again when it goes on.
        """
        plan, number = self.prepared.plan, self.state.round
        last = number == plan.rounds
        stopped = "the last round of the plan" if last else asked
        if stopped is not None or number % plan.evaluation.every == 0:
            everyone = stopped is not None
            measured = self._measure(everyone=everyone)
            self.watched = [*self.watched, measured.value(plan.stopping.metric)]
            told = self.tell(measured.event)
            stopped = (
                stopped
                or stopping_reason(plan.stopping, self.watched, higher_is_better=self._higher_is_better())
                or told
            )
            if stopped is not None and not everyone and plan.evaluation.federated_clients is not None:
                measured = self._measure(everyone=True)
            self.folder.append_events([measured.event], durable=False)
            if number == 0 or stopped is not None:
                rows = measured.clients
                event = {"event": "clients", "round": number, "part": "test", "clients": rows}
                self.folder.append_events([event], durable=False)
        return stopped

    def _interruption(self) -> Interruption:
        resumable = self.charge is None or self.charge.resumable
        return Interruption(self.folder.path, self.tell, resumable=resumable)

    def _measure(self, *, everyone: bool) -> Measured:
        return measure(self.prepared, self.state, self.store, everyone=everyone)

    def tell(self, event: Mapping[str, Any]) -> str | None:
        """Show an event to every callback; return why the run stops, if one asked for it."""
        answers = [callback(event) for callback in self.callbacks]
        return "a callback asked to stop" if any(answer is True for answer in answers) else None

    def _higher_is_better(self) -> bool:
        name = (self.prepared.plan.stopping.metric or "").partition(".")[2]
        return next((metric.higher_is_better for metric in self.prepared.metrics if metric.name == name), True)
