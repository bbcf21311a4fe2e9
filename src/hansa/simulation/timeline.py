"""The timeline of a run: what opens one step after another, with a simulated clock where clients have devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hansa.algorithms.rounds import open_round
from hansa.core.nouns import ServerState
from hansa.simulation.client_store import ClientStore
from hansa.simulation.preparation import Prepared
from hansa.simulation.timed_buffers import TimedBuffers
from hansa.simulation.timed_rounds import TimedRounds
from hansa.simulation.work import ATTEMPTS, Cost, Opened, Part, Timeline, stalled


class NoClock:
    """Rounds without devices: everyone reports, and nothing takes time."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    def open(self, state: ServerState, store: ClientStore) -> Opened:
        """Return the round of the drawn cohort; under a secure sum, of the first that is large enough.

        Raises RunError where none is.
        """
        plan, coins = self.prepared.plan, self.prepared.streams.of("cohort", state.round + 1).coins()
        least = 0 if plan.secure_aggregation is None else plan.secure_aggregation.minimum_cohort
        for _ in range(ATTEMPTS):
            assignment = open_round(plan, state, store, coins)
            if len(assignment.cohort) >= least:
                return Opened((Part(assignment),))
        raise stalled(
            f"In {ATTEMPTS} attempts none of round {state.round + 1} had the {least} clients that a secure sum needs.",
            "Raise the cohort, or lower secure_aggregation.minimum_cohort.",
        )

    def notes(self) -> dict[str, Any]:
        """Return nothing: there is no clock."""
        return {}


def simulated(prepared: Prepared, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what the clock tells of a whole run, from the events of its rounds; None where there is no clock.

    ``participants`` counts the different clients of whom an update was part of a step.
    """
    if prepared.fleet is None:
        return None
    last = rounds[-1] if rounds else {}
    counted = ("selected", "reported", "late", "too_stale", "dropped_out", "bytes_up_total", "bytes_down_total")
    return {
        "seconds": last.get("simulated_seconds", 0.0),
        "participants": last.get("participants", 0),
        "population": prepared.population,
        **{name: sum(event[name] for event in rounds) for name in counted if name in last},
        "abandoned": sum(event.get("attempts", 1) - 1 for event in rounds),
    }


def timeline_of(prepared: Prepared, version: int = 0, notes: Mapping[str, Any] | None = None) -> Timeline:
    """Return the timeline of a plan from a model version on, with the notes that it left there."""
    notes = notes or {}
    if prepared.fleet is None:
        return NoClock(prepared)
    cost = Cost.of(prepared, prepared.fleet)
    if prepared.plan.schedule.synchronous:
        return TimedRounds(cost, **notes)
    return TimedBuffers.resumed(cost, version, notes)
