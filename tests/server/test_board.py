"""The board: who is asked what, who waits, and who called."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hansa.server.board import Board, Posted
from hansa.server.contexts import RunContext
from hansa.store.records import Assigned, Job, Round, RoundKey, Run


def key_of(run="r", number=1, attempt=1):
    return RoundKey(run, "training", number, attempt)


def posted(key, *, priority=0, population="p", goal=0, model="m" * 64, descriptor="d" * 64):
    round_ = Round(key, "opening", 0, model, 3, 3, 0.0, None, b"")
    run = Run(key.run, "t", "j", population, "running", 0, 0, model, None, {}, priority, 0.0)
    job = Job("j", "t", population, "job", {}, "", descriptor, model, "", priority, "me", 0.0)
    context = RunContext(run, job, None, None, None, (), None, 0, {})
    return Posted(round_, context, goal)


def cohort(key, *clients, **fates):
    return [Assigned(key, client, n, n, fates.get(client)) for n, client in enumerate(clients)]


def asked(board, client):
    found = board.assignment(client)
    return None if found is None else found[0].round.id


def test_a_client_is_asked_what_it_is_assigned_until_it_answers():
    board, key = Board(), key_of()
    board.post(posted(key), cohort(key, "a", "b"))
    shown, assigned = board.assignment("a")
    assert (shown.round.id, assigned.client, assigned.position) == (key, "a", 0)
    assert asked(board, "b") == key
    assert asked(board, "c") is None
    board.answered(key, "a", reported=True)
    assert asked(board, "a") is None
    assert asked(board, "b") == key
    board.answered(key, "a", reported=True)
    assert board.rounds[key].reported == 1, "who answers again is not counted again"


def test_the_coordinator_is_called_for_the_goal_and_whenever_updates_may_go_into_a_sum():
    board, key = Board(), key_of()
    board.post(replace(posted(key, goal=5), fold_every=2), cohort(key, *"abcdefg"))
    rung = []
    for client in "abcde":
        board.answered(key, client, reported=client != "c")
        rung.append(board.changed.is_set())
        board.changed.clear()
    assert rung == [False, True, False, False, True], "c declined"
    board.answered(key, "f", reported=True)
    assert board.changed.is_set(), "the goal"


def test_who_answered_before_the_replica_started_is_not_asked():
    board, key = Board(), key_of()
    board.post(posted(key), cohort(key, "a", "b", "c", a="reported", b="declined"), reported=1)
    assert [asked(board, client) for client in "abc"] == [None, None, key]


def test_the_most_urgent_run_comes_first_and_equals_in_the_order_of_posting():
    board = Board()
    for run, priority in (("low", 0), ("high", 5), ("also-low", 0), ("also-high", 5)):
        board.post(posted(key_of(run), priority=priority), cohort(key_of(run), "a"))
    order = []
    while (key := asked(board, "a")) is not None:
        order.append(key.run)
        board.answered(key, "a", reported=True)
    assert order == ["high", "also-high", "low", "also-low"]
    assert not board.by_client


def test_a_round_that_is_posted_again_keeps_what_is_known_of_it():
    board, key = Board(), key_of()
    board.post(posted(key), cohort(key, "a", "b"))
    board.answered(key, "a", reported=True)
    board.post(posted(key), cohort(key, "a", "b"))
    assert asked(board, "a") is None
    assert board.rounds[key].reported == 1
    board.post(posted(key), cohort(key, "b", b="reported"))
    assert asked(board, "b") == key


def test_a_round_that_is_taken_down_asks_nobody_and_leaves_nothing():
    board, first, second = Board(), key_of(number=1), key_of(number=2)
    board.post(posted(first), cohort(first, "a", "b"))
    board.post(posted(second), cohort(second, "b"))
    board.take_down(first)
    board.take_down(first)
    assert [asked(board, client) for client in "ab"] == [None, second]
    board.answered(first, "b", reported=True)
    board.take_down(second)
    assert (board.rounds, board.by_client, board.waiting) == ({}, {}, {})


def test_it_rings_when_all_answered_or_the_goal_is_reached():
    for goal, needed in ((0, 3), (2, 2), (3, 3)):
        board, key = Board(), key_of()
        board.post(posted(key, goal=goal), cohort(key, "a", "b", "c"))
        rings = []
        for client in "abc":
            board.answered(key, client, reported=True)
            rings.append(board.changed.is_set())
        assert rings == [count >= needed for count in (1, 2, 3)]


def test_declines_count_as_answers_and_not_towards_the_goal():
    board, key = Board(), key_of()
    board.post(posted(key, goal=1), cohort(key, "a", "b"))
    board.answered(key, "a", reported=False)
    assert not board.changed.is_set()
    board.answered(key, "b", reported=False)
    assert board.changed.is_set()


def test_reports_from_before_count_towards_the_goal():
    board, key = Board(), key_of()
    board.post(posted(key, goal=2), cohort(key, "a", "b", "c", a="reported"), reported=1)
    board.answered(key, "b", reported=True)
    assert board.changed.is_set()


def test_only_what_open_rounds_of_the_population_need_can_be_fetched():
    board, key = Board(), key_of()
    board.post(posted(key, population="p"), cohort(key, "a"))
    assert board.fetchable("p", "m" * 64).round.id == key
    assert board.fetchable("p", "d" * 64).round.id == key
    assert board.fetchable("q", "m" * 64) is None
    assert board.fetchable("p", "x" * 64) is None
    board.take_down(key)
    assert board.fetchable("p", "m" * 64) is None


def test_what_is_open_no_more_is_stale():
    board = Board()
    for number in range(4):
        board.post(posted(key_of(number=number)), cohort(key_of(number=number), "a"))
    assert board.stale([key_of(number=number) for number in (1, 3, 9)]) == [key_of(number=0), key_of(number=2)]


# Waiting


async def waited(board, client, seconds=5.0):
    """Return how long a client waits."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await board.wait(client, seconds)
    return loop.time() - began


async def after(seconds, call, *arguments, **options):
    await asyncio.sleep(seconds)
    call(*arguments, **options)


def test_a_waiting_client_is_woken_by_an_assignment_and_others_are_not():
    async def check():
        board, key = Board(), key_of()
        woken, twice, other, _ = await asyncio.gather(
            waited(board, "a"), waited(board, "a"), waited(board, "b", 0.2),
            after(0.01, board.post, posted(key), cohort(key, "a", "c")),
        )  # fmt: skip
        assert woken < 1
        assert twice < 1
        assert other >= 0.19
        assert not board.waiting

    asyncio.run(check())


def test_a_client_that_is_asked_no_more_is_woken():
    async def check():
        board, key = Board(), key_of()
        board.post(posted(key), cohort(key, "a", "b"))
        board.answered(key, "b", reported=True)
        lost, reported, _ = await asyncio.gather(
            waited(board, "a"), waited(board, "b", 0.1), after(0.01, board.take_down, key)
        )
        assert lost < 1
        assert reported >= 0.09, "who reported waits for the next assignment"

    asyncio.run(check())


def test_waiting_ends_with_its_time_or_its_connection():
    async def check():
        board = Board()
        assert await waited(board, "a", 0.0) < 0.1
        waiting = asyncio.create_task(board.wait("a", 100.0))
        await asyncio.sleep(0)
        assert board.waiting
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not board.waiting

    asyncio.run(check())


# Callers


# Whatever the order


CLIENTS = st.sampled_from("abcd")
RUNS = st.sampled_from(["r", "s", "t"])
PRIORITY = {"r": 0, "s": 5, "t": 0}


@dataclass
class Known:
    """What the board should say of a round."""

    open: list[str]
    order: dict[str, int]
    """Client -> with which post it came."""
    reported: int = 0


class AnyOrder(RuleBasedStateMachine):
    """Posts, answers and take-downs in any order, beside the simplest board there is."""

    def __init__(self):
        super().__init__()
        self.board = Board()
        self.known = {}
        self.posts = 0

    @rule(run=RUNS, clients=st.lists(CLIENTS, unique=True), goal=st.integers(0, 3))
    def post(self, run, clients, goal):
        key = key_of(run)
        self.board.post(posted(key, priority=PRIORITY[run], goal=goal), cohort(key, *clients))
        self.posts += 1
        known = self.known.setdefault(key, Known([], {}))
        for client in clients:
            if client not in known.order:
                known.order[client] = self.posts
                known.open.append(client)

    @rule(run=RUNS)
    def take_down(self, run):
        self.board.take_down(key_of(run))
        self.known.pop(key_of(run), None)

    @rule(run=RUNS, client=CLIENTS, reported=st.booleans())
    def answer(self, run, client, reported):
        self.board.answered(key_of(run), client, reported=reported)
        known = self.known.get(key_of(run))
        if known is not None and client in known.open:
            known.open.remove(client)
            known.reported += reported

    @invariant()
    def clients_are_asked_what_they_should_be(self):
        for client in "abcd":
            mine = [(-PRIORITY[key.run], of.order[client], key) for key, of in self.known.items() if client in of.open]
            expected = min(mine, key=lambda each: each[:2])[2] if mine else None
            assert asked(self.board, client) == expected

    @invariant()
    def nothing_is_left_over(self):
        assert self.board.rounds.keys() == self.known.keys()
        assert {key: of.reported for key, of in self.board.rounds.items()} == {
            key: of.reported for key, of in self.known.items()
        }
        assert set(self.board.by_client) == {client for of in self.known.values() for client in of.open}


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyOrder = AnyOrder.TestCase
