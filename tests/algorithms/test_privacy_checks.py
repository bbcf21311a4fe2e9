"""Every refusal of a plan with privacy: what it says, and that its advice, when followed, builds."""

from __future__ import annotations

import pytest

from hansa.algorithms.plan import plan_from_mapping, plan_sha256, population_problems
from hansa.core.errors import PlanError
from hansa.core.schema import to_mapping

BASE = {
    "name": "private",
    "rounds": 40,
    "model": {"factory": "any:thing"},
    "trainer": {"kind": "linear", "epochs": 1, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
    "cohort": {"kind": "min-separation", "size": 100, "rounds": 8, "max_participations": 5},
    "aggregator": {"kind": "fixed-mean", "divisor": 100},
    "evaluation": {"federated": False},
    "privacy": {"clip_norm": 1.0, "delta": 1e-5, "epsilon": 8.0},
}
SECURE = {"minimum_survivors": 40, "minimum_cohort": 50}
DISTRIBUTED = {"privacy": {**BASE["privacy"], "noise_by": "clients"}, "secure_aggregation": SECURE}
POISSON = {"cohort": {"kind": "poisson", "rate": 0.1}, "privacy": {**BASE["privacy"], "trusted_sampling": True}}
ADAPTIVE = {"adaptive_clip": {"lowest": 0.1, "highest": 10.0}}


def private(**keys):
    return {"privacy": BASE["privacy"] | keys}


def problems(*changes):
    """Return the problems of the base plan with some sections changed: key path -> sentences."""
    tables = dict(BASE)
    for change in changes:
        tables |= change
    try:
        plan_from_mapping(tables)
    except PlanError as error:
        return {problem.path: problem.message for problem in error.problems}
    return {}


@pytest.mark.parametrize("change", [{}, {"secure_aggregation": SECURE}, DISTRIBUTED, POISSON,
                                    private(mechanism="banded-matrix"), private(mechanism="tree", bands=4),
                                    private(**ADAPTIVE)])  # fmt: skip
def test_sound_plans_build(change):
    assert problems(change) == {}


@pytest.mark.parametrize(
    ("change", "path", "said"),
    [
        ({"transforms": [{"kind": "clip", "clip_norm": 1.0}]}, "transforms.0", "clips by itself"),
        ({"transforms": [{"kind": "weigh-by-size", "maximum": 10}]}, "transforms.0", "remove weigh-by-size"),
        ({"transforms": [{"kind": "int8-rotation"}]}, "transforms.0", "remove int8-rotation or"),
        ({"transforms": [{"kind": "normalise-by-steps"}]}, "transforms.0", "to which no noise is added"),
        ({"transforms": [{"kind": "hansa.testing:FixedPoint"}]}, "transforms.0", "by itself; remove"),
        ({"transforms": [{"kind": "hansa.testing:RingNoise"}]}, "transforms.0", ""),
        ({"aggregator": {"kind": "mean"}}, "aggregator", "use fixed-mean"),
        ({"aggregator": {"kind": "median"}}, "aggregator", "use fixed-mean"),
        ({"aggregator": {"kind": "fixed-mean", "divisor": 1.0}}, "aggregator.divisor", "use about 100"),
        ({"model": {"factory": "a:b", "buffers": "average"}}, "model.buffers", '"keep-local"'),
        ({"evaluation": {}}, "evaluation.federated", "set it to false"),
        (private(mechanism="tree", bands=9), "privacy.bands", "lower it, or raise cohort.rounds"),
        (private(bands=4), "privacy.bands", "remove it"),
        (private(mechanism="tree") | {"cohort": {"kind": "uniform", "size": 100}}, "cohort", "use min-separation"),
        (private(mechanism="banded-matrix", **ADAPTIVE), "privacy.adaptive_clip", "one clip norm"),
        (DISTRIBUTED | private(mechanism="tree", noise_by="clients"), "privacy.mechanism", "gaussian"),
        (private(noise_by="clients"), "privacy.noise_by", "add [secure_aggregation]"),
        (DISTRIBUTED | {"secure_aggregation": SECURE | {"group_size": 50}}, "privacy.noise_by", "group_size"),
        (private(noise_by="clients", **ADAPTIVE) | {"secure_aggregation": SECURE}, "privacy.adaptive_clip", "remove"),
        (private(trusted_sampling=True), "privacy.trusted_sampling", "use poisson or uniform"),
        (POISSON | {"secure_aggregation": SECURE | {"maximum_cohort": 500}}, "privacy.trusted_sampling", "remove it"),
        (POISSON | {"cohort": {"kind": "uniform", "size": 100}}, "privacy.trusted_sampling", "privacy.population"),
        (private(population=500), "privacy.population", "remove it"),
        (private(adjacency="add-or-remove-one"), "privacy.adjacency", "takes the place of another"),
        (private(adjacency="add-or-remove-one") | {"cohort": {"kind": "uniform", "size": 100}}, "privacy.adjacency",
         "use zero-out"),
        (private(adjacency="add-or-remove-one") | {"cohort": {"kind": "full"},
         "secure_aggregation": SECURE | {"maximum_cohort": 500}}, "privacy.adjacency", "need a number of clients"),
        (private(adjacency="add-or-remove-one") | {"cohort": {"kind": "full"},
         "schedule": {"kind": "sync", "report_goal": 50}}, "privacy.adjacency", "need a number of clients"),
        ({"schedule": {"kind": "buffered", "buffer_size": 10, "concurrency": 20}, "cohort": {"kind": "full"}},
         "schedule", "remove [privacy]"),
        (private(epsilon=None) | {"privacy": {"clip_norm": 1.0, "delta": 1e-5}}, "privacy", "give epsilon"),
        (private(noise_multiplier=0.1), "privacy.noise_multiplier", "more than epsilon 8"),
        (private(epsilon=0.3, **ADAPTIVE), "privacy.adaptive_clip", "ask more clients"),
        (private(clip_norm=20.0, **ADAPTIVE), "privacy", "outside adaptive_clip"),
        (private(unit="example"), "privacy.unit", "'client'"),
    ],
)  # fmt: skip
def test_what_is_not_sound_is_refused_with_what_to_change(change, path, said):
    found = problems(change)
    assert path in found
    assert said in found[path]


@pytest.mark.parametrize("cohort", [{"kind": "full"}, {"kind": "poisson", "rate": 0.1}])
def test_a_client_may_be_added_where_nobody_makes_room_for_it(cohort):
    assert problems(private(adjacency="add-or-remove-one") | {"cohort": cohort}) == {}


def test_amplification_is_not_claimed_for_more_clients_than_there_are():
    privacy = BASE["privacy"] | {"trusted_sampling": True, "adjacency": "replace-one", "population": 1000}
    plan = plan_from_mapping(BASE | {"cohort": {"kind": "uniform", "size": 100}, "privacy": privacy})
    assert [each.path for each in population_problems(plan, 999)] == ["privacy.population"]
    assert population_problems(plan, 1000) == []


def test_federated_scaling_is_refused_and_declared_scaling_builds():
    columns = [{"name": "age", "kind": "number", "center": 50.0, "scale": 10.0}, {"name": "sick", "kind": "label"}]
    columns = columns[:1]
    features = {"columns": columns, "label": "sick", "scaling": "federated"}
    found = problems({"features": features})
    assert "does not cover" in found["features.scaling"]
    assert "features.scaling" not in problems({"features": features | {"scaling": "declared"}})


def test_the_least_noise_of_a_budget_is_found_and_part_of_the_hash():
    plan = plan_from_mapping(BASE)
    multiplier = plan.privacy.noise_multiplier
    assert 1.4 < multiplier < 1.8  # five participations of 0.69 each
    assert plan_from_mapping(to_mapping(plan)) == plan, "a resolved plan reads as itself"
    assert "more than epsilon" in problems(private(noise_multiplier=multiplier - 0.001))["privacy.noise_multiplier"]
    assert plan_sha256(plan_from_mapping(BASE | private(epsilon=4.0))) != plan_sha256(plan)


def test_a_refused_multiplier_is_told_with_both_numbers():
    told = problems(private(noise_multiplier=1.0))["privacy.noise_multiplier"]
    assert "charged epsilon of" in told
    assert "reference" in told
