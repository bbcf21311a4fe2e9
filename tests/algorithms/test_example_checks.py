"""Every refusal of a plan with privacy of single examples: what it says, and that its advice, when followed, builds."""

from __future__ import annotations

import pytest

from hansa.algorithms.plan import Plan, plan_from_mapping, plan_sha256
from hansa.core.errors import PlanError
from hansa.core.schema import to_mapping

GIVEN = {"clip_norm": 1.0, "delta": 1e-5, "epsilon": 4.0, "expected_examples": 200}
TRAINER = {
    "kind": "linear",
    "steps": 5,
    "batch_size": 20,
    "optimizer": {"kind": "sgd", "learning_rate": 0.1},
    "example_privacy": GIVEN,
}
BASE = {
    "name": "examples",
    "rounds": 30,
    "model": {"factory": "any:thing"},
    "trainer": TRAINER,
    "cohort": {"kind": "min-separation", "size": 10, "rounds": 3, "max_participations": 6},
    "evaluation": {"federated": False},
}
CLIENTS = {"aggregator": {"kind": "fixed-mean", "divisor": 10}, "privacy": {"clip_norm": 1.0, "delta": 1e-5,
           "epsilon": 8.0}}  # fmt: skip


def training(**keys):
    return {"trainer": {name: value for name, value in (TRAINER | keys).items() if value is not None}}


def examples(**keys):
    return training(example_privacy={name: value for name, value in (GIVEN | keys).items() if value is not None})


def features(**keys):
    column = {"name": "age", "center": 50.0, "scale": 10.0}
    return {"features": {"label": "ill", "columns": [column], "scaling": "declared", "imputation": "center"} | keys}


def plan_of(*changes) -> Plan:
    tables = dict(BASE)
    for change in changes:
        tables |= change
    return plan_from_mapping(tables)


def problems(*changes):
    """Return the problems of the base plan with some sections changed: key path -> sentences."""
    try:
        plan_of(*changes)
    except PlanError as error:
        return {problem.path: problem.message for problem in error.problems}
    return {}


@pytest.mark.parametrize(
    "change",
    [
        {},
        CLIENTS,
        {"secure_aggregation": {"minimum_survivors": 5, "minimum_cohort": 6, "max_value": 1.0}},
        training(kind="torch"),
        training(batch_size="all"),
        examples(noise_multiplier=3.0),
        examples(noise_multiplier=3.0, epsilon=None),
        examples(max_participations=9),
        features(),
        {"transforms": [{"kind": "clip", "clip_norm": 1.0}]},
        training(hooks=[{"kind": "prox", "mu": 0.1}]),
        training(optimizer={"kind": "adam"}),
    ],
)
def test_sound_plans_build(change):
    assert problems(change) == {}


@pytest.mark.parametrize(
    ("change", "path", "said"),
    [
        (training(steps=None, epochs=2), "trainer.epochs", "give steps instead"),
        (training(batch_size=201), "trainer.example_privacy.expected_examples", 'lower batch_size, or use "all"'),
        (training(kind="hansa.testing:QuadraticTrainer"), "trainer.example_privacy", "use torch or linear"),
        ({"transforms": [{"kind": "weigh-by-size", "maximum": 9}]}, "transforms.0", "remove weigh-by-size"),
        ({"evaluation": {}}, "evaluation.federated", "set it to false"),
        (features(scaling="federated"), "features.scaling", 'use "declared" or "none"'),
        (features(imputation="median"), "features.imputation", 'use "center"'),
        (features(imputation="mean"), "features.imputation", 'use "center"'),
        ({"recipe": {"kind": "fedbuff", "buffer_size": 5, "concurrency": 9}, "cohort": {"kind": "full"}}, "schedule",
         "use sync"),
        (examples(epsilon=None), "trainer.example_privacy", "give epsilon"),
        (examples(max_participations=5), "trainer.example_privacy.max_participations", "asks one client 6 times"),
        (examples(noise_multiplier=0.5), "trainer.example_privacy.noise_multiplier", "more than epsilon 4"),
        (examples(epsilon=1e-6, delta=1e-300), "trainer.example_privacy.epsilon", "HANSA-PRIVACY-UNREACHABLE"),
    ],
)  # fmt: skip
def test_unsound_plans_are_refused_with_advice(change, path, said):
    found = problems(change)
    assert path in found, found
    assert said.replace("asks", "can ask") in found[path] or said in found[path]


def test_the_noise_and_the_count_are_part_of_the_plan_and_of_its_hash():
    plan = plan_of()
    given = to_mapping(plan)["trainer"]["example_privacy"]
    assert given["noise_multiplier"] > 0.5
    assert given["max_participations"] == 6
    again = plan_from_mapping(to_mapping(plan))
    assert plan_sha256(again) == plan_sha256(plan)
    assert plan_sha256(plan_of(examples(delta=1e-6))) != plan_sha256(plan)


def test_plans_without_it_are_the_plans_that_they_were():
    assert "example_privacy" not in to_mapping(plan_of(training(example_privacy=None)))["trainer"]
