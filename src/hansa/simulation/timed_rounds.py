"""Rounds of clients with devices: a cohort of those who can be reached, a deadline, stragglers, losses."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hansa.algorithms.rounds import open_round
from hansa.algorithms.schedule import Round, has_fixed_size
from hansa.algorithms.secure_sums import Groups
from hansa.core.layout import Int64s
from hansa.core.nouns import Assignment, ServerState
from hansa.core.secure_aggregation import SecureAggregation
from hansa.core.streams import Coins
from hansa.simulation.client_store import ClientStore
from hansa.simulation.devices import HOUR
from hansa.simulation.work import ATTEMPTS, DRAWS, WAIT, Cost, Opened, Part, stalled


@dataclass
class TimedRounds:
    """Rounds of clients with devices: who can be reached is picked, who is late or lost is not waited for."""

    cost: Cost
    clock: float = 0.0
    started: int = 0
    participants: int = 0

    def open(self, state: ServerState, store: ClientStore) -> Opened:
        """Return the round of those who report in time. Raises RunError where no round has enough of them."""
        coins = self.cost.prepared.streams.of("cohort", state.round + 1).coins()
        told: Counter[str] = Counter()  # floats are counted too
        for attempt in range(1, ATTEMPTS + 1):
            assignment, size = self._pick(state, store, coins)
            played = self._play(assignment.cohort, size)
            told.update(self._counts(played))
            counted = self._counted(played)
            if counted is not None:
                cohort = np.array(counted, dtype=np.int64)
                self.participants += int((store.times(cohort) == 0).sum())
                facts = {
                    "simulated_seconds": self.clock,
                    "participants": self.participants,
                    "attempts": attempt,
                    **told,
                }
                return Opened((Part(replace(assignment, cohort=cohort)),), facts)
        raise stalled(
            f"In {ATTEMPTS} attempts none of round {state.round + 1} had enough reports.",
            "Lower schedule.minimum_reports or report_goal (and the minima of secure_aggregation, if the plan has "
            "it), or raise schedule.round_deadline, over_selection or the cohort.",
        )

    def notes(self) -> dict[str, Any]:
        """Return the clock and the counts that go on."""
        return {"clock": self.clock, "started": self.started, "participants": self.participants}

    def _pick(self, state: ServerState, store: ClientStore, coins: Coins) -> tuple[Assignment, int]:
        """Return the assignment of clients that can be reached, and the size of the cohort without those on top.

        The server waits while nobody can be reached whom the sampler would pick.
        """
        plan, fleet = self.cost.prepared.plan, self.cost.fleet
        until = self.clock + 2 * HOUR * fleet.devices.period_hours
        while self.clock <= until:
            assignment = open_round(plan, state, store, coins)
            size = len(assignment.cohort)
            if not fleet.always:
                assignment = self._reachable(assignment, state, store, coins)
            if len(assignment.cohort) or not size:
                sampler: Any = plan.cohort
                return assignment, min(size, sampler.size) if has_fixed_size(sampler) else size
            self.clock += WAIT
        raise stalled(
            f"Nobody could be reached for two periods of {fleet.devices.period_hours:g} hours.",
            "Widen the hours in which clients are available.",
        )

    def _reachable(self, first: Assignment, state: ServerState, store: ClientStore, coins: Coins) -> Assignment:
        """Return an assignment of clients that can be reached: as many as the sampler drew, where it draws a number.

        Each further draw is shuffled, so that those who are taken of the last one are any of it.
        """
        plan, fleet, size = self.cost.prepared.plan, self.cost.fleet, len(first.cohort)
        found = first.cohort[fleet.reachable_for(first.cohort, self.clock) > 0]
        for _ in range(DRAWS if has_fixed_size(plan.cohort) else 0):
            if len(found) >= size:
                break
            drawn = open_round(plan, state, store, coins).cohort
            drawn = drawn[np.argsort(coins.words(len(drawn)), kind="stable")]
            drawn = drawn[~np.isin(drawn, found)]
            found = np.concatenate([found, drawn[fleet.reachable_for(drawn, self.clock) > 0]])[:size]
        return replace(first, cohort=found)

    def _play(self, cohort: Int64s, size: int) -> Round:
        """Return the round of a cohort as it went, and move the clock to its end."""
        schedule: Any = self.cost.prepared.plan.schedule
        at_goal = self.cost.prepared.plan.secure_aggregation is None
        played = Round.opened(schedule, cohort.tolist(), at=self.clock, size=size, at_goal=at_goal)
        ends, lost = self.cost.ends(cohort, self.clock, self.started + np.arange(1, len(cohort) + 1))
        self.started += len(cohort)
        for position in np.argsort(ends, kind="stable").tolist():
            client, at = int(cohort[position]), float(ends[position])
            if lost[position]:
                played.lose(client, at)
            else:
                played.report(client, at)
        played.pass_time(math.inf)
        self.clock = max(self.clock, played.closed_at or 0.0)
        return played

    def _counted(self, played: Round) -> list[int] | None:
        """Return the clients whose updates are counted, in the order of the cohort; None where they are too few.

        Of a cohort in groups those count of which enough are left, as in a federation.
        """
        section, size = self.cost.prepared.plan.secure_aggregation, len(played.cohort)
        if not played.enough or section is None:
            return list(played.survivors) if played.enough else None
        groups, left, counted = Groups(size, section.groups(size)), set(played.survivors), list[int]()
        for number in range(groups.count):
            first, after = groups.bounds(number)
            some = [client for client in played.cohort[first:after] if client in left]
            counted += some if len(some) >= _least(section, after - first) else []
        return counted or None

    def _counts(self, played: Round) -> dict[str, Any]:
        """Return how many were picked and what became of them, and their bytes; who is late has sent its update."""
        late, reported = played.count("late"), played.count("included")
        return {
            "selected": len(played.cohort),
            "reported": reported,
            "late": late,
            "dropped_out": played.count("lost"),
            "bytes_down_total": len(played.cohort) * self.cost.bytes_down,
            "bytes_up_total": (late + reported) * self.cost.bytes_up,
        }


def _least(section: SecureAggregation, clients: int) -> int:
    """Return how many of so many must be left for their sum to be shown; more than there are, if too few began."""
    from hansa.secagg.planned import floors_of, least_shown  # noqa: PLC0415 - cryptography, where it is used

    fewest = section.minimum_cohort if clients < section.minimum_cohort else floors_of(section, clients)[0]
    return least_shown(section, clients, clients) if clients >= fewest else fewest
