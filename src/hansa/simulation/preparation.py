"""From a plan to something that can run: data, model, first state, and all that can be refused before round 1."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from hansa.algorithms import rounds
from hansa.algorithms.plan import Plan, plan_sha256, population_problems
from hansa.algorithms.private_sums import simulated_key
from hansa.algorithms.prologue import client_statistics, close_prologue, declared_scaling, statistics_layout
from hansa.core.datasets import FederatedData
from hansa.core.errors import PlanError, Problem
from hansa.core.layout import Array
from hansa.core.nouns import ClientBatch, Scaling, ServerState
from hansa.core.schema import to_mapping
from hansa.core.streams import Streams
from hansa.data import load
from hansa.evaluation.metrics import Metric, choose
from hansa.reporting.figures import NOT_EVALUATED, not_evaluated, plural
from hansa.simulation.devices import Fleet, fleet_of
from hansa.simulation.secure_sum import LaneSum

_ROWS_AT_ONCE: Final = 65536


@dataclass(frozen=True)
class Prepared:
    """A plan with everything that it needs to run: resolved, loaded, checked."""

    plan: Plan
    plan_sha256: str
    data: FederatedData
    metrics: tuple[Metric, ...]
    first: ServerState
    first_rows: dict[str, Array]
    streams: Streams
    notes: tuple[str, ...]
    fleet: Fleet | None = None
    noise_key: bytes = field(default=b"", repr=False)
    """The 32 bytes that the noise of ``[privacy]`` follows from: of the seed, or secret in a run that is charged."""

    @property
    def population(self) -> int:
        """Return the number of clients that may train."""
        return len(self.data.train.names)

    def for_workers(self) -> Prepared:
        """Return what computing updates needs, without what only evaluation reads."""
        data = dataclasses.replace(self.data, validation=None, test=None, held_out=None, central=None)
        return dataclasses.replace(self, data=data, metrics=(), notes=(), noise_key=b"")

    def clients(self, ordinals: Array, scaling: Scaling | None) -> ClientBatch:
        """Return some clients with their training examples."""
        return ClientBatch(ordinals, self.data.train, self.data.signature, scaling)


def prepare(plan: Plan) -> Prepared:
    """Load the data, build the model and check what only they can show. Raises HansaError."""
    if plan.data is None:
        raise PlanError(
            [
                Problem(
                    "data",
                    'a simulation needs examples; add [data] with source = "heart", for one. A plan for a federation '
                    "needs none: hansa submit checks it.",
                )
            ]
        )
    data = load(plan.data, plan.features, plan.seed)
    if data.features is not None:
        plan = dataclasses.replace(plan, features=data.features)
    problems = population_problems(plan, len(data.train.names)) + _evaluation_problems(plan, data)
    if problems:
        raise PlanError(problems)
    metrics = choose(plan.evaluation.metrics, data.signature)
    streams = Streams(plan.seed)
    model = plan.trainer.initial(plan.model, data.signature, streams.of("model"))
    if plan.features is not None and plan.features.scaling == "federated":
        statistics_layout(plan.features)
    first = dataclasses.replace(rounds.start(plan, model), features=declared_scaling(plan.features))
    return Prepared(
        plan=plan,
        plan_sha256=plan_sha256(plan),
        data=data,
        metrics=metrics,
        first=first,
        first_rows=rounds.client_start(plan, first.layout, data.signature),
        streams=streams,
        notes=(
            *held_out_notes(plan, data),
            *data.notes,
            *plan.trainer.notes(plan.model, data.signature),
            *_stopping_notes(plan),
            *_delta_notes(plan, len(data.train.names)),
        ),
        fleet=fleet_of(plan, data.train.names),
        noise_key=simulated_key(streams),
    )


def federated_scaling(prepared: Prepared, ordinals: Array | None = None) -> Scaling | None:
    """Return the features' centre and scale: as declared, or by the prologue over some clients (default: all).

    Over all of them it is round 0 of the federation, and secure where the plan says so.
    """
    plan = prepared.plan
    if plan.features is None or plan.features.scaling != "federated":
        return prepared.first.features
    federated = ordinals is None
    ordinals = np.arange(prepared.population) if ordinals is None else ordinals
    layout = statistics_layout(plan.features)
    lanes = LaneSum(plan, layout, len(ordinals), prepared.streams, secure=federated)
    position = 0
    for part in prepared.clients(ordinals, None).parts(rows=_ROWS_AT_ONCE, clients=256):
        lanes.add(client_statistics(plan, part).lanes, position)
        position += len(part)
    return close_prologue(plan, prepared.first, lanes.total()).features


def held_out_notes(plan: Plan, data: FederatedData) -> tuple[str, ...]:
    """Return a note where nothing will be evaluated, with what to do about it."""
    evaluation = plan.evaluation
    on_clients = any(part is not None for part in (data.test, data.validation, data.held_out))
    if (evaluation.federated and on_clients) or (evaluation.central and data.central is not None):
        return ()
    note = not_evaluated(to_mapping(plan), on_clients=on_clients, central=data.central is not None)
    return (NOT_EVALUATED + note,)


def _stopping_notes(plan: Plan) -> tuple[str, ...]:
    """Return a warning where a stopping rule watches what the result is judged by."""
    watched = plan.stopping.metric or ""
    note = (
        f"stopping watches {watched}, by which the result is judged too, so the result looks a little better than it "
        "is; hold out data.validation_fraction and watch validation.* for a figure without that"
    )
    return (note,) if watched.startswith(("federated.", "central.")) else ()


def _delta_notes(plan: Plan, clients: int) -> tuple[str, ...]:
    """Return a warning where delta is so large that it protects nobody in particular."""
    if plan.privacy is None or plan.privacy.delta * clients < 1:
        return ()
    note = (
        f"privacy.delta is {plan.privacy.delta:g}, and there are {plural(clients, 'client')}: whoever publishes one of "
        "them at random keeps such a promise, too; choose it well below one over their number"
    )
    return (note,)


def _evaluation_problems(plan: Plan, data: FederatedData) -> list[Problem]:
    """Return what a plan wants to watch but the data cannot show."""
    watched = (plan.stopping.metric or "").partition(".")[0]
    absent = {
        "central": data.central is None,
        "federated": data.test is None,
        "validation": data.validation is None,
    }
    wanted = {
        "central": "the source has no examples of the server's own; give data.central_path.",
        "federated": "no examples are held out for testing; set data.test_fraction.",
        "validation": "no examples are held out for it; set data.validation_fraction.",
    }
    problems = [Problem("stopping.metric", wanted[part]) for part in absent if part == watched and absent[part]]
    if plan.evaluation.baselines and data.test is None and data.central is None:
        problems.append(Problem("evaluation.baselines", "nothing to compare on; set data.test_fraction."))
    return problems
