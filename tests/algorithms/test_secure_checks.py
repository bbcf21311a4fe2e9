"""Every refusal of a plan with secure sums: what it says, and that its advice, when followed, builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from hansa import Plan
from hansa.algorithms.aggregators import FixedMean, Mean, Median, TrimmedMean
from hansa.algorithms.compressors import Int8Rotation
from hansa.algorithms.hooks import ControlVariate
from hansa.algorithms.plan import plan_sha256, population_problems
from hansa.algorithms.samplers import Full, Poisson, Uniform
from hansa.algorithms.schedule import Buffered, Sync
from hansa.algorithms.server_optimizers import Sgd as ServerSgd
from hansa.algorithms.transforms import NormaliseBySteps, WeighBySize
from hansa.core.errors import PlanError
from hansa.core.sections import Evaluation, Model
from hansa.testing import FixedPoint, QuadraticTrainer, RingNoise
from hansa.training.optimizers import Sgd
from hansa.wire.plans import read_plan, write_plan

BEACON = {"registrar": "authority", "beacon": "authority"}
TWO = [{"name": "a", "url": "https://a", "operator": "A"}, {"name": "b", "url": "https://b", "operator": "B"}]
ONE = [{**each, "operator": "A"} for each in TWO]


def plan(*, hooks=(), **sections):
    """Return a plan of ten clients a round, with secure sums of the given settings beside those that it needs."""
    trainer = QuadraticTrainer(optimizer=Sgd(learning_rate=0.1), steps=1, hooks=hooks)
    given = {"name": "x", "rounds": 1, "model": Model(factory="any:thing"), "trainer": trainer}
    return Plan(**given | {"cohort": Uniform(size=10)} | sections)


def problems(secure=None, **sections):
    """Return the problems of a plan: key path -> sentences."""
    try:
        plan(secure_aggregation=secure or {}, **sections)
    except PlanError as error:
        return {problem.path: problem.message for problem in error.problems}
    return {}


def test_the_defaults_build_for_a_cohort_of_a_fixed_size():
    assert problems() == {}


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(fraction=0.2)])
def test_a_rule_over_single_updates_is_refused(rule):
    found = problems(aggregator=rule)
    assert "needs every update in the clear, which a secure sum hides" in found["aggregator"]
    assert "use mean or fixed-mean, or remove [secure_aggregation]" in found["aggregator"]
    assert problems(aggregator=Mean()) == problems(aggregator=FixedMean(divisor=10)) == {}


def test_a_non_linear_transform_is_refused():
    found = problems(transforms=(WeighBySize(maximum=9), Int8Rotation()))
    assert "a secure sum shows the server no row; remove it" in found["transforms.1"]
    assert problems(transforms=(NormaliseBySteps(), WeighBySize(maximum=9))) == {}


@pytest.mark.parametrize("own", [FixedPoint(), RingNoise()])
def test_integers_written_by_hand_beside_the_section_are_refused(own):
    assert "which [secure_aggregation] makes after the last transform" in problems(transforms=(own,))["transforms.0"]


@pytest.mark.parametrize("secure", [{}, {"protocol": "oneshot-seeds", "decryptors": TWO}])
def test_a_buffer_of_several_model_versions_is_refused(secure):
    buffered = Buffered(buffer_size=2, concurrency=4)
    found = problems(secure, schedule=buffered, cohort=Full())
    assert list(found) == ["schedule"]
    assert 'one model version, whose updates the server cannot weigh one by one; use "sync"' in found["schedule"]


@pytest.mark.parametrize(
    ("secure", "sentence", "mended"),
    [
        ({"protocol": "oneshot-seeds"}, "0 operators are named", {"decryptors": TWO}),
        ({"protocol": "oneshot-seeds", "decryptors": ONE}, "1 operators are named", {"decryptors": TWO}),
        ({"decryptors": TWO}, "secagg-full has no decryptors", {"protocol": "oneshot-seeds"}),
        ({"protocol": "secagg-plus", "server": "malicious"}, "or name a beacon", BEACON),
        ({"protocol": "secagg-plus", "server": "malicious"}, "to its advantage", {"protocol": "secagg-full"}),
        (BEACON, "a beacon serves nothing", {"protocol": "secagg-plus"}),
        ({"protocol": "secagg-plus", "beacon": "authority"}, "asks no authority, which could draw", BEACON),
        ({"server": "malicious", "registrar": "server"}, "can invent all other clients", {"registrar": "authority"}),
        ({"minimum_survivors": 4}, "is more than minimum_cohort", {"minimum_cohort": 4}),
        ({"assumed_colluding": 2}, "would learn the other update", {"minimum_survivors": 4, "minimum_cohort": 10}),
        ({"assumed_colluding": 3, "minimum_cohort": 6, "minimum_survivors": 6},
         "secagg-full stands 2 clients that collude", {"minimum_cohort": 10}),
        ({"maximum_cohort": 10, "minimum_cohort": 11}, "raise it", {"minimum_cohort": 9}),
        ({"group_size": 3, "minimum_cohort": 5}, "group_size 3 is less", {"group_size": 5}),
        ({"expected_dropout": 0.34}, "fewer than a third", {"expected_dropout": 0.3}),
        ({"branches": [{"name": "params"}, {"name": "params"}]}, "names a branch twice", {"branches": []}),
    ],
)  # fmt: skip
def test_a_protocol_that_does_not_protect_as_it_says_is_refused(secure, sentence, mended):
    found = problems(secure)
    assert list(found) == ["secure_aggregation"]
    assert sentence in found["secure_aggregation"]
    assert problems(secure | mended) == {}


@pytest.mark.parametrize(
    "section", [{"protocol": "secagg"}, {"mode": "fast"}, {"bits": 7}, {"bits": 65}, {"weight_bits": 0}]
)
def test_a_value_out_of_its_bounds_is_told_with_its_key(section):
    assert list(problems(section)) == [f"secure_aggregation.{next(iter(section))}"]


def test_weights_without_a_limit_are_refused():
    found = problems(transforms=(WeighBySize(),))
    assert (
        "weigh-by-size weighs by the number of examples, which has no limit" in found["secure_aggregation.max_weight"]
    )
    assert problems({"max_weight": 500}, transforms=(WeighBySize(),)) == {}
    assert problems(transforms=(WeighBySize(maximum=500),)) == {}


@pytest.mark.parametrize("sampler", [Full(), Poisson(rate=0.5)])
def test_a_cohort_without_a_limit_is_refused(sampler):
    found = problems(cohort=sampler)
    assert "may pick everyone, and the plan does not say how many" in found["secure_aggregation.maximum_cohort"]
    assert problems({"maximum_cohort": 20}, cohort=sampler) == {}


def test_a_cohort_beyond_its_limit_is_refused_over_selection_included():
    assert "less than the 13 that are picked" in problems(
        {"maximum_cohort": 12}, schedule=Sync(over_selection=0.3))["secure_aggregation.maximum_cohort"]  # fmt: skip
    assert problems({"maximum_cohort": 13}, schedule=Sync(over_selection=0.3)) == {}


def test_a_cohort_or_a_goal_below_the_minimum_is_refused():
    assert "raise it" in problems({"minimum_cohort": 11})["cohort.size"]
    secure = {"minimum_survivors": 5, "minimum_cohort": 8}
    assert "minimum_survivors, 5" in problems(secure, schedule=Sync(report_goal=4))["schedule.report_goal"]
    assert problems(secure, schedule=Sync(report_goal=5)) == {}


def test_integers_of_a_branch_that_does_not_travel_are_refused():
    own = {"branches": [{"name": "contrl", "max_value": 5.0}]}
    assert "no branch 'contrl'" in problems(own)["secure_aggregation.branches.0.name"]
    own["branches"][0]["name"] = "control"
    server = ServerSgd(branches={"control": ServerSgd(learning_rate="included/population")})
    assert problems(own, hooks=(ControlVariate(),), server_optimizer=server) == {}


def test_a_sum_that_could_overflow_is_refused_with_its_numbers_and_an_advice_that_builds():
    found = problems({"bits": 24, "value_bits": 16, "max_weight": 255}, transforms=(WeighBySize(),))
    sentence = found["secure_aggregation.bits"]
    assert "10 clients, each up to 255 units of weight times 32767 steps" in sentence
    assert "need 28 bits, and there are 24; use value_bits = 12" in sentence
    assert problems({"bits": 24, "value_bits": 12, "max_weight": 255}, transforms=(WeighBySize(),)) == {}


def test_lanes_that_could_overflow_are_refused():
    found = problems({"maximum_cohort": 200_000}, cohort=Full())
    assert "the sum of lane train_loss could overflow" in found["secure_aggregation.maximum_cohort"]
    grouped = {"maximum_cohort": 200_000, "group_size": 1000}
    assert "lower the largest cohort" in problems(grouped, cohort=Full())["secure_aggregation.maximum_cohort"]
    assert problems(grouped | {"maximum_cohort": 130_000}, cohort=Full()) == {}


def of_population(secure, population, **sections):
    found = population_problems(plan(secure_aggregation=secure, **sections), population)
    return {problem.path: problem.message for problem in found}


def test_what_a_population_cannot_give_is_refused():
    full = {"cohort": Full()}
    assert "12 may be picked; raise it to 12" in of_population(
        {"maximum_cohort": 11}, 12, **full)["secure_aggregation.maximum_cohort"]  # fmt: skip
    assert of_population({"maximum_cohort": 12}, 12, **full) == {}
    assert "there are 2" in of_population({"maximum_cohort": 12}, 2, **full)["secure_aggregation.minimum_cohort"]
    rare = {"cohort": Poisson(rate=0.01)}
    assert "raise the rate" in of_population({"maximum_cohort": 100}, 100, **rare)["cohort"]
    few = {"evaluation": Evaluation(federated_clients=2)}
    assert "an evaluation is a secure sum too" in of_population({}, 100, **few)["evaluation.federated_clients"]


def test_the_mode_of_a_simulation_is_no_part_of_the_hash_and_everything_else_is():
    digest = plan_sha256(plan(secure_aggregation={}))
    assert plan_sha256(plan(secure_aggregation={"mode": "exact"})) == digest
    assert plan_sha256(plan(secure_aggregation={"weight_bits": 9})) != digest
    assert plan_sha256(plan()) != digest


def test_the_section_survives_its_file(tmp_path: Path):
    given = plan(secure_aggregation={"protocol": "oneshot-seeds", "decryptors": TWO, "branches": [{"name": "params"}]})
    written = write_plan(given).replace("hansa.testing.trainers:", "hansa.testing:")
    (tmp_path / "plan.toml").write_text(written)
    assert read_plan(tmp_path / "plan.toml").secure_aggregation == given.secure_aggregation
