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
from hansa.simulation.work import Cost, Opened, Part, Timeline


class NoClock:
    """Rounds without devices: everyone reports, and nothing takes time."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    def open(self, state: ServerState, store: ClientStore) -> Opened:
        """Return the round of the drawn cohort."""
        coins = self.prepared.streams.of("cohort", state.round + 1).coins()
        return Opened((Part(open_round(self.prepared.plan, state, store, coins)),))

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
