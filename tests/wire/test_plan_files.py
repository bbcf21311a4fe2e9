"""Plans as files: read, overridden, written."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from hansa import HansaError, read_plan
from hansa.algorithms import rounds
from hansa.algorithms.plan import plan_from_mapping, plan_sha256
from hansa.core.errors import PlanError
from hansa.core.nouns import Scaling, Signature
from hansa.core.streams import Streams
from hansa.wire.models import model_bytes, sha256
from hansa.wire.plans import read_tables, with_overrides, write_plan

TEXT = """
name = "a plan"
rounds = 3
transforms = [{ kind = "clip", clip_norm = 1.0 }, "weigh-by-size"]

[model]
factory = "hansa.training.linear:logistic"

[trainer]
kind = "linear"
epochs = 1
optimizer = { kind = "sgd", learning_rate = 0.1 }
hooks = [{ kind = "prox", mu = 0.5 }]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


# Files


def test_a_file_is_read_as_a_plan(file):
    plan = read_plan(file)
    assert plan.rounds == 3
    assert plan.trainer.hooks[0].mu == 0.5


def test_comments_order_and_line_ends_do_not_change_the_hash(file, tmp_path):
    other = tmp_path / "other.toml"
    head, _, tail = TEXT.partition("[model]")
    other.write_bytes(("# a comment\n" + head + "[model]" + tail).replace("\n", "\r\n").encode())
    assert plan_sha256(read_plan(other)) == plan_sha256(read_plan(file))


def test_a_written_plan_is_read_as_the_same_plan(file, tmp_path):
    plan = read_plan(file)
    again = tmp_path / "resolved.toml"
    again.write_text(write_plan(plan), encoding="utf-8")
    assert read_plan(again) == plan
    assert plan_sha256(read_plan(again)) == plan_sha256(plan)


def test_a_file_that_is_not_there_is_told(tmp_path):
    for path in (tmp_path / "nosuch.toml", tmp_path):
        with pytest.raises(HansaError, match="cannot be read") as error:
            read_plan(path)
        assert error.value.code == "HANSA-PLAN-FILE"
        assert str(path) in error.value.found


def test_a_file_that_is_no_toml_is_told_with_the_line(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('name = "x"\nrounds = \n', encoding="utf-8")
    with pytest.raises(HansaError, match="line 2"):
        read_tables(path)


def test_a_file_that_is_not_utf_8_is_told_with_the_byte(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes(b'name = "caf\xe9"')
    with pytest.raises(HansaError, match="not UTF-8.*byte 11"):
        read_tables(path)


DEEP = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"a = {DEEP}", "nested more than 64 levels deep"),
        ("a = " + "[" * 100 + "]" * 100, "nested more than 64 levels deep"),
        ("a" + ".a" * 3000 + " = 1", "nested more than 64 levels deep"),
        ("a = " + "9" * 5000, "digits"),
    ],
)
def test_what_is_too_deep_or_too_long_to_read_is_told(tmp_path, text, words):
    path = tmp_path / "deep.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(HansaError, match=words) as error:
        read_plan(path)
    assert error.value.code == "HANSA-PLAN-FILE"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"name={DEEP}", "nested more than 64"),
        ("seed=" + "9" * 5000, "digits"),
        ("model.arguments" + ".a" * 2000 + "=1", "64 keys"),
    ],
)
def test_an_override_too_deep_or_too_long_to_read_is_told(file, override, words):
    with pytest.raises(PlanError, match=words) as error:
        read_plan(file, [override])
    assert len(str(error.value)) < 500


def test_an_override_reaches_a_key_of_what_the_plan_leaves_at_its_default(file):
    assert read_plan(file, ["server_optimizer.learning_rate=0.5"]).server_optimizer.learning_rate == 0.5


def test_a_key_given_twice_is_told(tmp_path):
    path = tmp_path / "twice.toml"
    path.write_text("rounds = 1\nrounds = 2\n", encoding="utf-8")
    with pytest.raises(HansaError) as error:
        read_tables(path)
    assert error.value.code == "HANSA-PLAN-FILE"


# --set


def overridden(*overrides, tables=None):
    return with_overrides(tables or {"a": {"b": 1}, "s": "kind", "l": [{"x": 1}, "clip", 3]}, overrides)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("a.b=10", ["a", "b"], 10),
        ("a.b = 10", ["a", "b"], 10),
        ("a.c=2.5", ["a", "c"], 2.5),
        ("a.c=1e-3", ["a", "c"], 1e-3),
        ("a.c=true", ["a", "c"], True),
        ('a.c="10"', ["a", "c"], "10"),
        ("a.c=[1, 2]", ["a", "c"], [1, 2]),
        ('a={ kind = "x", y = 1 }', ["a"], {"kind": "x", "y": 1}),
        ("a.c=some words", ["a", "c"], "some words"),
        ("a.c=/a/path=with/equals", ["a", "c"], "/a/path=with/equals"),
        ("a.c=", ["a", "c"], ""),
        ("new.deep.key=1", ["new", "deep", "key"], 1),
        ("l.0.x=2", ["l", 0, "x"], 2),
        ("l.2=4", ["l", 2], 4),
        ("l.1.clip_norm=2", ["l", 1], {"kind": "clip", "clip_norm": 2}),
        ("s.size=2", ["s"], {"kind": "kind", "size": 2}),
        ("a.c=1\nb = 2", ["a", "c"], "1\nb = 2"),
    ],
)
def test_an_override_reaches_its_key_with_its_value(override, path, value):
    result = overridden(override)
    for key in path:
        result = result[key]
    assert result == value
    assert type(result) is type(value)


def test_overrides_apply_in_order_and_leave_the_tables_alone():
    tables = {"a": {"b": 1}, "l": [{"x": 1}]}
    before = copy.deepcopy(tables)
    assert overridden("a.b=2", "a.b=3", "l.0.x=5", tables=tables) == {"a": {"b": 3}, "l": [{"x": 5}]}
    assert tables == before


@pytest.mark.parametrize(
    "override", ["a.b.c=1", "a.b.c.d=1", "l.7=1", "l.x=1", "l.0.x.y.z=1", "l.2.x=1", "l.-1=1", "l.9.x=1"]
)
def test_an_override_that_leads_nowhere_is_refused(override):
    with pytest.raises(PlanError, match="leads to nothing") as error:
        overridden(override)
    assert error.value.problems[0].path == override.partition("=")[0]


@pytest.mark.parametrize("override", ["a.b", "", "=1", ".a=1", "a..b=1", "a.=1"])
def test_an_override_of_another_form_is_refused(override):
    with pytest.raises(PlanError, match=r"not of the form key\.path=value"):
        overridden(override)


def test_every_wrong_override_is_told_at_once():
    with pytest.raises(PlanError) as error:
        overridden("x", "a.b.c.d=1", "a.b=2")
    assert len(error.value.problems) == 2


@given(st.text(max_size=12), st.text(max_size=12))
def test_no_override_crashes(path, value):
    with contextlib.suppress(PlanError):
        overridden(f"{path}={value}")


def test_overrides_are_checked_as_part_of_the_plan(file):
    plan = read_plan(
        file,
        ["rounds=7", "trainer.hooks.0.mu=0.25", "transforms.1.maximum=9", "cohort.kind=poisson", "cohort.rate=0.5"],
    )
    assert (plan.rounds, plan.trainer.hooks[0].mu, plan.transforms[1].maximum, plan.cohort.rate) == (7, 0.25, 9, 0.5)
    with pytest.raises(PlanError, match=r"cohort\.siz: unknown key; did you mean 'size'"):
        read_plan(file, ["cohort.kind=uniform", "cohort.siz=2"])


def test_overrides_reach_into_recipes(file):
    file.write_text(
        TEXT.replace("transforms = ", 'recipe = "fedprox"\ntransforms = ').replace(
            'hooks = [{ kind = "prox", mu = 0.5 }]\n', ""
        ),
        encoding="utf-8",
    )
    assert read_plan(file, ["recipe.mu=0.75"]).trainer.hooks[0].mu == 0.75
    assert read_plan(file, ["recipe=fedavgm"]).server_optimizer.momentum == 0.9
    assert read_plan(file, ["server_optimizer.learning_rate=0.5"]).server_optimizer.learning_rate == 0.5


# Model files


def state_and_plan(**trainer):
    plan = plan_from_mapping(
        {
            "name": "x",
            "rounds": 1,
            "model": {"factory": "hansa.training.linear:logistic"},
            "recipe": "scaffold",
            "trainer": {"kind": "linear", "epochs": 1, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
        }
    )
    model = plan.trainer.initial(plan.model, Signature((3,), 2), Streams(0).of("model"))
    return plan, rounds.start(plan, model)


def test_a_model_file_holds_the_parameters_by_name_and_not_what_only_travels():
    plan, state = state_and_plan()
    tensors = safetensors.numpy.load(model_bytes(plan, state))
    assert {name: array.shape for name, array in tensors.items()} == {
        "params/weight": (3, 1),
        "params/intercept": (1,),
    }


def test_a_model_file_is_the_same_bytes_for_the_same_state():
    plan, state = state_and_plan()
    assert model_bytes(plan, state) == model_bytes(plan, state)
    assert len(sha256(model_bytes(plan, state))) == 64
    object.__setattr__(state, "model", state.model + np.float32(1))
    assert model_bytes(plan, state) != model_bytes(*state_and_plan())


def test_a_model_file_carries_the_scaling_that_its_features_need():
    plan, state = state_and_plan()
    object.__setattr__(state, "features", Scaling(np.ones(3, np.float32), np.full(3, 2.0, np.float32)))
    tensors = safetensors.numpy.load(model_bytes(plan, state))
    np.testing.assert_array_equal(tensors["features/scale"], [2, 2, 2])


def test_an_override_reaches_what_only_the_recipe_gives(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(
        """
        name = "n"
        rounds = 1
        recipe = "fedavg"
        model = { factory = "hansa.training.linear:logistic" }
        trainer = { kind = "linear", epochs = 1, optimizer = { kind = "sgd", learning_rate = 1.0 } }
        """
    )
    plan = read_plan(path, ["transforms.0.maximum=5", "server_optimizer.momentum=0.5", "recipe=fedavgm"])
    assert plan.transforms[0].maximum == 5
    assert plan.server_optimizer.momentum == 0.5


def test_a_plan_that_takes_away_what_its_recipe_is_named_for_is_refused(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(
        """
        name = "n"
        rounds = 1
        recipe = "fedavg"
        model = { factory = "hansa.training.linear:logistic" }
        trainer = { kind = "linear", epochs = 2, batch_size = 8, optimizer = { kind = "sgd", learning_rate = 1.0 } }
        """
    )
    with pytest.raises(PlanError) as caught:
        read_plan(path, ["recipe=fedsgd"])
    assert [problem.path for problem in caught.value.problems] == ["trainer.epochs", "trainer.batch_size"]
    assert "fedsgd means 'all'; set it so" in str(caught.value)
    assert read_plan(path, ["recipe=fedsgd", "trainer.epochs=1", "trainer.batch_size=all"]).trainer.batch_size == "all"
    with pytest.raises(PlanError, match="fednova means normalise-by-steps and weigh-by-size"):
        read_plan(path, ["recipe=fednova", "transforms=[{kind='weigh-by-size'}]"])
    with pytest.raises(PlanError, match="fedadam means 'adam'"):
        read_plan(path, ["recipe=fedadam", "server_optimizer={kind='sgd', learning_rate=1.0}"])
    more = "transforms=['normalise-by-steps', {kind='clip', clip_norm=1.0}, 'weigh-by-size']"
    assert len(read_plan(path, ["recipe=fednova", more]).transforms) == 3
