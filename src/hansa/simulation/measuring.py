"""What a run measures: the server's model on central examples and on the clients' held-out examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hansa.core.datasets import Examples
from hansa.core.layout import Array, Layout
from hansa.core.nouns import ClientBatch, ClientDatasets, Scaling, ServerState
from hansa.evaluation.federated import (
    Predict,
    Tallied,
    evaluate_centrally,
    per_client,
    summarise,
    tally_clients,
)
from hansa.evaluation.lanes import tallies_of, tally_lanes, tally_layout
from hansa.simulation.client_store import ClientStore
from hansa.simulation.preparation import Prepared
from hansa.simulation.secure_sum import LaneSum

FIRST: Final = slice(0, 5000)
"""The clients whose own figures are written to the run folder, at most."""


@dataclass(frozen=True)
class Measured:
    """One evaluation: an event for metrics.jsonl, and the rows of the test clients."""

    event: dict[str, Any]
    clients: list[dict[str, Any]]

    def value(self, name: str | None) -> float | None:
        """Return "central.auc" or "validation.loss" (there the overall value)."""
        part, _, metric = (name or "").partition(".")
        table = self.event.get(part) or {}
        found = table.get(metric)
        return found.get("overall") if isinstance(found, Mapping) else found


def measure(prepared: Prepared, state: ServerState, store: ClientStore, *, everyone: bool) -> Measured:
    """Evaluate a state wherever the plan and the data allow."""
    plan, data = prepared.plan, prepared.data
    predict = predictor(prepared, state.model, store)
    own_buffers = bool(prepared.first_rows) and "buffers" in prepared.first_rows

    def part(datasets: ClientDatasets | None, *, all_of_it: bool, local: bool) -> tuple[Any, list[dict[str, Any]]]:
        if datasets is None or not plan.evaluation.federated:
            return None, []
        ordinals = np.arange(len(datasets.names)) if all_of_it else _some(prepared)
        clients = ClientBatch(ordinals, datasets, data.signature, state.features)
        summed = None if datasets is data.held_out else secure_tallies(prepared, len(clients), state.round)
        tallied = tally_clients(prepared.metrics, predict, clients, one_by_one=local, summed=summed)
        return summarise(prepared.metrics, tallied), client_rows(prepared, tallied, clients, FIRST)

    federated, clients = part(data.test, all_of_it=everyone, local=own_buffers)
    event = {
        "event": "evaluation",
        "round": state.round,
        "central": central(prepared, predict, state.features) if plan.evaluation.central else None,
        "federated": federated,
        "validation": part(data.validation, all_of_it=everyone, local=own_buffers)[0],
        "held_out_clients": part(data.held_out, all_of_it=True, local=False)[0],
    }
    return Measured(event, clients)


def secure_tallies(prepared: Prepared, clients: int, number: int) -> SecureTallies | None:
    """Return what adds up the tallies of so many clients after a round, or None where the plan has no secure sum."""
    if prepared.plan.secure_aggregation is None:
        return None
    layout = tally_layout(prepared.metrics)
    return SecureTallies(layout, LaneSum(prepared.plan, layout, clients, prepared.streams, number=number))


@dataclass(frozen=True)
class SecureTallies:
    """Tallies as lanes of a secure sum."""

    layout: Layout
    lanes: LaneSum

    def add(self, tallies: Mapping[str, Array], position: int) -> None:
        """Add the tallies of consecutive clients."""
        self.lanes.add(tally_lanes(self.layout, tallies), position)

    def totals(self) -> dict[str, Array]:
        """Return the sums, as the server decodes them."""
        return tallies_of(self.layout, self.lanes.total().lanes)


def client_rows(prepared: Prepared, tallied: Tallied, clients: ClientBatch, which: slice) -> list[dict[str, Any]]:
    """Return the own figures of some of the clients that were measured."""
    some = clients.of(which)
    names = [some.data.names[ordinal] for ordinal in some.ordinals.tolist()]
    theirs = Tallied({name: values[which] for name, values in tallied.values.items()}, tallied.totals)
    return per_client(prepared.metrics, theirs, names, some.sizes)


def predictor(prepared: Prepared, values: Array, store: ClientStore) -> Predict:
    """Return predictions of one model [d]; a client's ordinal brings in the buffers that it keeps."""

    def predict(x: Array, ordinal: int | None) -> Array:
        states = {}
        if ordinal is not None:
            states = {name: rows[0] for name, rows in store.states(np.array([ordinal])).items()}
        return prepared.plan.trainer.predict(prepared.plan.model, prepared.data.signature, values, x, states)

    return predict


def central(prepared: Prepared, predict: Predict, scaling: Scaling | None) -> dict[str, float | None] | None:
    """Return the metrics on the server's own examples, or None where there are none."""
    examples = prepared.data.central
    if examples is None:
        return None
    x = examples.x if scaling is None else scaling.apply(examples.x)
    return evaluate_centrally(prepared.metrics, predict, Examples(x, examples.y))


def _some(prepared: Prepared) -> Array:
    """Return the clients of an interim evaluation: all, or a fixed draw."""
    wanted = prepared.plan.evaluation.federated_clients
    if wanted is None or wanted >= prepared.population:
        return np.arange(prepared.population)
    return np.sort(prepared.streams.of("evaluation").coins().distinct(prepared.population, wanted))
