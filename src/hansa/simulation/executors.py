"""Executors: how the cohort's client updates are computed. Each hands them back by cohort position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from hansa.algorithms.rounds import client_update
from hansa.core.errors import PlanError, Problem
from hansa.core.layout import Array
from hansa.core.nouns import Assignment, Batch
from hansa.core.registry import nearest
from hansa.simulation.client_store import ClientStore
from hansa.simulation.preparation import Prepared


@dataclass(frozen=True)
class Updates:
    """Encoded updates and next states of consecutive cohort positions."""

    position: int
    batch: Batch
    states: dict[str, Array]


class Executor(Protocol):
    """Computes a cohort's updates."""

    def updates(self, prepared: Prepared, assignment: Assignment, store: ClientStore) -> Iterator[Updates]:
        """Yield the updates of every position; the rows of one fold block in order."""


class Serial:
    """One client after the other, as on devices: the reference that every other executor is held to."""

    def updates(self, prepared: Prepared, assignment: Assignment, store: ClientStore) -> Iterator[Updates]:
        """Yield one client's update after the other, in cohort order."""
        for position in range(len(assignment.cohort)):
            ordinals = assignment.cohort[position : position + 1]
            clients = prepared.clients(ordinals, assignment.features)
            states = store.states(ordinals)
            batch, following = client_update(prepared.plan, assignment, clients, states, prepared.streams)
            yield Updates(position, batch, following)


EXECUTORS: Final[dict[str, type[Executor]]] = {"serial": Serial}


def executor_named(name: str) -> Executor:
    """Return the executor of that name. Raises PlanError for an unknown one."""
    if name not in EXECUTORS:
        raise PlanError([Problem("--executor", f"unknown executor {name!r}; {nearest(name, EXECUTORS)}")])
    return EXECUTORS[name]()
