"""Plans: validated whole, hashed by what they mean, the same from a file and from Python."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa import Plan, recipe
from hansa.algorithms import samplers, server_optimizers
from hansa.algorithms.aggregators import TrimmedMean
from hansa.algorithms.plan import overlay, plan_from_mapping, plan_sha256, population_problems
from hansa.algorithms.transforms import Clip, WeighBySize
from hansa.core.errors import HansaError, PlanError
from hansa.core.registry import PIECES
from hansa.core.schema import to_mapping
from hansa.core.sections import Column, Data, Evaluation, Features, Model, Stopping
from hansa.training.linear import LinearTrainer
from hansa.training.optimizers import Sgd
from hansa.wire.plans import write_plan

GOLDEN = Path(__file__).parent / "golden_plans.json"

FULL = """
name = "everything that a plan can say"
seed = 7
rounds = 40

[data]
source = "csv"
path = "somewhere.csv"
client = "hospital"
partition = { kind = "dirichlet", alpha = 0.5, clients = 9 }
test_fraction = 0.25

[features]
label = "num"
classes = ["no", "yes"]
imputation = "mean"
scaling = "declared"
columns = [
  { name = "age", center = 50.0, scale = 10.0, low = 0.0, high = 120.0, missing = ["?"] },
  { name = "sex", kind = "category", categories = ["f", "m"] },
]

[model]
factory = "hansa.training.linear:logistic"
arguments = { intercept = true }
buffers = "average"

[trainer]
kind = "linear"
epochs = 2
batch_size = 16
hooks = [{ kind = "prox", mu = 0.01 }, "control-variate"]

[trainer.optimizer]
kind = "sgd"
learning_rate = 0.1
weight_decay = 0.001

[cohort]
kind = "min-separation"
size = 2
rounds = 2
max_participations = 30

[[transforms]]
kind = "clip"
clip_norm = 2.5
branches = ["params", "control"]

[[transforms]]
kind = "weigh-by-size"
maximum = 1000

[[transforms]]
kind = "int8-rotation"
block = 64

[aggregator]
kind = "fixed-mean"
divisor = 100

[server_optimizer]
kind = "yogi"
learning_rate = 0.5
tau = 0.01
branches = { control = { kind = "sgd", learning_rate = "included/population" } }

[evaluation]
every = 5
metrics = ["auc", "accuracy", "loss"]
baselines = ["local-only", "centralised"]

[stopping]
metric = "central.auc"
target = 0.99
patience = 3
"""


def tables():
    return tomllib.loads(FULL)


def small(**sections):
    """Return the tables of a small plan."""
    return {
        "name": "small",
        "rounds": 3,
        "model": {"factory": "a:b"},
        "trainer": {"kind": "linear", "epochs": 1, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
    } | sections


def problems(mapping):
    with pytest.raises(PlanError) as error:
        plan_from_mapping(mapping)
    assert error.value.code == "HANSA-PLAN-INVALID"
    return {problem.path: problem.message for problem in error.value.problems}


# Validated whole, with key paths and nearest names


def test_every_problem_is_found_at_once_with_its_key_path():
    mapping = tables()
    mapping["rouns"] = 4
    mapping["seed"] = -1
    mapping["model"]["buffer"] = "average"
    mapping["trainer"]["optimizer"]["learning_rate"] = 0
    mapping["trainer"]["hooks"][0]["mu"] = "much"
    mapping["transforms"][1]["maximum"] = 0
    mapping["features"]["columns"][1]["kind"] = "categorie"
    mapping["server_optimizer"]["branches"]["control"]["kind"] = "sdg"
    mapping["evaluation"]["metrics"] = ["auc", "auk"]
    del mapping["rounds"]
    found = problems(mapping)
    assert set(found) == {
        "rouns",
        "seed",
        "rounds",
        "model.buffer",
        "trainer.optimizer.learning_rate",
        "trainer.hooks.0.mu",
        "transforms.1.maximum",
        "features.columns.1.kind",
        "server_optimizer.branches.control.kind",
        "evaluation.metrics.1",
    }
    assert "did you mean 'rounds'" in found["rouns"]
    assert "did you mean 'buffers'" in found["model.buffer"]
    assert "did you mean 'sgd'" in found["server_optimizer.branches.control.kind"]
    assert "is required: number of rounds" in found["rounds"]
    assert "'much' was given" in found["trainer.hooks.0.mu"]


@pytest.mark.parametrize("family", ["sampler", "transform", "aggregator", "server_optimizer", "trainer"])
def test_an_unknown_kind_is_refused_with_the_nearest_name(family):
    section = {"sampler": "cohort", "transform": "transforms"}.get(family, family)
    for kind in PIECES[family]:
        typo = kind + "x"
        found = problems(small(**{section: [{"kind": typo}] if section == "transforms" else {"kind": typo}}))
        path = f"{section}.0.kind" if section == "transforms" else f"{section}.kind"
        assert f"unknown {family} {typo!r}; did you mean {kind!r}?" in found[path]


def test_a_kind_unlike_any_lists_those_that_are_known():
    assert "known: full, min-separation, poisson, uniform" in problems(small(cohort="zzzzzz"))["cohort.kind"]


@pytest.mark.parametrize(
    ("sections", "path", "what"),
    [
        ({"cohort": {"size": 3}}, "cohort.size", "this is 'full', the default, as there is no key 'kind'"),
        ({"cohort": 3}, "cohort", "a key 'kind'"),
        ({"cohort": {"kind": 3}}, "cohort", "a key 'kind'"),
        ({"transforms": "clip"}, "transforms", "must be an array of tables"),
        ({"transforms": {"kind": "clip"}}, "transforms", "must be an array of tables"),
        ({"model": "a:b"}, "model", "must be a table"),
        ({"evaluation": []}, "evaluation", "must be a table"),
        ({"evaluation": {"metrics": "auc"}}, "evaluation.metrics", "'auc' was given"),
        ({"evaluation": {"metrics": ["auc", 3]}}, "evaluation.metrics.1", "valid string"),
        ({"evaluation": {"baselines": ["local-only", "x"]}}, "evaluation.baselines.1", "'local-only' or 'centralised'"),
        ({"features": {"label": "y", "columns": {"name": "x"}}}, "features.columns", "array of tables"),
        ({"features": {"label": "y", "columns": [{"name": ""}]}}, "features.columns.0.name", "at least 1"),
        ({"features": {"label": "y", "columns": [{"kind": "number"}]}}, "features.columns.0.name", "is required"),
        ({"server_optimizer": {"kind": "sgd", "branches": []}}, "server_optimizer.branches", "a table of tables"),
        ({"name": ""}, "name", "at least 1"),
        ({"name": 5}, "name", "valid string"),
        ({"seed": True}, "seed", "valid integer"),
        ({"seed": 2**53}, "seed", "smaller than 2^53"),
        ({"rounds": 2.0}, "rounds", "valid integer"),
        ({"rounds": "3"}, "rounds", "valid integer"),
        ({"rounds": 0}, "rounds", "greater than or equal to 1"),
        ({"server_optimizer": {"kind": "sgd", "learning_rate": 0.0}}, "server_optimizer", "greater than 0"),
        ({"server_optimizer": {"kind": "sgd", "learning_rate": "fast"}}, "server_optimizer.learning_rate", "fast"),
        ({"server_optimizer": {"kind": "sgd", "learning_rate": True}}, "server_optimizer.learning_rate", "True"),
    ],
)
def test_wrong_values_are_refused_where_they_stand(sections, path, what):
    found = problems(small(**sections))
    assert set(found) == {path}
    assert what in found[path]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("section", "path"),
    [
        (lambda v: {"server_optimizer": {"kind": "sgd", "learning_rate": v}}, "server_optimizer.learning_rate"),
        (lambda v: {"transforms": [{"kind": "clip", "clip_norm": v}]}, "transforms.0.clip_norm"),
        (lambda v: {"model": {"factory": "a:b", "arguments": {"x": [{"y": v}]}}}, "model.arguments"),
        (lambda v: {"stopping": {"metric": "central.loss", "target": v}}, "stopping.target"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(section, path, value):
    assert problems(small(**section(value)))[path] == "must be finite."


def test_whole_numbers_are_taken_for_floats_and_never_the_other_way_round():
    plan = plan_from_mapping(small(transforms=[{"kind": "clip", "clip_norm": 2}]))
    assert isinstance(plan.transforms[0].clip_norm, float)
    assert plan_sha256(plan) == plan_sha256(plan_from_mapping(small(transforms=[{"kind": "clip", "clip_norm": 2.0}])))
    assert "cohort.size" in problems(small(cohort={"kind": "uniform", "size": 2.5}))


def test_epochs_and_steps_exclude_each_other():
    for work in ({"epochs": 1, "steps": 1}, {}):
        trainer = {"kind": "linear", "optimizer": {"kind": "sgd", "learning_rate": 0.1}, **work}
        assert "give epochs or steps" in problems(small(trainer=trainer))["trainer"]


def test_values_that_no_plan_file_can_hold_are_refused():
    for value in (object(), {1, 2}, np.float32(1), np.ones(3), b"x"):
        found = problems(small(model={"factory": "a:b", "arguments": {"x": value}}))
        assert "cannot be written in a plan" in found["model.arguments"]


@pytest.mark.parametrize("value", [2**53 + 1, -(2**63), 10**30])
def test_whole_numbers_that_the_hash_cannot_hold_are_refused_when_the_plan_is_built(value):
    found = problems(small(model={"factory": "a:b", "arguments": {"seed": value}}))
    assert "2^53" in found["model.arguments"]


def test_an_argument_that_is_none_is_refused_as_no_file_can_hold_it():
    found = problems(small(model={"factory": "a:b", "arguments": {"activation": None}}))
    assert "leave it out" in found["model.arguments"]


# The hash


def test_formatting_key_order_name_and_data_do_not_change_the_hash():
    plan = plan_from_mapping(tables())
    mapping = tables()
    backwards = json.loads(json.dumps(mapping), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert list(backwards) != list(mapping)
    assert plan_sha256(plan_from_mapping(backwards)) == plan_sha256(plan)
    assert plan_sha256(plan_from_mapping(mapping | {"name": "other", "data": {"source": "heart"}})) == plan_sha256(plan)
    del mapping["data"]
    assert plan_sha256(plan_from_mapping(mapping)) == plan_sha256(plan)


def test_defaults_written_out_do_not_change_the_hash():
    assert plan_sha256(plan_from_mapping(small())) == plan_sha256(
        plan_from_mapping(small(seed=0, cohort={"kind": "full"}, transforms=[], aggregator="mean", evaluation={}))
    )


OTHER = {
    "kind": None,
    "factory": "hansa.training.linear:softmax",
    "imputation": "median",
    "label": "other",
    "scaling": "federated",
    "buffers": "keep-local",
    "learning_rate": 0.123,
    "metric": "federated.auc",
}


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, item in enumerate(value):
            yield from leaves(item, (*path, number))
    else:
        yield path, value


def changed(value, key):
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return {16: 8, 64: 256}.get(value, value + 1)
    if isinstance(value, float):
        return value / 2 if value else 0.25
    if isinstance(value, list):
        return value[:-1]
    return value + "x"


def test_every_other_setting_changes_the_hash():
    """Each leaf of a plan that says everything is changed alone, where the result still builds."""
    resolved = to_mapping(plan_from_mapping(tables()))
    before, tried = plan_sha256(plan_from_mapping(resolved)), set()
    for path, value in leaves(resolved):
        if path[-1] == "kind" or value in ([], {}):
            continue
        mapping = copy.deepcopy(resolved)
        at = mapping
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = changed(value, path[-1])
        try:
            after = plan_sha256(plan_from_mapping(mapping))
        except PlanError:
            continue
        tried.add(".".join(map(str, path)))
        assert (after == before) == (path[0] in ("name", "data")), path
    assert len(tried) >= 53
    assert {path.split(".")[0] for path in tried} == set(resolved)


@pytest.mark.parametrize("family", ["sampler", "aggregator", "server_optimizer"])
def test_every_kind_has_a_hash_of_its_own(family):
    section = {"sampler": "cohort"}.get(family, family)
    needs = {"uniform": {"size": 2}, "poisson": {"rate": 0.5}, "min-separation": {"size": 2, "rounds": 2}}
    needs |= {"fixed-mean": {"divisor": 2.0}, "trimmed-mean": {"fraction": 0.1}}
    hashes = {
        plan_sha256(plan_from_mapping(small(**{section: {"kind": k, **needs.get(k, {})}}))) for k in PIECES[family]
    }
    assert len(hashes) == len(PIECES[family])


def test_the_order_of_transforms_and_hooks_changes_the_hash():
    transforms = [{"kind": "clip", "clip_norm": 1.0}, {"kind": "weigh-by-size"}]
    assert plan_sha256(plan_from_mapping(small(transforms=transforms))) != plan_sha256(
        plan_from_mapping(small(transforms=transforms[::-1]))
    )


def test_the_hashes_of_these_plans_never_change_within_a_format():
    golden = json.loads(GOLDEN.read_text())
    assert plan_sha256(plan_from_mapping(tables())) == golden["everything"]
    assert plan_sha256(plan_from_mapping(small())) == golden["small"]
    assert plan_sha256(plan_from_mapping(small(recipe="scaffold"))) == golden["scaffold"]


# From a file, from Python, and back


@pytest.mark.parametrize("mapping", [tables(), small(), small(recipe={"kind": "fedprox", "mu": 0.5})])
def test_a_resolved_plan_is_read_again_as_the_same_plan(mapping):
    plan = plan_from_mapping(mapping)
    text = write_plan(plan)
    again = plan_from_mapping(tomllib.loads(text))
    assert again == plan
    assert plan_sha256(again) == plan_sha256(plan)
    assert write_plan(again) == text


def test_a_plan_of_objects_is_the_plan_of_its_tables():
    objects = Plan(
        name="x",
        seed=3,
        rounds=4,
        data=Data(source="heart", test_fraction=0.5),
        features=Features(label="y", columns=(Column(name="a", low=0.0, high=1.0),)),
        model=Model(factory="a:b", arguments={"hidden": [200, 200]}),
        trainer=LinearTrainer(optimizer=Sgd(learning_rate=0.1), steps=3, batch_size="all"),
        cohort=samplers.Uniform(size=5),
        transforms=(Clip(clip_norm=1.0),),
        aggregator=TrimmedMean(fraction=0.2),
        server_optimizer=server_optimizers.Adam(learning_rate=0.1),
        evaluation=Evaluation(every=2, metrics=("loss",)),
        stopping=Stopping(patience=2, metric="federated.loss"),
    )
    text = """
        name = "x"
        seed = 3
        rounds = 4
        data = { source = "heart", test_fraction = 0.5 }
        features = { label = "y", columns = [{ name = "a", low = 0, high = 1 }] }
        model = { factory = "a:b", arguments = { hidden = [200, 200] } }
        trainer = { kind = "linear", optimizer = { kind = "sgd", learning_rate = 0.1 }, steps = 3, batch_size = "all" }
        cohort = { kind = "uniform", size = 5 }
        transforms = [{ kind = "clip", clip_norm = 1 }]
        aggregator = { kind = "trimmed-mean", fraction = 0.2 }
        server_optimizer = { kind = "adam", learning_rate = 0.1 }
        evaluation = { every = 2, metrics = ["loss"] }
        stopping = { patience = 2, metric = "federated.loss" }
    """
    table = plan_from_mapping(tomllib.loads(text))
    assert objects == table
    assert plan_sha256(objects) == plan_sha256(table)


def test_a_plan_may_mix_objects_and_tables_and_is_checked_either_way():
    plan = Plan(**small(cohort=samplers.Uniform(size=5)))
    assert plan.trainer == LinearTrainer(optimizer=Sgd(learning_rate=0.1), epochs=1)
    with pytest.raises(PlanError, match=r"cohort\.size"):
        Plan(**small(cohort=samplers.Uniform(size=0)))
    with pytest.raises(PlanError, match=r"cohort\.size"):
        Plan(**small(cohort=samplers.Uniform(size="3")))


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6),
        st.recursive(
            st.booleans()
            | st.integers(-(2**53) + 1, 2**53 - 1)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_any_arguments_of_a_factory_survive_a_file(arguments):
    plan = plan_from_mapping(small(model={"factory": "a:b", "arguments": arguments}))
    again = plan_from_mapping(tomllib.loads(tomli_w.dumps(to_mapping(plan))))
    assert again == plan
    assert plan_sha256(again) == plan_sha256(plan)


# Recipes as tables


def test_a_recipe_is_laid_under_the_plans_own_tables():
    plan = plan_from_mapping(small(recipe="fedadam", server_optimizer={"learning_rate": 0.5}))
    assert plan.server_optimizer == server_optimizers.Adam(learning_rate=0.5, tau=1e-3)
    assert plan.transforms == (WeighBySize(),)
    plan = plan_from_mapping(small(recipe="fedavg", server_optimizer={"kind": "yogi"}))
    assert plan.server_optimizer == server_optimizers.Yogi()
    plan = plan_from_mapping(small(recipe={"kind": "fedprox", "mu": 0.5}))
    assert plan.trainer.hooks[0].mu == 0.5
    assert plan.trainer.epochs == 1
    assert plan_from_mapping(small(recipe="fedavg", transforms=[])).transforms == ()


def test_a_recipe_by_call_is_the_recipe_in_a_file():
    assert recipe("fedprox", mu=0.5, **small()) == plan_from_mapping(small(recipe={"kind": "fedprox", "mu": 0.5}))
    assert recipe("fedavg", **small()) == plan_from_mapping(small(recipe="fedavg"))


def test_a_recipe_is_no_part_of_the_resolved_plan():
    written = small(transforms=["weigh-by-size"])
    assert plan_sha256(recipe("fedavg", **small())) == plan_sha256(plan_from_mapping(written))


@pytest.mark.parametrize(
    ("given_recipe", "path", "what"),
    [
        ("fedavgg", "recipe", "did you mean 'fedavg"),
        ({"kind": "fedprox", "nu": 1.0}, "recipe.nu", "did you mean 'mu'"),
        ({"kind": "fedavg", "mu": 1.0}, "recipe.mu", "unknown key"),
        ({"mu": 1.0}, "recipe", "'kind'"),
        (5, "recipe", "'kind'"),
        (["fedavg"], "recipe", "'kind'"),
        ({"kind": 5}, "recipe", "'kind'"),
        ("no_such_module:method", "recipe", "No module named"),
        ("os:getcwd", "recipe", "getcwd"),
        ("os:getenv", "recipe", "raised TypeError"),
        ("sys:exit", "recipe", "raised SystemExit"),
        ({"kind": "builtins:int", "a": 1}, "recipe", "raised TypeError"),
    ],
)
def test_a_wrong_recipe_is_a_problem_with_its_key_path(given_recipe, path, what):
    found = problems(small(recipe=given_recipe))
    assert list(found) == [path]
    assert what in found[path]


def test_a_wrong_recipe_does_not_hide_the_plans_other_problems():
    found = problems(small(recipe="fedavgg", rounds=0, cohort={"kind": "uniform"}))
    assert set(found) == {"recipe", "rounds", "cohort.size"}


def test_a_wrong_setting_of_a_recipe_is_told_where_it_ends_up():
    assert "trainer.hooks.0.mu" in problems(small(recipe={"kind": "fedprox", "mu": "much"}))


def test_a_recipe_may_be_a_function_of_the_users_own():
    assert recipe("hansa.algorithms.recipes:fedavg", **small()) == recipe("fedavg", **small())


def test_a_table_of_another_kind_replaces_the_whole_and_lists_are_replaced():
    under = {"a": {"kind": "x", "p": 1, "in": {"q": 1}}, "l": [1, 2]}
    assert overlay(under, {"a": {"in": {"r": 2}}}) == {"a": {"kind": "x", "p": 1, "in": {"q": 1, "r": 2}}, "l": [1, 2]}
    assert overlay(under, {"a": {"kind": "y"}, "l": [3]}) == {"a": {"kind": "y"}, "l": [3]}
    assert overlay(under, {"a": {"kind": "x", "p": 2}})["a"] == {"kind": "x", "p": 2, "in": {"q": 1}}
    assert under == {"a": {"kind": "x", "p": 1, "in": {"q": 1}}, "l": [1, 2]}


@pytest.mark.parametrize(
    ("section", "table", "kind"),
    [
        ("server_optimizer", {"learning_rate": 0.5}, "sgd"),
        ("server_optimizer", {}, "sgd"),
        ("cohort", {}, "full"),
        ("aggregator", {}, "mean"),
    ],
)
def test_a_table_without_a_kind_is_one_of_the_defaults_kind(section, table, kind):
    given = plan_from_mapping(small(**{section: table}))
    assert given == plan_from_mapping(small(**{section: {"kind": kind, **table}}))
    assert given == Plan(**small(**{section: table}))


def test_a_wrong_key_of_the_defaults_kind_is_told_with_the_nearest_and_the_kind():
    found = problems(small(server_optimizer={"lerning_rate": 0.5}))
    assert "did you mean 'learning_rate'" in found["server_optimizer.lerning_rate"]
    assert "'sgd', the default" in found["server_optimizer.lerning_rate"]
    assert set(problems(small(server_optimizer={"learning_rate": -1.0}))) == {"server_optimizer"}
    assert "a key 'kind'" in problems(small(trainer={"epochs": 1}))["trainer"]


def test_a_section_that_is_unknown_or_missing_is_told_in_python_as_in_a_file():
    for mapping in (small(rouns=4, server_optimizr="sgd"), {"rounds": 0}, small(cohort=None, seeds=1)):
        with pytest.raises(PlanError) as error:
            Plan(**mapping)
        given = {name: section for name, section in mapping.items() if section is not None}
        assert {problem.path: problem.message for problem in error.value.problems} == problems(given)
    with pytest.raises(PlanError, match="did you mean 'rounds'"):
        Plan(**small(rouns=4))
    assert "rounds" in inspect.signature(Plan).parameters
    assert copy.copy(Plan(**small())) == pickle.loads(pickle.dumps(Plan(**small())))  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("path", "sections"),
    [
        ("rounds", {"rounds": 10**11}),
        ("trainer.steps", {"trainer": small()["trainer"] | {"epochs": None, "steps": 10**11}}),
        ("trainer.epochs", {"trainer": small()["trainer"] | {"epochs": 10**11}}),
    ],
)
def test_counts_beyond_reason_are_refused(path, sections):
    assert path in problems({key: _given(value) for key, value in small(**sections).items()})


def _given(value):
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def test_arguments_too_deep_or_too_long_are_told():
    deep = []
    for _ in range(3000):
        deep = [deep]
    level = [1]
    for _ in range(100):
        level = [level]
    for value in (deep, level):
        with pytest.raises(PlanError, match="nested"):
            Plan(**small(model=Model(factory="a:b", arguments={"a": value})))
    assert "2^53" in problems(small(model={"factory": "a:b", "arguments": {"a": 10**5000}}))["model.arguments"]
    assert "too long to show" in problems(small(data=10**5000))["data"]


def test_a_whole_float_and_an_integer_are_different_arguments():
    def hashed(value):
        return plan_sha256(plan_from_mapping(small(model={"factory": "a:b", "arguments": value})))

    values = [{"p": 1}, {"p": 1.0}, {"p": [1, 2]}, {"p": [1.0, 2]}, {"p": [1, 2.0]}, {"p": {"0": 1.0}}, {"p": {"0": 1}}]
    values += [{"p": 0.0}, {"p": 0}, {"p": True}, {"p": 1, "q": 1.0}, {"p": 1.0, "q": 1}]
    assert len({hashed(value) for value in values}) == len(values)
    assert hashed({"a": 1.0, "b": 2.0}) == hashed({"b": 2.0, "a": 1.0})


# What only the population shows


def test_a_population_that_does_not_fit_is_refused_with_key_paths():
    plan = plan_from_mapping(
        small(cohort={"kind": "uniform", "size": 4}, aggregator={"kind": "trimmed-mean", "fraction": 0.2})
    )
    found = {problem.path: problem.message for problem in population_problems(plan, 3)}
    assert set(found) == {"cohort.size", "aggregator.fraction"}
    assert population_problems(plan_from_mapping(small(cohort={"kind": "uniform", "size": 4})), 4) == []


def test_a_plan_error_is_a_hansa_error_with_its_three_parts():
    with pytest.raises(HansaError) as error:
        plan_from_mapping(small(rounds=0))
    assert error.value.exit_status == 2
    assert error.value.found.startswith("1 problem: rounds: ")
    assert str(error.value) == f"{error.value.rule} {error.value.found} {error.value.action}"
