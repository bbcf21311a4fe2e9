"""What a client computes when it is asked: statistics, an update, or tallies, by the plan's own pieces.

The arithmetic is that of the simulation's serial executor: ``client_update`` for one client, with plain kernels and
one thread for matrix products. So a plan gives the same model simulated and deployed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from hansa.algorithms.fixed_point import vectors
from hansa.algorithms.plan import Plan, plan_from_mapping, plan_sha256
from hansa.algorithms.private_sums import released
from hansa.algorithms.prologue import client_statistics, declared_scaling, statistics_layout
from hansa.algorithms.rounds import client_start, client_update, travelling_layout
from hansa.algorithms.secure_sums import round_code
from hansa.core.allowed import DEFAULT, Allowance, allowing, refuse_named
from hansa.core.errors import RefusedError
from hansa.core.layout import Array, Int64s, Layout
from hansa.core.nouns import Assignment, Batch, ClientBatch, ClientDatasets, Scaling
from hansa.core.ring import Ring
from hansa.core.streams import Streams
from hansa.evaluation.federated import tally_clients
from hansa.evaluation.lanes import tally_lanes, tally_layout
from hansa.evaluation.metrics import Metric, choose
from hansa.training.kernels import PLAIN, use
from hansa.wire.jobs import JobDescriptor
from hansa.wire.server_models import ServedModel
from hansa.wire.updates import encode_tallies, encode_update

Kind = Literal["statistics", "training", "evaluation"]
Rows = Mapping[str, Array]
"""What a client keeps between rounds: name -> [...], without the axis of clients."""

_OWN: Final = frozenset({"rounding", "noise", "example-sampling", "example-noise"})
"""Secret purposes whose numbers a client draws itself."""
_SIMULATED_ONLY: Final = ("data", "devices")
"""Sections of a plan that a federation ignores: they are no part of what a site approves."""


@dataclass(frozen=True)
class SiteExamples:
    """A site's examples: which one it is of the clients of two datasets; without test examples it reports zeros."""

    train: ClientDatasets
    test: ClientDatasets | None
    ordinal: int = 0


@dataclass(frozen=True)
class Request:
    """What is asked of one client in one round, and who it is: ``number`` is its place in the population's list."""

    kind: Kind
    round: int
    number: int
    population: int
    cohort: int = 1


@dataclass(frozen=True)
class Answer:
    """What is reported, the client's next rows, and its own figures, which stay with it.

    With a ``ring``, the content is a packed vector of it: what goes into a secure sum, and is never reported as it is.
    """

    content: bytes
    rows: Rows
    own: Mapping[str, Any] | None = None
    ring: Ring | None = None


@dataclass(frozen=True)
class _OneClient:
    """One client of some datasets under the number that it has in the population."""

    datasets: ClientDatasets
    ordinal: int
    empty: bool = False

    @property
    def names(self) -> Sequence[str]:
        return [self.datasets.names[self.ordinal]]

    def sizes(self, ordinals: Int64s) -> Int64s:
        return np.zeros(len(ordinals), dtype=np.int64) if self.empty else self.datasets.sizes(self._own(ordinals))

    def gather(self, ordinals: Int64s, positions: Int64s) -> tuple[Array, Array]:
        return self.datasets.gather(self._own(ordinals), positions)

    def labels_at(self, ordinals: Int64s, positions: Int64s) -> Array:
        return self.datasets.labels_at(self._own(ordinals), positions)

    def _own(self, ordinals: Int64s) -> Int64s:
        return np.full(len(ordinals), self.ordinal, dtype=np.int64)


class Learner:
    """One job, built once, of code that the site allows.

    Raises PlanError for a plan that does not build, RefusedError for another than is named and for other code.
    """

    def __init__(self, job: JobDescriptor, code: Sequence[Allowance] = DEFAULT) -> None:
        self.job = job
        self._code = tuple(code)
        with allowing(self._code):
            refuse_named(job.plan)
            self.plan = plan_of(job)
        self.layout: Layout = travelling_layout(self.plan, job.layout)

    def answer(self, request: Request, model: ServedModel, examples: SiteExamples, rows: Rows) -> Answer:
        """Return what the client reports. ``rows`` are its current ones; empty before its first round."""
        with allowing(self._code), _as_in_a_simulation():
            if request.kind == "statistics":
                statistics = client_statistics(self.plan, self._train(request, examples, None))
                return self._answer(request, statistics, rows)
            if request.kind == "training":
                return self._training(request, model, examples, rows)
            return self._evaluation(request, model, examples, rows)

    def first_rows(self) -> dict[str, Array]:
        """Return what a client keeps before its first round."""
        return client_start(self.plan, self.layout, self.job.signature)

    def lanes(self, kind: Kind) -> list[str]:
        """Return the names of the lanes that a report carries."""
        if kind == "statistics" and self.plan.features is not None:
            return [lane.name for lane in statistics_layout(self.plan.features).lanes]
        if kind != "training":
            return []
        layout = self.layout if self.plan.privacy is None else released(self.layout)
        return [lane.name for lane in layout.lanes]

    def metrics(self) -> tuple[Metric, ...]:
        """Return what is tallied in an evaluation."""
        return choose(self.plan.evaluation.metrics, self.job.signature)

    def _answer(self, request: Request, batch: Batch, rows: Rows, own: Mapping[str, Any] | None = None) -> Answer:
        """Return an update as it is reported, or as the vector that it gives to a secure sum."""
        if self.plan.secure_aggregation is None:
            return Answer(encode_update(batch), rows, own)
        tallies = tally_layout(self.metrics())
        code = round_code(self.plan, request.kind, request.cohort, updates=self.layout, tallies=tallies)
        (vector,) = vectors(code, batch)
        return Answer(code.ring.pack(vector), rows, own, code.ring)

    def _training(self, request: Request, model: ServedModel, examples: SiteExamples, rows: Rows) -> Answer:
        cohort = np.array([request.number], dtype=np.int64)
        scaling = self._scaling(model)
        clip_norm = self._clip_norm(model)
        assignment = Assignment(
            request.round, self.layout, model.values, cohort, request.population, scaling, clip_norm
        )
        clients = self._train(request, examples, scaling)
        states = {name: row[None] for name, row in {**self.first_rows(), **rows}.items()}
        streams = Streams(self.plan.seed, "federation", _OWN)
        batch, following = client_update(self.plan, assignment, clients, states, streams)
        return self._answer(request, batch, {name: row[0] for name, row in following.items()})

    def _evaluation(self, request: Request, model: ServedModel, examples: SiteExamples, rows: Rows) -> Answer:
        metrics, trainer = self.metrics(), self.plan.trainer
        states = {**self.first_rows(), **rows}
        local = "buffers" in states

        def predict(x: Array, ordinal: int | None) -> Array:
            own = {} if ordinal is None else states
            return trainer.predict(self.plan.model, self.job.signature, model.values, x, own)

        clients = self._clients(request, examples.test, examples, self._scaling(model))
        tallied = tally_clients(metrics, predict, clients, one_by_one=local)
        values = {name: float(column[0]) for name, column in tallied.values.items()}
        own: dict[str, Any] = {name: None if np.isnan(value) else value for name, value in values.items()}
        counted = {"examples": int(clients.sizes[0])}
        if self.plan.secure_aggregation is None:
            return Answer(encode_tallies(tallied.totals), rows, counted | own)
        layout = tally_layout(metrics)
        lanes = tally_lanes(layout, {name: tally[None] for name, tally in tallied.totals.items()})
        return self._answer(request, Batch(np.zeros((1, 0), dtype=np.float32), lanes, layout), rows, counted | own)

    def _clip_norm(self, model: ServedModel) -> float | None:
        """Return the clip norm of a round, within what the plan allows. Raises RefusedError for any other."""
        privacy = self.plan.privacy
        if privacy is None or privacy.adaptive_clip is None:
            return None if privacy is None else privacy.clip_norm
        lowest, highest = privacy.adaptive_clip.lowest, privacy.adaptive_clip.highest
        if model.clip_norm is None or not lowest <= model.clip_norm <= highest:
            raise RefusedError(
                "HANSA-REQUEST-INVALID",
                rule=f"A round's clip norm lies within the plan's {lowest:g} and {highest:g}.",
                found=f"The model says {model.clip_norm}.",
                action="Ask whoever runs the server: nothing was computed for this round.",
            )
        return model.clip_norm

    def _scaling(self, model: ServedModel) -> Scaling | None:
        return model.features if model.features is not None else declared_scaling(self.plan.features)

    def _train(self, request: Request, examples: SiteExamples, scaling: Scaling | None) -> ClientBatch:
        return self._clients(request, examples.train, examples, scaling)

    def _clients(
        self, request: Request, part: ClientDatasets | None, examples: SiteExamples, scaling: Scaling | None
    ) -> ClientBatch:
        datasets = examples.train if part is None else part
        alone = _OneClient(datasets, examples.ordinal, empty=part is None)
        ordinals = np.array([request.number], dtype=np.int64)
        return ClientBatch(ordinals, alone, self.job.signature, scaling)


def plan_of(job: JobDescriptor) -> Plan:
    """Return the plan of a job, of whose digest the site makes sure itself.

    Raises PlanError for one that does not build, RefusedError where it is another than the job says.
    """
    plan = plan_from_mapping({key: value for key, value in job.plan.items() if key not in _SIMULATED_ONLY})
    digest = plan_sha256(plan)
    if digest != job.plan_sha256:
        raise RefusedError(
            "HANSA-REQUEST-INVALID",
            rule="A job's plan has the digest that the job says.",
            found=f"It has {digest}, which is not {job.plan_sha256}.",
            action="Submit it with `hansa submit` of the version that the client has.",
        )
    return plan


@contextmanager
def _as_in_a_simulation() -> Iterator[None]:
    """Compute as the serial executor does: one thread for products, plain kernels, no warnings of overflow."""
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - needed where something is computed

    with threadpool_limits(limits=1), use(PLAIN), np.errstate(over="ignore", invalid="ignore"):
        yield
