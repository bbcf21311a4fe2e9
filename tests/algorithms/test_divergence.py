from __future__ import annotations

import numpy as np
import pytest

from hansa import Plan
from hansa.algorithms import divergence
from hansa.core.errors import DivergenceError
from hansa.core.nouns import RoundReport, Signature
from hansa.testing import MemoryClients, Rehearsal, StumpTrainer, quadratic_clients, quadratic_signature


def plan(**sections):
    trainer = {
        "kind": "hansa.testing:QuadraticTrainer",
        "steps": 1,
        "optimizer": {"kind": "sgd", "learning_rate": 0.5},
    }
    return Plan(**{"name": "x", "rounds": 1, "model": {"factory": "a:b"}, "trainer": trainer} | sections)


def report(update=1.0, model=1.0, non_finite=0, count=10):
    return RoundReport(4, count, 0.1, update, model, non_finite)


def said(found, norms=(), **sections):
    with pytest.raises(DivergenceError) as error:
        divergence.check(plan(**sections), found, list(norms))
    return str(error.value)


def test_updates_that_are_not_finite_are_told_with_the_round_and_the_clients_share():
    message = said(report(non_finite=3))
    assert "In round 4, 3 of 10 clients (30%) returned an update that is not finite" in message
    assert "The model of round 3 is kept" in message


def test_few_clients_point_to_their_data_and_many_to_the_step_size():
    assert "extreme values in the data" in said(report(non_finite=1))
    assert "extreme values" not in said(report(non_finite=10))
    assert "learning_rate = 0.5" in said(report(non_finite=10))


@pytest.mark.parametrize("bad", [{"update": np.inf}, {"model": np.nan}, {"update": np.nan}])
def test_a_model_that_is_not_finite_stops_the_run(bad):
    assert "combined model is not finite" in said(report(**bad))


def test_an_update_beyond_the_factor_of_the_first_three_is_an_explosion():
    norms = [1.0, 3.0, 2.0]
    assert divergence.check(plan(), report(update=2999.0), norms) == norms
    assert "times the largest of the first 3" in said(report(update=3001.0), norms)
    strict = {"stopping": {"explosion_factor": 2.0}}
    assert "of 10 clients is 2.33 times" in said(report(update=7.0), norms, **strict)


def test_a_run_cannot_creep_to_an_explosion():
    """Ten times larger every round: the measure is how it began, not the round before."""

    def creep():
        norms = []
        for number in range(8):
            norms = divergence.check(plan(), report(update=10.0**number), norms)

    with pytest.raises(DivergenceError):
        creep()


def test_the_first_rounds_and_updates_of_zero_are_no_measure():
    norms = []
    for update in (1e-9, 0.0, 1e9, 0.0, 1.0):
        norms = divergence.check(plan(), report(update=update), norms)
    assert norms == [1e-9, 1e9, 1.0]
    assert divergence.check(plan(), report(update=0.0), norms) == norms


def test_the_norms_that_are_given_are_left_alone():
    norms = [1.0]
    assert divergence.check(plan(), report(update=2.0), norms) == [1.0, 2.0]
    assert norms == [1.0]


def test_a_clip_is_advised_where_there_is_none_and_the_server_optimizer_where_it_is_no_plain_mean():
    assert "clip" in said(report(non_finite=1))
    assert "add {" not in said(report(non_finite=1), transforms=[{"kind": "clip", "clip_norm": 1.0}])
    assert "server_optimizer.learning_rate = 0.7" in said(
        report(non_finite=1), server_optimizer={"kind": "adam", "learning_rate": 0.7}
    )


def test_a_trainer_without_an_optimizer_gets_a_diagnosis_too():
    message = said(report(non_finite=1), trainer=StumpTrainer())
    assert "trainer.optimizer" not in message


def test_a_rate_that_is_too_large_is_caught_by_the_check_within_a_run():
    settings = {
        "trainer": {
            "kind": "hansa.testing:QuadraticTrainer",
            "steps": 20,
            "optimizer": {"kind": "sgd", "learning_rate": 50.0},
        }
    }
    rehearsal = Rehearsal(
        plan(**settings), quadratic_clients([np.eye(2)] * 4, [np.ones(2)] * 4), quadratic_signature(2)
    )

    def train():
        norms = []
        for _ in range(20):
            rehearsal.play(1)
            norms = divergence.check(rehearsal.plan, rehearsal.reports[-1], norms)

    with pytest.raises(DivergenceError), np.errstate(all="ignore"):
        train()


def test_an_update_that_is_not_finite_is_emptied_counted_and_weighs_nothing():
    x = [np.array([[1.0], [-1.0]], dtype=np.float32), np.array([[1.0]], dtype=np.float32)]
    y = [np.array([2.0, 4.0]), np.array([np.nan])]
    trainer = {"trainer": StumpTrainer(), "transforms": [{"kind": "weigh-by-size"}]}
    rehearsal = Rehearsal(plan(**trainer), MemoryClients(x, y), Signature((1,), 0))
    np.testing.assert_allclose(rehearsal.play(1)[0], [4.0, 2.0])
    assert rehearsal.reports[0].non_finite == 1
    assert rehearsal.reports[0].count == 2
