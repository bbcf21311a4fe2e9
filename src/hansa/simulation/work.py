"""One step of the server as it is opened, and what its work costs a client of a fleet.

No value of a model decides who reports when. So a timeline first finds out whose reports count, and only their updates
are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import numpy as np

from hansa.core.errors import RunError
from hansa.core.layout import Array, Floats, Int64s
from hansa.core.nouns import Assignment, Batch, ClientContext, ServerState
from hansa.simulation.client_store import ClientStore
from hansa.simulation.devices import HOUR, Fleet, examples_seen
from hansa.simulation.preparation import Prepared
from hansa.simulation.secure_sum import bytes_each

WAIT: Final = HOUR / 6
"""Seconds after which a server looks again when nobody can be reached."""
ATTEMPTS: Final = 100
"""Rounds in a row without enough reports, before the run ends."""
DRAWS: Final = 64
"""Draws for clients that can be reached, before a cohort stays smaller."""


@dataclass(frozen=True)
class Part:
    """Clients that start from one model, in cohort order, and the factor of each update (None: 1)."""

    assignment: Assignment
    factors: Floats | None = None


@dataclass(frozen=True)
class Opened:
    """One step of the server: the parts whose updates are folded one after another, and what the clock tells of it."""

    parts: tuple[Part, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cohort(self) -> Int64s:
        """The clients of all parts, in the order of folding: int64 [n], distinct."""
        return np.concatenate([part.assignment.cohort for part in self.parts])


class Timeline(Protocol):
    """Opens one step after another. Its state between steps is in its notes."""

    def open(self, state: ServerState, store: ClientStore) -> Opened:
        """Return the step that follows a state."""

    def notes(self) -> dict[str, Any]:
        """Return what a timeline must be told to go on from here, as JSON."""


@dataclass(frozen=True)
class Cost:
    """What an assignment costs a client of a fleet."""

    prepared: Prepared
    fleet: Fleet
    bytes_down: float
    bytes_up: float

    @classmethod
    def of(cls, prepared: Prepared, fleet: Fleet) -> Cost:
        """Return the work of a plan; the size of an update is that of one of zeros, encoded."""
        return cls(prepared, fleet, float(prepared.first.model.nbytes), encoded_bytes(prepared))

    def ends(self, clients: Int64s, at: float, starts: Int64s) -> tuple[Array, Array]:
        """Return when each client that begins at a moment reports or is lost (float64 [n]), and whether it is lost.

        ``starts`` are the numbers of their starts in the run. A client is lost when its own fate says so, or when it
        cannot be reached any more before it has reported.
        """
        examples = examples_seen(self.prepared.plan.trainer, self.prepared.data.train.sizes(clients))
        takes = self.fleet.seconds(clients, examples, down_bytes=self.bytes_down, up_bytes=self.bytes_up)
        stays = np.minimum(self.fleet.lost_after(clients, starts), self.fleet.reachable_for(clients, at))
        return at + np.minimum(takes, stays), stays < takes


def encoded_bytes(prepared: Prepared) -> float:
    """Return the size of one client's encoded update. Transforms whose size depends on values see zeros."""
    layout, nobody = prepared.first.layout, np.zeros(1, dtype=np.int64)
    assignment = Assignment(1, layout, prepared.first.model, nobody, prepared.population)
    context = ClientContext(assignment, prepared.clients(nobody, None), prepared.streams)
    lanes = np.zeros((1, len(layout.lanes)), dtype=np.int64)
    batch = Batch(np.zeros((1, layout.size), dtype=np.float32), lanes, layout, {"steps": np.ones(1)})
    states = {name: row[None].copy() for name, row in prepared.first_rows.items()}
    for transform in prepared.plan.transforms:
        batch = transform.encode(batch, context, states)
    if prepared.plan.secure_aggregation is not None:
        return bytes_each(prepared.plan, batch)
    return replace(batch, side={name: column for name, column in batch.side.items() if name != "steps"}).bytes_each


def stalled(found: str, action: str) -> RunError:
    """Return the error for a simulation whose clock goes on and on."""
    return RunError(
        "HANSA-RUN-STALLED", rule="A step needs clients that can be reached and report.", found=found, action=action
    )
