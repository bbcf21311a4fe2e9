"""The audit of a tortured authority finds a draw too many or too few."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from hansa.authority.book import Book, Drawn
from hansa.secagg.encoding import u32
from hansa.secagg.keys import digest
from hansa.testing.draw_audit import draw_problems


def attempt(number, which, state):
    return SimpleNamespace(id=SimpleNamespace(run="run", kind="training", round=number, attempt=which), state=state)


BOOKS = {"run": SimpleNamespace(rounds=(attempt(1, 1, "abandoned"), attempt(1, 2, "closed"), attempt(2, 1, "closed")))}


@pytest.fixture
def found(tmp_path):
    """Return what finds the problems of a book with draws for rounds of those numbers."""

    def look(*rounds):
        with contextlib.closing(Book(tmp_path)) as book:
            for task, number in enumerate(rounds):
                book.add(bytes([task]), Drawn(b"", b"", b""), digest("attempts", b"run/training", u32(number)), b"")
        return list(draw_problems(tmp_path, BOOKS))

    return look


@pytest.mark.parametrize("rounds", [(1, 2), (1, 1, 2)], ids=["given up before a draw", "given up after it"])
def test_a_book_of_a_draw_for_each_sum_has_no_problem(found, rounds):
    assert found(*rounds) == []


@pytest.mark.parametrize("rounds", [(1, 2, 2), (1, 1, 1, 2), (2,), (1,)])
def test_a_sum_of_two_draws_or_of_none_is_found(found, rounds):
    assert len(found(*rounds)) == 1


def test_a_draw_for_what_never_was_is_found(found):
    assert len(found(1, 2, 3)) == 1
