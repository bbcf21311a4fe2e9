"""The life of rounds and runs: frozen or given up exactly as the schedule says, and nothing acknowledged is lost."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hansa
from hansa.algorithms import schedule
from hansa.algorithms.plan import plan_from_mapping
from hansa.algorithms.stopping import stopping_reason
from hansa.core.errors import RunError
from hansa.server import lifecycle
from hansa.server.lifecycle import NEXT, TAKES_REPORTS, Upcoming, advance, goal_of, move, upcoming, waits
from hansa.store.records import Assigned, Report, Round, RoundKey, Run

TABLES = {
    "name": "a plan",
    "rounds": 5,
    "data": {"source": "heart", "test_fraction": 0.25},
    "model": {"factory": "hansa.training.linear:logistic"},
    "trainer": {
        "kind": "linear", "epochs": 1, "batch_size": 32, "optimizer": {"kind": "sgd", "learning_rate": 0.1}
    },
}  # fmt: skip


@cache
def plan_of(text="{}"):
    return plan_from_mapping({**TABLES, **json.loads(text)})


def planned(**tables):
    return plan_of(json.dumps(tables))


def secured(plan):
    """Return a plan with a secure sum, which no plan can name yet."""
    plan = copy.copy(plan)
    object.__setattr__(plan, "secure_aggregation", object())
    return plan


def opened(size, *, kind="training", deadline=None, picked=None, state="opening", **notes):
    return Round(
        RoundKey("r", kind, 1, 1), state, 0, "0" * 64, size, size, 0.0, deadline, b"",
        {"size": size if picked is None else picked, **notes},
    )  # fmt: skip


RUN = Run("r", "t", "j", "p", "running", 0, 0, "0" * 64, None, {}, 0, 0.0)


# Rounds


def test_a_round_passes_through_its_states_and_no_others():
    states = list(NEXT)
    for first, then in itertools.product(states, states):
        round_ = replace(opened(2), state=first)
        if then in NEXT[first]:
            assert advance(round_, then, closed_at=7.0).state == then
            assert advance(round_, then, closed_at=7.0).closed_at == 7.0
        else:
            with pytest.raises(RunError, match="goes on to"):
                advance(round_, then)
    assert advance(replace(opened(2), state="created"), "opening", "collecting", "aggregating", "closed").id.run == "r"
    assert {state for state, following in NEXT.items() if not following} == {"closed", "abandoned"}
    assert all("abandoned" in following for following in NEXT.values() if following)


@dataclass
class Federation:
    """A round with its rows as the server writes them, and the schedule's own machine beside it, told the same."""

    plan: object
    round: Round
    machine: schedule.Round
    acknowledged: list[Report] = field(default_factory=list)
    fates: dict[int, str] = field(default_factory=dict)
    end: str | None = None

    @property
    def assigned(self):
        return [
            Assigned(self.round.id, f"c{position}", position, position, self.fates.get(position))
            for position in range(self.round.cohort_size)
        ]

    def report(self, position, at):
        """Take a report as the recorder does: late after the deadline, and once the round is frozen."""
        self.machine.report(position, at)
        late = self.round.deadline is not None and at > self.round.deadline
        if self.end is None and not late and position not in self.fates:
            assert self.round.state in TAKES_REPORTS
            self.fates[position] = "reported"
            self.acknowledged.append(Report(self.round.id, f"c{position}", position, "0" * 64, 1, "", at))

    def decline(self, position, at):
        if self.end is None and position not in self.fates:
            self.machine.lose(position, at)
            self.fates[position] = "declined"

    def tick(self, at):
        """Do what the coordinator does, and hold it against what the schedule's machine says."""
        if self.end is not None:
            return
        todo = move(self.plan, self.round, self.assigned, self.acknowledged, now=at)
        if waits(self.plan, self.round, Counter(each.fate for each in self.assigned), now=at):
            assert todo == "wait"
        self.machine.pass_time(at)
        if self.machine.closed_at is None:
            assert todo == ("collect" if self.acknowledged and self.round.state == "opening" else "wait")
            if todo == "collect":
                self.round = advance(self.round, "collecting")
            return
        empty = not self.round.cohort_size and self.plan.schedule.needed_reports is None
        enough = len(self.acknowledged) >= (self.plan.schedule.needed_reports or 1) or empty
        assert todo == ("freeze" if enough else "abandon")
        self.end = todo


EVENTS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 5), st.sampled_from(["report", "decline", "tick", "tick"])),
    max_size=30,
)


@settings(max_examples=500, deadline=None)
@given(
    st.integers(0, 6), st.none() | st.integers(1, 4), st.none() | st.integers(1, 15), st.integers(1, 6),
    st.none() | st.integers(1, 4), st.booleans(), EVENTS,
)  # fmt: skip
def test_a_round_ends_exactly_as_the_schedule_says(size, goal, deadline, wanted, minimum, secure, events):
    given = {"report_goal": goal, "minimum_reports": minimum}
    plan = planned()
    plan = replace(plan, schedule=replace(plan.schedule, **given))
    if secure:
        plan = secured(plan)
    wanted = min(wanted, size)
    machine = schedule.Round.opened(
        replace(plan.schedule, round_deadline=deadline), range(size), at=0.0, size=wanted, at_goal=not secure
    )
    round_ = opened(size, deadline=None if deadline is None else float(deadline), picked=wanted)
    federation = Federation(plan, round_, machine)
    for at, position, what in sorted(events, key=lambda event: event[0]):
        if what == "tick":
            federation.tick(float(at))
        elif position < size:
            getattr(federation, what)(position, float(at))
    federation.tick(21.0)
    federation.tick(math.inf if deadline is not None else 22.0)
    if federation.end is None:
        assert deadline is None
        reached_goal = len(federation.acknowledged) >= (goal or wanted) > 0 and not secure
        assert not reached_goal
        assert len(federation.fates) < size
    if federation.end == "freeze":
        frozen = {report.position for report in federation.acknowledged}
        assert set(machine.survivors) <= frozen, "whom the schedule counts is in"
        reported = {position for position, fate in federation.fates.items() if fate == "reported"}
        assert frozen == reported, "whoever was acknowledged is in, and nobody else"


@settings(max_examples=200, deadline=None)
@given(st.permutations(range(5)), st.lists(st.integers(0, 5), min_size=5, max_size=5), st.integers(0, 8))
def test_the_order_of_rows_does_not_matter(order, times, now):
    plan = planned(schedule={"kind": "sync", "report_goal": 3})
    round_ = opened(6, deadline=5.0)
    reports = [Report(round_.id, f"c{i}", i, "", 1, "", float(times[i])) for i in range(5)]
    assigned = [Assigned(round_.id, f"c{i}", i, i, "reported" if i < 5 else "declined") for i in range(6)]
    expected = move(plan, round_, assigned, reports, now=float(now))
    assert move(plan, round_, assigned[::-1], [reports[i] for i in order], now=float(now)) == expected


def test_a_report_at_the_deadline_counts_and_the_round_is_frozen_after_it():
    round_ = opened(2, deadline=10.0)
    report = Report(round_.id, "c0", 0, "", 1, "", 10.0)
    assigned = [Assigned(round_.id, "c0", 0, 0, "reported"), Assigned(round_.id, "c1", 1, 1)]
    assert move(planned(), replace(round_, state="collecting"), assigned, [report], now=10.0) == "wait"
    assert move(planned(), round_, assigned, [report], now=10.1) == "freeze"
    assert move(planned(), round_, assigned, [], now=10.1) == "abandon"


def test_that_a_round_only_waits_is_told_by_how_many_answered():
    plan, round_ = planned(), opened(3, deadline=10.0, state="collecting")
    assert waits(plan, round_, {None: 2, "reported": 1}, now=9.0)
    assert waits(plan, replace(round_, state="opening"), {None: 3}, now=9.0)
    assert not waits(plan, replace(round_, state="opening"), {None: 2, "reported": 1}, now=9.0)
    assert not waits(plan, round_, {None: 2, "reported": 1}, now=10.0)
    assert not waits(plan, round_, {"reported": 2, "declined": 1}, now=9.0)
    assert not waits(plan, opened(3, picked=1, state="collecting"), {None: 2, "reported": 1}, now=9.0)
    assert not waits(plan, replace(round_, state="aggregating"), {None: 3}, now=9.0)


def test_a_frozen_round_is_closed_whatever_the_time():
    round_ = opened(2, deadline=10.0, state="aggregating")
    for now in (0.0, 100.0):
        assert move(planned(), round_, [], [], now=now) == "close"


def test_a_round_whose_whole_cohort_declines_or_is_refused_is_given_up_at_once():
    round_ = opened(2)
    assigned = [Assigned(round_.id, "c0", 0, 0, "declined"), Assigned(round_.id, "c1", 1, 1, "refused")]
    assert move(planned(), round_, assigned, [], now=0.0) == "abandon"


def test_a_round_in_which_nobody_was_picked_is_frozen_at_once_unless_it_has_a_goal():
    assert move(planned(), opened(0), [], [], now=0.0) == "freeze"
    assert move(planned(schedule={"kind": "sync", "report_goal": 2}), opened(0), [], [], now=0.0) == "abandon"
    assert move(planned(schedule={"kind": "sync", "minimum_reports": 1}), opened(0), [], [], now=0.0) == "abandon"
    assert move(planned(), opened(0, kind="evaluation"), [], [], now=0.0) == "abandon"


def test_statistics_and_evaluations_wait_for_everybody_until_their_deadline():
    plan = planned(schedule={"kind": "sync", "report_goal": 1})
    for kind in ("statistics", "evaluation"):
        round_ = opened(3, kind=kind, deadline=10.0, state="collecting")
        reports = [Report(round_.id, f"c{i}", i, "", 1, "", 1.0) for i in range(2)]
        assigned = [Assigned(round_.id, f"c{i}", i, i, "reported" if i < 2 else None) for i in range(3)]
        assert goal_of(plan, round_) == (3, 1)
        assert not lifecycle.at_goal(plan, round_)
        assert move(plan, round_, assigned, reports, now=9.0) == "wait"
        assert move(plan, round_, assigned, reports, now=11.0) == "freeze"


def test_who_is_picked_on_top_is_not_waited_for():
    plan = planned(schedule={"kind": "sync", "over_selection": 0.5}, cohort={"kind": "uniform", "size": 4})
    round_ = opened(6, picked=4, state="collecting")
    assert goal_of(plan, round_) == (4, 1)
    reports = [Report(round_.id, f"c{i}", i, "", 1, "", float(i)) for i in range(4)]
    assigned = [Assigned(round_.id, f"c{i}", i, i, "reported" if i < 4 else None) for i in range(6)]
    assert move(plan, round_, assigned, reports[:3], now=9.0) == "wait"
    assert move(plan, round_, assigned, reports, now=9.0) == "freeze"
    assert move(secured(plan), round_, assigned, reports, now=9.0) == "wait"


# Runs


def walk(plan, values=None):
    """Return the rounds of a run as (kind, round, everyone), with the values of the watched metric by round."""
    run, steps = RUN, []
    while (coming := upcoming(plan, run)) is not None:
        steps.append((coming.kind, coming.round, coming.everyone))
        assert upcoming(plan, run) == coming, "a round that is given up is the next again"
        notes = dict(run.notes)
        if coming.kind == "statistics":
            notes["statistics"] = True
        elif coming.kind == "evaluation":
            notes["evaluated"] = {"round": coming.round, "everyone": coming.everyone}
            notes["watched"] = [*notes.get("watched", []), (values or {}).get(coming.round)]
            reason = stopping_reason(plan.stopping, notes["watched"], higher_is_better=True)
            if reason is not None:
                notes["stopping"] = reason
        run = replace(run, notes=notes, round=run.round + (coming.kind == "training"))
        assert len(steps) < 1000
    return steps


def engine(plan, values=None):
    """Return the same as the simulation's engine goes: look, then train and look until it stops."""
    steps, watched = [], []
    if plan.features is not None and plan.features.scaling == "federated":
        steps.append(("statistics", 0, True))

    def look(number):
        stopped = number == plan.rounds
        if stopped or number % plan.evaluation.every == 0:
            everyone = stopped or plan.evaluation.federated_clients is None
            watched.append((values or {}).get(number))
            reason = stopping_reason(plan.stopping, watched, higher_is_better=True)
            if plan.evaluation.federated:
                steps.append(("evaluation", number, everyone))
                if reason is not None and not everyone:
                    steps.append(("evaluation", number, True))
            stopped = stopped or reason is not None
        return stopped

    number = 0
    stopped = look(0)
    while not stopped:
        number += 1
        steps.append(("training", number, False))
        stopped = look(number)
    return steps


FEATURES = {
    "columns": [{"name": "age", "kind": "number", "low": 0.0, "high": 100.0}],
    "label": "target",
}


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 7), st.integers(1, 4), st.none() | st.integers(1, 3), st.booleans(),
    st.none() | st.integers(1, 2), st.none() | st.just(0.9),
    st.lists(st.sampled_from([None, 0.5, 0.7, 0.95]), max_size=8),
)  # fmt: skip
def test_a_run_walks_as_the_simulation_does(rounds, every, some, scaled, patience, target, values):
    watched = {"patience": patience, "target": target}
    stopping = {name: value for name, value in watched.items() if value is not None}
    plan = planned(
        rounds=rounds,
        evaluation={"every": every, **({} if some is None else {"federated_clients": some})},
        **({"features": FEATURES} if scaled else {}),
        **({"stopping": {"metric": "federated.auc", **stopping}} if stopping else {}),
    )
    known = dict(enumerate(values))
    assert walk(plan, known) == engine(plan, known)


def test_a_run_without_federated_evaluation_only_trains():
    plan = planned(rounds=3, evaluation={"federated": False})
    assert walk(plan) == [("training", 1, False), ("training", 2, False), ("training", 3, False)]


def test_statistics_come_first_and_declared_scaling_has_none():
    assert upcoming(planned(features=FEATURES), RUN) == Upcoming("statistics", 0, everyone=True)
    assert upcoming(planned(features={**FEATURES, "scaling": "none"}), RUN) == Upcoming("evaluation", 0, everyone=True)


@pytest.mark.parametrize("some", [None, 2])
def test_a_run_walks_as_a_real_simulation_did(some, tmp_path):
    plan = planned(
        rounds=6,
        evaluation={"every": 2, "metrics": ["auc"], **({} if some is None else {"federated_clients": some})},
        stopping={"metric": "federated.auc", "patience": 1},
    )
    told = []
    hansa.run(plan, out=tmp_path / "run", callbacks=[told.append])
    names = {"round": "training", "evaluation": "evaluation"}
    done = [(names[event["event"]], event["round"]) for event in told if event["event"] in names]
    values = {event["round"]: event["federated"]["auc"]["overall"] for event in told if event["event"] == "evaluation"}
    walked = [step[:2] for step in walk(plan, values)]
    assert [step for step, _ in itertools.groupby(walked)] == done
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if line["event"] == "evaluation"] == sorted(values)
