"""The audit of a tortured ledger finds what is wrong, one thing at a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hansa.testing.ledger_audit import Accounts, ledger_problems


def attempt(number, which, state):
    return SimpleNamespace(id=SimpleNamespace(round=number, attempt=which), state=state)


ROUNDS = (attempt(1, 1, "abandoned"), attempt(1, 2, "closed"), attempt(2, 1, "closed"))
BOOKS = SimpleNamespace(
    run=SimpleNamespace(id="run"), rounds=ROUNDS, closed=lambda _: [each for each in ROUNDS if each.state == "closed"]
)
RELEASED = {"run": {1: "aa", 2: "bb"}}


def row(kind, number, which, **more):
    return {"kind": kind, "key": {"run": "run", "round": number, "attempt": which, "kind": "training"}, **more}


SOUND = [
    row("reserve", 1, 1), row("void", 1, 1), row("reserve", 1, 2), row("commit", 1, 2, released="aa"),
    row("reserve", 2, 1), row("commit", 2, 1, released="bb"), {"kind": "limit"},
]  # fmt: skip
WHOLE = [
    row("reserve", 0, 0), row("commit", 0, 0), row("row", 1, 2, released="aa", noise_row=0),
    row("row", 2, 1, released="bb", noise_row=1),
]  # fmt: skip


def found(rows, released=None):
    return list(ledger_problems(Accounts(tuple(rows), released or RELEASED, ()), BOOKS))


@pytest.mark.parametrize("rows", [SOUND, WHOLE], ids=["rounds", "whole"])
def test_books_that_stand_have_no_problem(rows):
    assert found(rows) == []


@pytest.mark.parametrize("rows", [SOUND, WHOLE], ids=["rounds", "whole"])
def test_any_row_that_is_missing_or_there_twice_is_found(rows):
    for number, each in enumerate(rows):
        if each["kind"] != "limit":
            assert found(rows[:number] + rows[number + 1 :])
            assert found([*rows, each])


@pytest.mark.parametrize("rows", [SOUND, WHOLE], ids=["rounds", "whole"])
def test_a_model_that_was_released_uncharged_or_is_another_is_found(rows):
    assert found(rows, {"run": {1: "aa", 2: "cc"}})
    assert found(rows, {"run": {1: "aa", 2: "bb", 3: "cc"}})
    assert found(rows, {"run": {1: "aa"}})


def test_the_noise_of_another_row_is_found():
    assert found([*WHOLE[:-1], WHOLE[-1] | {"noise_row": 2}])


def test_a_charge_for_what_never_opened_is_found():
    assert found([*SOUND, row("reserve", 3, 1)])
