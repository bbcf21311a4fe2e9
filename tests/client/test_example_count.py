"""A client counts its trainings of a plan that protects single examples, and declines what was not accounted."""

from __future__ import annotations

import pytest

from hansa.client.example_count import TRAININGS, count_training
from hansa.client.records import Id
from hansa.client.state import StateFolder
from hansa.core.errors import RefusedError

PLAN = {"trainer": {"example_privacy": {"max_participations": 2}}}


def test_it_declines_beyond_the_count_also_after_a_restart_and_for_repeated_rounds(tmp_path):
    state = StateFolder(tmp_path / "a")
    count_training(state, Id("run", "training", 1, 1), PLAN)
    count_training(state, Id("run", "training", 1, 2), PLAN)
    state.close()
    state = StateFolder(tmp_path / "a")
    with pytest.raises(RefusedError, match="at most 2 times"):
        count_training(state, Id("run", "training", 2, 1), PLAN)
    count_training(state, Id("other", "training", 1, 1), PLAN)
    assert state.read_json(TRAININGS) == {"run": 2, "other": 1}
    state.close()


def test_nothing_but_training_is_answered(tmp_path):
    state = StateFolder(tmp_path / "a")
    for kind in ("evaluation", "statistics"):
        with pytest.raises(RefusedError, match=f"asked for {kind}"):
            count_training(state, Id("run", kind, 1, 1), PLAN)
    assert state.read_json(TRAININGS) is None
    state.close()


def test_other_plans_are_not_counted(tmp_path):
    state = StateFolder(tmp_path / "a")
    for kind in ("training", "evaluation"):
        count_training(state, Id("run", kind, 1, 1), {"trainer": {"kind": "linear"}})
    assert state.read_json(TRAININGS) is None
    state.close()


def test_a_plan_that_does_not_say_how_often_is_declined(tmp_path):
    state = StateFolder(tmp_path / "a")
    with pytest.raises(RefusedError, match="at most 0 times"):
        count_training(state, Id("run", "training", 1, 1), {"trainer": {"example_privacy": {}}})
    state.close()
