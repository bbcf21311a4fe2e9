"""Rounds in memory: the four functions and a fold, without a folder, a checkpoint or an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from hansa.algorithms import rounds
from hansa.algorithms.fold import collector
from hansa.algorithms.plan import Plan
from hansa.core.layout import Array, Floats, Int64s
from hansa.core.nouns import Assignment, Batch, ClientBatch, ClientDatasets, RoundReport, ServerState, Signature
from hansa.core.streams import Streams
from hansa.testing.clients import MemoryView


@dataclass
class Rehearsal:
    """A plan and its clients in memory; :meth:`play` runs rounds and gives the model after each.

    ``chunk`` clients train together, 1 as on devices. Sections of the plan that only a run needs (data,
    evaluation, stopping) are not looked at.
    """

    plan: Plan
    data: ClientDatasets
    signature: Signature
    chunk: int = 1024
    streams: Streams = field(init=False)
    state: ServerState = field(init=False)
    states: dict[str, Array] = field(init=False)
    view: MemoryView = field(init=False)
    reports: list[RoundReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan, population = self.plan, len(self.data.names)
        self.streams = Streams(plan.seed)
        self.state = rounds.start(plan, plan.trainer.initial(plan.model, self.signature, self.streams.of("model")))
        first = rounds.client_start(plan, self.state.layout, self.signature)
        self.states = {name: np.repeat(row[None], population, axis=0) for name, row in first.items()}
        self.view = MemoryView(population)

    @property
    def params(self) -> Floats:
        """Return the branch "params" of the model: float32 [p]."""
        return self.state.model[self.state.layout.slices["params"]]

    def play(self, number: int | None = None) -> list[Floats]:
        """Run ``number`` rounds (all of the plan's unless given) and return the parameters after each."""
        return list(self._rounds(self.plan.rounds if number is None else number))

    def start_from(self, params: Array) -> None:
        """Put other parameters in the place of the current ones."""
        model = self.state.model.copy()
        model[self.state.layout.slices["params"]] = params
        self.state = replace(self.state, model=model)

    def _rounds(self, number: int) -> Iterator[Floats]:
        for _ in range(number):
            self._round()
            yield self.params.copy()

    def _round(self) -> None:
        plan = self.plan
        assignment = rounds.open_round(
            plan, self.state, self.view, self.streams.of("cohort", self.state.round + 1).coins()
        )
        collected = collector(plan.aggregator, self.state.layout, len(assignment.cohort), None)
        following = {name: rows.copy() for name, rows in self.states.items()}
        for position in range(0, len(assignment.cohort), self.chunk):
            ordinals = assignment.cohort[position : position + self.chunk]
            batch, rows = self._updates(assignment, ordinals)
            collected.add(rounds.receive(plan, assignment, batch, self.streams), position)
            for name, row in rows.items():
                following[name][ordinals] = row
        aggregate = collected.finish(plan.aggregator, assignment.population)
        self.state, report = rounds.close_round(plan, self.state, aggregate)
        self.states = following
        self.view.record(assignment.round, assignment.cohort)
        self.reports.append(report)

    def _updates(self, assignment: Assignment, ordinals: Int64s) -> tuple[Batch, dict[str, Array]]:
        clients = ClientBatch(ordinals, self.data, self.signature)
        states = {name: rows[ordinals] for name, rows in self.states.items()}
        return rounds.client_update(self.plan, assignment, clients, states, self.streams)
