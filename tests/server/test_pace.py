"""Pace steering: within bounds, spread, and as many calls a second as the server takes."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.server.pace import Pace

PACE = Pace(shortest=1.0, longest=3600.0, calls_per_second=500.0)


@given(
    st.integers(0, 10**9), st.integers(0, 10**6), st.none() | st.floats(0, 10**6),
    st.floats(0.01, 100), st.floats(1, 1000), st.floats(0.1, 10**6),
)  # fmt: skip
def test_a_client_is_never_told_to_come_sooner_or_later_than_the_bounds(
    population, needed, within, shortest, times, rate
):
    pace = Pace(shortest, shortest * times, rate)
    assert shortest <= pace.seconds(population, needed=needed, within=within) <= shortest * times


def test_bounds_may_be_one_number():
    assert Pace(5.0, 5.0, 500.0).seconds(10**6) == 5.0


def test_times_are_spread_by_a_quarter_to_both_sides():
    times = sorted(PACE.seconds(10_000) for _ in range(4000))
    assert 15 <= times[0] < 15.2
    assert 24.8 < times[-1] <= 25
    assert abs(sum(times) / len(times) - 20) < 0.2


def test_few_clients_come_soon_and_not_all_at_once():
    times = {PACE.seconds(4) for _ in range(100)}
    assert len(times) == 100
    assert all(1 <= time <= 1.25 for time in times)


def test_more_clients_come_later_until_the_longest_wait():
    means = [sum(PACE.seconds(size) for _ in range(200)) / 200 for size in (100, 10_000, 100_000, 10**6, 10**8)]
    assert means == sorted(means)
    assert 2700 <= means[-1] <= 3600


def arrivals(population, seconds, *, together, share=1):
    """Return calls in each second, where so many clients call, and come back when they are told."""
    random.seed(population)
    spread = population / PACE.calls_per_second
    calls = [0.0 if together else random.random() * spread for _ in range(population // share)]  # noqa: S311 - a test
    heapq.heapify(calls)
    counts = [0] * seconds
    while calls[0] < seconds:
        counts[int(calls[0])] += share
        heapq.heapreplace(calls, calls[0] + PACE.seconds(population))
    return counts


@pytest.mark.parametrize(("population", "seconds", "share"), [(10_000, 400, 1), (1_000_000, 8000, 20)])
def test_so_many_clients_make_as_many_calls_a_second_as_the_server_takes(population, seconds, share):
    counts = arrivals(population, seconds, together=False, share=share)
    later = counts[seconds // 2 :]
    assert abs(sum(later) / len(later) - 500) < 25
    minutes = [sum(later[start : start + 20]) / 20 for start in range(0, len(later) - 20, 20)]
    assert max(minutes) < 750


def test_clients_that_all_call_at_once_are_soon_spread():
    counts = arrivals(10_000, 400, together=True)
    assert counts[0] == 10_000
    assert max(counts[1:]) < 1500, "the jitter alone makes a tenth of it"
    assert max(counts[300:]) < 700


def test_a_round_that_needs_callers_soon_is_served_sooner_but_never_floods_the_server():
    assert max(PACE.seconds(10_000, needed=100, within=12.0) for _ in range(100)) <= 6 * 1.25
    assert min(PACE.seconds(1_000_000, needed=100, within=12.0) for _ in range(100)) >= 500 * 0.75
    assert PACE.seconds(10, needed=5, within=600.0) <= 1.25, "few clients are not slowed down by it"
