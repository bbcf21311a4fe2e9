"""What a federated model is compared with: each client alone, and pooled training.

Both need all data in one place. They are for comparison in a simulation only, and are marked so. Each client alone
trains as often as it is expected to take part; pooled training sees as many examples as all clients together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hansa.algorithms.example_checks import example_privacy_of
from hansa.algorithms.rounds import client_start
from hansa.core.layout import TRAIN_LOSS, Array, Floats, Int64s, Layout
from hansa.core.nouns import Assignment, ClientBatch, ClientContext, ClientDatasets, Scaling
from hansa.evaluation.federated import summarise, tally_clients
from hansa.simulation.measuring import FIRST, central, client_rows
from hansa.simulation.preparation import Prepared, federated_scaling


@dataclass(frozen=True)
class Pooled:
    """All clients' examples as those of one client."""

    parts: ClientDatasets

    @property
    def names(self) -> Sequence[str]:
        """The one client's name."""
        return ("all clients pooled",)

    def _starts(self) -> Int64s:
        sizes = self.parts.sizes(np.arange(len(self.parts.names)))
        return np.concatenate([[0], np.cumsum(sizes)])

    def sizes(self, ordinals: Int64s) -> Int64s:
        """Return the number of all examples: int64 [n]."""
        return np.full(len(ordinals), self._starts()[-1])

    def labels_at(self, ordinals: Int64s, positions: Int64s) -> Array:
        """Return the labels alone, y of ``gather``."""
        return self.gather(ordinals, positions)[1]

    def gather(self, ordinals: Int64s, positions: Int64s) -> tuple[Array, Array]:  # noqa: ARG002 - there is one client
        """Return pooled examples at positions [n, b]: x [n, b, ...], y [n, b]."""
        starts = self._starts()
        flat = np.maximum(positions.reshape(-1), 0)
        owner = np.searchsorted(starts, flat, side="right") - 1
        x, y = self.parts.gather(owner, (flat - starts[owner])[:, None])
        shape = positions.shape
        return x.reshape(*shape, *x.shape[2:]), y.reshape(*shape, *y.shape[2:])


@np.errstate(over="ignore", invalid="ignore")  # a baseline may diverge; its metrics show it
def run_baselines(prepared: Prepared, rounds: int) -> dict[str, Any]:
    """Return the results of the baselines that the plan asks for, by name."""
    plan, population = prepared.plan, prepared.population
    wanted = plan.evaluation.baselines
    passes = max(1, round(rounds * plan.schedule.expected_reports(plan.cohort, population) / population))
    results: dict[str, Any] = {}
    if "local-only" in wanted:
        results["local_only"] = local_only(prepared, passes)
    if "centralised" in wanted:
        results["centralised"] = centralised(prepared, passes)
    return results


def centralised(prepared: Prepared, rounds: int) -> dict[str, Any]:
    """Train on the pooled examples; return its metrics overall, per client, and on central examples."""
    scaling = federated_scaling(prepared)
    pooled = ClientBatch(np.zeros(1, dtype=np.int64), Pooled(prepared.data.train), prepared.data.signature, scaling)
    values, states = _train_alone(_with_steps_of_all(_without_noise(prepared)), pooled, rounds)
    overall, rows, here = _measured(prepared, values[0], scaling, states, FIRST)
    return {"rounds": rounds, "overall": overall, "per_client": rows, "central": here}


def _with_steps_of_all(prepared: Prepared) -> Prepared:
    """Return what trains on all examples: as many steps a round as all clients make together, where steps count."""
    trainer = prepared.plan.trainer
    steps = getattr(trainer, "steps", None)
    if steps is None:
        return prepared
    more = replace(trainer, steps=steps * prepared.population)  # type: ignore[type-var]  # every piece is a dataclass
    return replace(prepared, plan=replace(prepared.plan, trainer=more))


def local_only(prepared: Prepared, rounds: int) -> dict[str, Any]:
    """Train clients alone; return each one's metrics on all test examples and on its own, and their mean."""
    names = prepared.data.train.names
    ordinals = _drawn(prepared)
    clients = []
    for ordinal in ordinals.tolist():
        scaling = federated_scaling(prepared, np.array([ordinal]))
        values, states = _train_alone(prepared, prepared.clients(np.array([ordinal]), scaling), rounds)
        overall, rows, here = _measured(prepared, values[0], scaling, states, slice(ordinal, ordinal + 1))
        own = rows[0] if rows else {}
        clients.append({"client": names[ordinal], "overall": overall, "own": _metrics_only(own), "central": here})
    return {
        "rounds": rounds,
        "clients": clients,
        "overall": _spread(prepared, [client["overall"] for client in clients]),
        "own": _spread(prepared, [client["own"] for client in clients]),
        "central": _spread(prepared, [client["central"] for client in clients]),
        "trained_clients": len(ordinals),
        "of": prepared.population,
    }


def _train_alone(prepared: Prepared, clients: ClientBatch, rounds: int) -> tuple[Floats, dict[str, Array]]:
    """Train clients without a federation: each goes on from its own last model. Returns [n, d], last states."""
    prepared = _without_noise(_without_hooks(prepared))
    plan, layout = prepared.plan, _plain_layout(prepared)
    values = np.repeat(prepared.first.model[None, : layout.size], len(clients), axis=0)
    first = client_start(plan, layout, prepared.data.signature)
    states = {name: np.repeat(row[None], len(clients), axis=0) for name, row in first.items()}
    for number in range(1, rounds + 1):
        assignment = Assignment(number, layout, values, clients.ordinals, population=len(clients))
        batch, states = plan.trainer.train(plan.model, ClientContext(assignment, clients, prepared.streams), states)
        values = values + batch.values
    return values, states


def _plain_layout(prepared: Prepared) -> Layout:
    """Return the layout of the model alone, without the branches that hooks add."""
    added = {name for hook in prepared.plan.trainer.hooks for name in hook.branches}
    kept = tuple(branch for branch in prepared.first.layout.branches if branch.name not in added)
    return Layout(kept, (TRAIN_LOSS,))


def _without_hooks(prepared: Prepared) -> Prepared:
    """Return what trains alone: hooks tie a client to a server, and there is none."""
    if not prepared.plan.trainer.hooks:
        return prepared
    branches: dict[str, Any] = {"branches": {}}
    trainer = replace(prepared.plan.trainer, hooks=())  # type: ignore[type-var]  # every piece is a dataclass
    server = replace(prepared.plan.server_optimizer, **branches)  # type: ignore[type-var]  # as above
    return replace(prepared, plan=replace(prepared.plan, trainer=trainer, server_optimizer=server, transforms=()))


def _without_noise(prepared: Prepared) -> Prepared:
    """Return what trains in the clear: baselines are for comparison, and leave nobody's machine."""
    if example_privacy_of(prepared.plan.trainer) is None:
        return prepared
    trainer = replace(prepared.plan.trainer, example_privacy=None)  # type: ignore[type-var]  # as above
    return replace(prepared, plan=replace(prepared.plan, trainer=trainer))


def _measured(
    prepared: Prepared, values: Floats, scaling: Scaling | None, states: Mapping[str, Array], which: slice
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, float | None] | None]:
    """Return one model's metrics on all test examples, on those of ``which`` clients each, and on central examples.

    The model is measured with the buffers that it was trained with: the first row of ``states``.
    """
    plan, data = _without_hooks(prepared).plan, prepared.data
    kept = {name: rows[0] for name, rows in states.items()}

    def predict(x: Array, _: int | None) -> Array:
        return plan.trainer.predict(plan.model, data.signature, values, x, kept)

    here = central(prepared, predict, scaling)
    if data.test is None:
        return {}, [], here
    everyone = np.arange(prepared.population)
    clients = ClientBatch(everyone, data.test, data.signature, scaling)
    tallied = tally_clients(prepared.metrics, predict, clients, one_by_one=False)
    rows = client_rows(prepared, tallied, clients, which)
    return {name: table["overall"] for name, table in summarise(prepared.metrics, tallied).items()}, rows, here


def _drawn(prepared: Prepared) -> Int64s:
    wanted = min(prepared.plan.evaluation.local_only_clients, prepared.population)
    return np.sort(prepared.streams.of("baseline").coins().distinct(prepared.population, wanted))


def _metrics_only(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("client", "examples")}


def _spread(prepared: Prepared, tables: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Return mean, worst and best of each metric over the models for which it is defined."""
    spread: dict[str, Any] = {}
    for metric in prepared.metrics:
        values = [table[metric.name] for table in tables if table and table.get(metric.name) is not None]
        ordered = sorted(values, reverse=not metric.higher_is_better)
        spread[metric.name] = {
            "mean": float(np.mean(values)) if values else None,
            "worst": ordered[0] if values else None,
            "best": ordered[-1] if values else None,
            "undefined": len(tables) - len(values),
        }
    return spread
