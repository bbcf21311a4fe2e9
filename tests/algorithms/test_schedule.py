"""Who is counted, once, and when: the machines of rounds and buffers, under any order of events."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.algorithms.samplers import Full, MinSeparation, Poisson, Uniform
from hansa.algorithms.schedule import Buffer, Buffered, Round, Sync, picking

TIMES = st.integers(0, 6).map(float)
"""Few distinct times, so that many events happen at one moment."""


def opened(count, *, at_goal=True, size=None, **settings):
    return Round.opened(Sync(**settings), range(count), at=0.0, size=count if size is None else size, at_goal=at_goal)


def play(open_round, events):
    """Tell a round events (time, client, lost), and that nothing more will come; return the verdicts."""
    verdicts = {}
    for at, client, lost in events:
        if lost:
            open_round.lose(client, at)
        else:
            verdicts[client] = open_round.report(client, at)
    open_round.pass_time(math.inf)
    return verdicts


@st.composite
def rounds(draw):
    count = draw(st.integers(1, 7))
    events = [(draw(TIMES), client, draw(st.booleans())) for client in range(count)]
    settings_ = {
        "round_deadline": draw(st.none() | st.integers(1, 6).map(float)),
        "report_goal": draw(st.none() | st.integers(1, count)),
        "minimum_reports": draw(st.none() | st.integers(1, count)),
    }
    return count, events, settings_, draw(st.integers(1, count)), draw(st.booleans())


@given(rounds(), st.randoms(use_true_random=False))
def test_a_round_freezes_once_at_the_first_of_all_answered_deadline_and_goal(case, random):
    count, events, settings_, size, at_goal = case
    ends = [max(at for at, _, _ in events), settings_["round_deadline"] or math.inf]
    reports = sorted(at for at, _, lost in events if not lost)
    goal = settings_["report_goal"] or size
    if at_goal and len(reports) >= goal:
        ends.append(reports[goal - 1])
    end = min(ends)
    random.shuffle(events)
    events.sort(key=lambda event: event[0])  # stable: what happens at one moment stays in a random order
    played = opened(count, at_goal=at_goal, size=size, **settings_)
    verdicts = play(played, events)
    assert played.closed_at == end
    assert played.survivors == tuple(sorted(client for at, client, lost in events if not lost and at <= end))
    assert {client for client, verdict in verdicts.items() if verdict == "included"} == set(played.survivors)
    assert all(verdict in ("included", "late") for verdict in verdicts.values())
    assert sum(played.count(fate) for fate in ("included", "late", "lost")) == count
    needed = settings_["minimum_reports"] or settings_["report_goal"] or 0
    assert played.enough == (len(played.survivors) >= needed)


@given(rounds())
def test_nothing_is_counted_twice_and_nothing_after_the_freeze(case):
    count, events, settings_, size, at_goal = case
    played = opened(count, at_goal=at_goal, size=size, **settings_)
    play(played, sorted(events))
    frozen = played.closed_at, played.survivors
    for client in range(count + 1):
        verdict = played.report(client, 100.0)
        assert verdict == "unknown" if client == count else verdict in ("answered", "late")
        played.lose(client, 101.0)
    assert (played.closed_at, played.survivors) == frozen


def test_a_second_report_while_the_round_is_open_is_not_counted():
    played = opened(3)
    assert [played.report(1, 1.0), played.report(1, 2.0), played.report(7, 2.0)] == ["included", "answered", "unknown"]
    assert played.closed_at is None
    assert played.survivors == (1,)


def test_a_goal_does_not_close_a_round_whose_server_sees_only_a_sum():
    events = [(1.0, 0, False), (2.0, 1, False), (5.0, 2, False), (9.0, 3, False)]
    clear = opened(4, report_goal=2, round_deadline=6.0)
    hidden = opened(4, report_goal=2, round_deadline=6.0, at_goal=False)
    play(clear, events)
    play(hidden, events)
    assert (clear.survivors, clear.closed_at) == ((0, 1), 2.0)
    assert (hidden.survivors, hidden.closed_at) == ((0, 1, 2), 6.0)


@pytest.mark.parametrize(("minimum", "enough"), [(2, True), (3, False)])
@pytest.mark.parametrize("goal", [None, 4])
def test_a_minimum_closes_no_round_but_says_at_its_deadline_whether_it_counts(minimum, enough, goal):
    played = opened(5, report_goal=goal, minimum_reports=minimum, round_deadline=6.0)
    play(played, [(float(client), client, client > 1) for client in range(4)])
    assert (played.closed_at, played.survivors) == (6.0, (0, 1))
    assert played.enough == enough


def test_a_round_of_nobody_is_closed_as_it_opens():
    assert opened(0).closed_at == 0.0
    assert not opened(0, report_goal=1).enough


def test_over_selection_picks_a_fraction_more_and_no_goal_means_the_cohort_closes_it():
    assert picking(Sync(over_selection=0.3), Uniform(size=10)) == Uniform(size=13)
    assert picking(Sync(over_selection=0.1), MinSeparation(size=5, rounds=2)) == MinSeparation(size=6, rounds=2)
    assert picking(Sync(), Uniform(size=10)) == Uniform(size=10)
    assert picking(Sync(), Full()) == Full()
    played = opened(13, size=10, over_selection=0.3)
    play(played, [(float(client), client, False) for client in range(13)])
    assert played.survivors == tuple(range(10))
    assert played.count("late") == 3


def test_a_goal_that_no_cohort_reaches_is_a_problem():
    assert Sync(report_goal=11).problems(Uniform(size=10), 100)[0][0] == "report_goal"
    assert Sync(report_goal=11, over_selection=0.1).problems(Uniform(size=10), 100) == []
    assert Sync(report_goal=4).problems(Full(), 4) == []
    assert Sync().problems(Poisson(rate=0.5), 4) == []


def test_a_minimum_that_no_cohort_reaches_or_above_what_closes_a_round_is_a_problem():
    assert Sync(minimum_reports=11).problems(Uniform(size=10), 100)[0][0] == "minimum_reports"
    assert Sync(minimum_reports=11, over_selection=0.1).problems(Uniform(size=10), 100)[0][0] == "minimum_reports"
    assert Sync(minimum_reports=6, report_goal=5).problems(Uniform(size=10), 100)[0][0] == "minimum_reports"
    assert Sync(minimum_reports=5, report_goal=5).problems(Uniform(size=10), 100) == []
    assert Sync(minimum_reports=10, over_selection=0.1).problems(Uniform(size=10), 100) == []


# Buffers


@st.composite
def histories(draw):
    """Return a buffered schedule and a random history of starts, reports and losses, as choices."""
    schedule = Buffered(
        buffer_size=draw(st.integers(1, 4)),
        concurrency=draw(st.integers(1, 6)),
        max_staleness=draw(st.none() | st.integers(0, 3)),
        staleness_exponent=draw(st.sampled_from([0.0, 0.5, 1.0, 10.0])),
    )
    return schedule, draw(
        st.lists(st.tuples(st.sampled_from(["start", "report", "lose"]), st.integers(0, 7)), max_size=80)
    )


@given(histories())
def test_every_accepted_update_is_in_one_step_and_none_is_too_stale(case):
    schedule, history = case
    buffer = Buffer(schedule)
    sent, accepted, stepped = {}, [], []
    for what, client in history:
        if what == "start" and buffer.free and buffer.may_start(client):
            sent[client] = (buffer.version, buffer.start(client))
        elif what == "lose":
            buffer.lose(client)
            sent.pop(client, None)
        elif what == "report":
            expected = sent.pop(client, None)
            verdict = buffer.report(client)
            stale = expected is not None and buffer.version - expected[0] > (schedule.max_staleness or math.inf)
            stale |= expected is not None and schedule.max_staleness == 0 and buffer.version > expected[0]
            assert verdict == ("unknown" if expected is None else "too stale" if stale else "accepted")
            if verdict == "accepted":
                accepted.append((*expected, client))
        if buffer.full:
            before = buffer.version
            step = buffer.step()
            assert buffer.version == before + 1
            assert len(step) == schedule.buffer_size
            assert [*step] == sorted(step)
            assert len({each.client for each in step}) == len(step)
            for each in step:
                staleness = before - each.version
                assert 0 <= staleness <= (math.inf if schedule.max_staleness is None else schedule.max_staleness)
                assert each.weight == schedule.weight(staleness)
            stepped += [(each.version, each.start, each.client) for each in step]
        assert len(buffer.training) <= schedule.concurrency
        assert (
            all(version >= buffer.oldest for version, _ in buffer.training.values())
            or schedule.max_staleness is not None
        )
    waiting = [(each.version, each.start, each.client) for each in buffer.held.values()]
    assert sorted(stepped + waiting) == sorted(accepted)
    assert len({start for _, start, _ in accepted}) == len(accepted)


@given(st.permutations(range(5)))
def test_the_order_of_reports_within_a_buffer_does_not_matter(order):
    buffer = Buffer(Buffered(buffer_size=5, concurrency=5))
    for client in (3, 1, 4, 0, 2):
        buffer.start(client)
    for client in order:
        assert buffer.report(client) == "accepted"
    assert [each.client for each in buffer.step()] == [3, 1, 4, 0, 2]


@given(st.integers(0, 10**6), st.floats(0, 10))
def test_the_weight_of_staleness_is_above_zero_at_most_one_and_a_256th(staleness, exponent):
    weight = Buffered(buffer_size=1, concurrency=1, staleness_exponent=exponent).weight(staleness)
    assert 0 < weight <= 1
    assert weight * 256 == int(weight * 256)
    assert abs(weight - (1 + staleness) ** -exponent) <= 1 / 256


def test_staleness_is_weighed_by_the_inverse_root_unless_said_otherwise():
    schedule = Buffered(buffer_size=1, concurrency=1)
    assert [schedule.weight(staleness) for staleness in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3, abs=1 / 512)]


def test_a_full_buffer_takes_a_step_before_the_next_report():
    buffer = Buffer(Buffered(buffer_size=1, concurrency=2))
    for client in range(2):
        buffer.start(client)
    assert buffer.report(0) == "accepted"
    with pytest.raises(ValueError, match="full"):
        buffer.report(1)
    assert [each.client for each in buffer.step()] == [0]
    with pytest.raises(ValueError, match="when the buffer is full"):
        buffer.step()
    assert buffer.report(1) == "accepted"
    assert buffer.step()[0].weight == Buffered(buffer_size=1, concurrency=1).weight(1)


def test_a_client_that_trains_or_waits_in_the_buffer_is_not_started_again():
    buffer = Buffer(Buffered(buffer_size=2, concurrency=2))
    buffer.start(0)
    with pytest.raises(ValueError, match="when it is free"):
        buffer.start(0)
    buffer.report(0)
    assert not buffer.may_start(0)
    for client in (1, 2):
        buffer.start(client)
    with pytest.raises(ValueError, match="fewer train than may"):
        buffer.start(3)


def test_buffers_that_need_more_clients_than_there_are_are_problems():
    found = Buffered(buffer_size=5, concurrency=9).problems(Full(), 4)
    assert [key for key, _ in found] == ["concurrency", "buffer_size"]
    assert Buffered(buffer_size=4, concurrency=4).problems(Full(), 4) == []


def test_a_machine_that_is_told_the_same_events_again_is_in_the_same_state():
    def told():
        buffer = Buffer(Buffered(buffer_size=2, concurrency=3))
        for client in itertools.islice(itertools.cycle(range(5)), 40):
            if buffer.free and buffer.may_start(client):
                buffer.start(client)
            else:
                buffer.report(client)
            if buffer.full:
                buffer.step()
        return buffer

    assert told() == told()
