"""The life of a run and of its rounds, without I/O: what follows from what is known. Everything here is pure.

``CREATED -> OPENING -> COLLECTING -> AGGREGATING -> CLOSED``; from any of the first four a round may become
``ABANDONED``, and is tried again with a fresh cohort.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from hansa.algorithms import schedule
from hansa.algorithms.plan import Plan
from hansa.core.errors import RunError
from hansa.store.records import Assigned, Fate, Kind, Report, Round, RoundState, Run

NEXT: Final[Mapping[RoundState, frozenset[RoundState]]] = {
    "created": frozenset({"opening", "abandoned"}),
    "opening": frozenset({"collecting", "abandoned"}),
    "collecting": frozenset({"aggregating", "abandoned"}),
    "aggregating": frozenset({"closed", "abandoned"}),
    "closed": frozenset(),
    "abandoned": frozenset(),
}
"""State of a round -> the states that may follow."""
TAKES_REPORTS: Final = frozenset({"opening", "collecting"})
"""States in which a report is accepted."""

_SAID: Final[Mapping[Fate, str]] = {"declined": "declined", "refused": "sent what was refused"}

Move = Literal["wait", "collect", "freeze", "abandon", "close"]


@dataclass(frozen=True)
class Upcoming:
    """The round that a run needs next; ``everyone`` where all clients are asked, whatever the plan's cohort."""

    kind: Kind
    round: int
    everyone: bool


def advance(round_: Round, *states: RoundState, **changes: Any) -> Round:
    """Return a round in the last of some states, passed one after another. Raises RunError for a wrong step."""
    for state in states:
        if state not in NEXT[round_.state]:
            raise RunError(
                "HANSA-RUN-STATE",
                rule=f"From {round_.state} a round goes on to {', '.join(sorted(NEXT[round_.state])) or 'nothing'}.",
                found=f"It was to become {state}.",
                action="This is a bug of Hansa: report it with the run's events.",
            )
        round_ = replace(round_, state=state)
    return replace(round_, **changes)


def upcoming(plan: Plan, run: Run) -> Upcoming | None:
    """Return the next round of a run, or None when it is at its end."""
    notes = run.notes
    scaled = plan.features is None or plan.features.scaling != "federated" or notes.get("statistics")
    if not scaled:
        return Upcoming("statistics", 0, everyone=True)
    ends = run.round >= plan.rounds or notes.get("stopping") is not None
    if plan.evaluation.federated and (ends or run.round % plan.evaluation.every == 0):
        everyone = ends or plan.evaluation.federated_clients is None
        measured = notes.get("evaluated")
        if measured is None or measured["round"] < run.round or (everyone and not measured["everyone"]):
            return Upcoming("evaluation", run.round, everyone=everyone)
    return None if ends else Upcoming("training", run.round + 1, everyone=False)


def waiting(plan: Plan, round_: Round, assigned: Sequence[Assigned], reports: Sequence[Report]) -> schedule.Round:
    """Return the schedule's machine of an open round, told all that happened in it. Its clients are positions."""
    goal, needed = goal_of(plan, round_)
    deadline = math.inf if round_.deadline is None else round_.deadline
    machine = schedule.Round(tuple(range(round_.cohort_size)), goal, needed, deadline, at_goal=at_goal(plan, round_))
    for each in assigned:
        if each.fate in ("declined", "refused", "lost"):
            machine.lose(each.position, round_.opened_at)
    for report in sorted(reports, key=lambda report: (report.received_at, report.position)):
        machine.report(report.position, report.received_at)
    if not round_.cohort_size:
        machine.closed_at = round_.opened_at  # there is nobody to wait for
    return machine


def goal_of(plan: Plan, round_: Round) -> tuple[int, int]:
    """Return how many reports close a round before its deadline, and how many it needs to count at all."""
    of: Any = plan.schedule
    if round_.id.kind != "training" or not of.synchronous:
        return round_.cohort_size, 1
    goal = int(round_.notes["size"]) if of.report_goal is None else of.report_goal
    return goal, of.needed_reports or 1


def at_goal(plan: Plan, round_: Round) -> bool:
    """Return True where the goal closes a round: not under a secure sum, and only where training has one."""
    return plan.secure_aggregation is None and round_.id.kind == "training"


def move(plan: Plan, round_: Round, assigned: Sequence[Assigned], reports: Sequence[Report], *, now: float) -> Move:
    """Return what is to be done with a round now.

    All reports that were acknowledged when the round is frozen are in it, those after the goal too: whoever was told
    "accepted" is counted, or the round is abandoned.
    """
    if round_.state == "aggregating":
        return "close"
    machine = waiting(plan, round_, assigned, reports)
    machine.pass_time(now)
    if machine.closed_at is None:
        return "collect" if reports and round_.state == "opening" else "wait"
    return "freeze" if len(reports) >= machine.needed or _may_be_empty(plan, round_) else "abandon"


def waits(plan: Plan, round_: Round, fates: Mapping[Fate | None, int], *, now: float) -> bool:
    """Return True where ``move`` can only say "wait", by how many came to which end: it need not be told of each."""
    reported = fates.get("reported", 0)
    if round_.state not in TAKES_REPORTS or (round_.state == "opening" and reported):
        return False
    if round_.deadline is not None and now >= round_.deadline:
        return False
    if at_goal(plan, round_) and reported >= goal_of(plan, round_)[0]:
        return False
    return fates.get(None, 0) > 0


def why_given_up(assigned: Sequence[Assigned], reports: Sequence[Report]) -> str:
    """Return why a round does not count, in words, by what became of its clients."""
    fates = Counter(each.fate for each in assigned)
    others = [f"{fates[fate]} of {len(assigned)} {said}" for fate, said in _SAID.items() if fates[fate]]
    answered = sum(fates[fate] for fate in _SAID)
    if answered == len(assigned) > 0:
        return ", ".join(others)
    return ", ".join([f"{len(reports)} of {len(assigned)} picked clients reported in time", *others])


def _may_be_empty(plan: Plan, round_: Round) -> bool:
    """Return True where a round without a report is a round: nobody was picked (Poisson), or sampling is amplified.

    To try such a round again until somebody reports would tell who was drawn, and draw those who do report more often
    than is charged.
    """
    of: Any = plan.schedule
    amplified = plan.privacy is not None and plan.privacy.trusted_sampling
    may = amplified or not round_.cohort_size
    return may and round_.id.kind == "training" and getattr(of, "needed_reports", None) is None
