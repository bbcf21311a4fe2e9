"""Every refusal of a plan that is not sound: what it says, and that its advice, when followed, builds."""

from __future__ import annotations

import pytest

from hansa import Plan
from hansa.algorithms import soundness
from hansa.algorithms.aggregators import FixedMean, Mean, Median, TrimmedMean
from hansa.algorithms.compressors import Int8Rotation
from hansa.algorithms.hooks import ControlVariate, Prox
from hansa.algorithms.samplers import Full, Poisson, Uniform
from hansa.algorithms.schedule import Buffered, Sync
from hansa.algorithms.server_optimizers import Momentum
from hansa.algorithms.server_optimizers import Sgd as ServerSgd
from hansa.algorithms.transforms import Clip, NormaliseBySteps, WeighBySize
from hansa.core.errors import PlanError
from hansa.core.sections import Column, Evaluation, Features, Model, Stopping
from hansa.testing import FixedPoint, QuadraticTrainer, RingNoise, StumpTrainer, TopK, ValueNoise
from hansa.training.optimizers import Adam, Sgd

SGD = Sgd(learning_rate=0.1)
PRIVACY = {"clip_norm": 1.0, "delta": 1e-5, "noise_multiplier": 1.0}
CLIP, WEIGH, NOISE, INT8 = Clip(clip_norm=1.0), WeighBySize(), ValueNoise(), Int8Rotation()
CONTROL = {"control": ServerSgd(learning_rate="included/population")}


def trainer(*hooks, optimizer=SGD):
    return QuadraticTrainer(optimizer=optimizer, steps=1, hooks=hooks)


def plan(**sections):
    return Plan(**{"name": "x", "rounds": 1, "model": Model(factory="any:thing"), "trainer": trainer()} | sections)


def problems(**sections):
    """Return the problems of a plan: key path -> sentences."""
    try:
        plan(**sections)
    except PlanError as error:
        found = {}
        for problem in error.problems:
            found.setdefault(problem.path, []).append(problem.message)
        return {path: " / ".join(messages) for path, messages in found.items()}
    return {}


def noisy(*transforms, **sections):
    return problems(transforms=transforms, aggregator=FixedMean(divisor=2), **sections)


# Noise needs a bound that holds where it is added


def test_noise_without_clip_is_refused_and_builds_with_one():
    found = noisy(NOISE)
    assert list(found) == ["transforms.0"]
    assert "there is no clip" in found["transforms.0"]
    assert "put clip directly before the noise" in found["transforms.0"]
    assert noisy(CLIP, NOISE) == {}


def test_clip_then_top_k_then_noise_is_refused_and_builds_with_clip_after_top_k():
    found = noisy(CLIP, TopK(), NOISE)
    assert list(found) == ["transforms.2"]
    assert "TopK loses the bound" in found["transforms.2"]
    assert "put clip directly before the noise" in found["transforms.2"]
    assert noisy(TopK(), CLIP, NOISE) == {}


def test_clip_then_weight_then_noise_is_refused_and_builds_with_clip_after_the_weight():
    found = noisy(CLIP, WEIGH, NOISE)
    assert list(found) == ["transforms.2"]
    assert "weigh-by-size loses the bound" in found["transforms.2"]
    assert noisy(WEIGH, CLIP, NOISE) == {}


def test_a_weight_with_a_maximum_keeps_the_bound():
    assert noisy(CLIP, WeighBySize(maximum=20), NOISE) == {}


def test_clip_then_normalise_then_noise_is_refused():
    found = noisy(CLIP, NormaliseBySteps(), NOISE)
    assert "normalise-by-steps loses the bound" in found["transforms.2"]
    assert noisy(NormaliseBySteps(), CLIP, NOISE) == {}


def test_noise_then_clip_is_refused_and_builds_the_other_way_round():
    found = noisy(NOISE, CLIP)
    assert "clip after" in found["transforms.1"]
    assert "would distort the noise" in found["transforms.1"]
    assert "list clip before" in found["transforms.1"]
    assert noisy(CLIP, NOISE) == {}


def test_noise_then_weight_is_refused():
    assert "weigh-by-size after" in noisy(CLIP, NOISE, WEIGH)["transforms.2"]


def test_noise_in_value_units_after_fixed_point_is_refused_and_builds_before_or_in_ring_units():
    """The prototype's fatal order: noise that is 65,536 times too small."""
    found = noisy(CLIP, FixedPoint(), NOISE)
    assert list(found) == ["transforms.2"]
    assert "adds noise in value units to what is in ring units" in found["transforms.2"]
    assert "move it to where the vector is in value units" in found["transforms.2"]
    assert noisy(CLIP, FixedPoint(), RingNoise()) == {}


def test_noise_in_ring_units_before_fixed_point_is_refused():
    found = noisy(CLIP, RingNoise())
    assert "adds noise in ring units to what is in value units" in found["transforms.1"]


def test_fixed_point_without_clip_does_not_bound():
    assert "there is no clip" in noisy(FixedPoint(), RingNoise())["transforms.1"]


def test_noise_over_a_data_dependent_divisor_is_refused_and_builds_over_a_fixed_one():
    found = problems(transforms=(CLIP, NOISE), aggregator=Mean())
    assert list(found) == ["aggregator"]
    assert "needs a divisor fixed in advance, but mean divides by what the data give" in found["aggregator"]
    assert "fixed-mean with a divisor" in found["aggregator"]
    assert problems(transforms=(CLIP, NOISE), aggregator=FixedMean(divisor=10)) == {}


def test_noise_with_scaffold_needs_one_joint_clip():
    scaffold = {"trainer": trainer(ControlVariate()), "server_optimizer": ServerSgd(branches=CONTROL)}
    assert noisy(CLIP, NOISE, **scaffold) == {}
    assert noisy(Clip(clip_norm=1.0, branches=("params", "control")), NOISE, **scaffold) == {}


def test_a_clip_that_leaves_a_branch_out_is_named_in_the_refusal():
    scaffold = {"trainer": trainer(ControlVariate()), "server_optimizer": ServerSgd(branches=CONTROL)}
    found = noisy(Clip(clip_norm=1.0, branches=("params",)), NOISE, **scaffold)
    assert list(found) == ["transforms.1"]
    assert "there is no clip" not in found["transforms.1"]
    assert "control is not bounded" in found["transforms.1"]
    assert "clip names other branches" in found["transforms.1"]


def test_noise_covers_averaged_buffers_too():
    averaged = Model(factory="any:thing", buffers="average")
    found = noisy(Clip(clip_norm=1.0, branches=("params",)), NOISE, model=averaged)
    assert "buffers is not bounded" in found["transforms.1"]
    assert noisy(CLIP, NOISE, model=averaged) == {}


def test_a_piece_that_claims_nothing_loses_the_guarantee_even_if_it_does_nothing():
    assert soundness.problems(
        {"transforms": (CLIP, TopK(), NOISE), "trainer": trainer(), "model": Model(factory="a:b")}
    )


# Order of linear and non-linear transforms


@pytest.mark.parametrize("linear", [CLIP, WEIGH, NormaliseBySteps()])
def test_a_linear_transform_outside_a_non_linear_one_is_refused_and_builds_inside(linear):
    found = problems(transforms=(INT8, linear))
    assert list(found) == ["transforms.1"]
    assert "is undone on the sum, but int8-rotation inside it is undone row by row" in found["transforms.1"]
    assert "before int8-rotation" in found["transforms.1"]
    assert problems(transforms=(linear, INT8)) == {}


@pytest.mark.parametrize("transforms", [(CLIP, INT8, NOISE), (CLIP, NOISE, INT8)])
def test_noise_and_a_compressor_are_told_apart_without_sending_the_user_in_a_circle(transforms):
    found = " ".join(noisy(*transforms).values())
    assert "remove int8-rotation" in found
    assert "list" not in found


def test_the_steps_are_normalised_before_the_update_is_weighed():
    found = problems(transforms=(WEIGH, NormaliseBySteps()))
    assert "list normalise-by-steps first" in found["transforms.1"]
    assert problems(transforms=(NormaliseBySteps(), WEIGH)) == {}


def test_a_transform_listed_twice_is_refused():
    assert "clip is listed twice; keep one" in problems(transforms=(CLIP, WEIGH, CLIP))["transforms.2"]


# Rules over rows, secure sums, rooms that are not there


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(fraction=0.1)])
@pytest.mark.parametrize("transform", [WEIGH, NormaliseBySteps(), FixedPoint()])
def test_a_rule_over_rows_refuses_what_means_something_in_a_sum_only(rule, transform):
    found = problems(transforms=(transform,), aggregator=rule)
    assert list(found) == ["transforms.0"]
    assert "makes sense under a sum" in found["transforms.0"]
    assert "or use the mean" in found["transforms.0"]
    assert problems(transforms=(transform,)) == {}
    assert problems(aggregator=rule) == {}


# Hooks, optimizers and branches


def test_hooks_on_a_trainer_without_gradients_are_refused():
    found = problems(trainer=StumpTrainer(hooks=(Prox(mu=0.1),)))
    assert list(found) == ["trainer.hooks"]
    assert "has no gradients to bend; remove the hooks" in found["trainer.hooks"]
    assert problems(trainer=StumpTrainer()) == {}


def test_control_variates_on_a_trainer_without_gradients_are_refused_without_a_crash():
    branches = ServerSgd(branches=CONTROL)
    found = problems(trainer=StumpTrainer(hooks=(ControlVariate(),)), server_optimizer=branches)
    assert "remove the hooks" in found["trainer.hooks"]


def test_steps_of_a_trainer_without_gradients_cannot_be_normalised():
    found = problems(trainer=StumpTrainer(), transforms=(NormaliseBySteps(),))
    assert "or remove it" in found["transforms.0"]


@pytest.mark.parametrize("optimizer", [Adam(), Sgd(learning_rate=0.1, momentum=0.9)])
def test_control_variates_need_sgd_without_momentum(optimizer):
    sections = {"server_optimizer": ServerSgd(branches=CONTROL)}
    found = problems(trainer=trainer(ControlVariate(), optimizer=optimizer), **sections)
    assert "derived for SGD without momentum; set trainer.optimizer to sgd" in found["trainer.hooks.0"]
    assert problems(trainer=trainer(ControlVariate()), **sections) == {}
    assert problems(trainer=trainer(Prox(mu=1.0), optimizer=optimizer)) == {}


def test_a_hook_listed_twice_is_refused():
    twice = trainer(ControlVariate(), Prox(mu=0.1), ControlVariate())
    found = problems(trainer=twice, server_optimizer=ServerSgd(branches=CONTROL))
    assert "control-variate is listed twice" in found["trainer.hooks.2"]


@pytest.mark.parametrize("work", [{"optimizer": Adam()}, {"optimizer": SGD, "hooks": (Prox(mu=0.1),)}])
def test_normalised_steps_need_sgd_without_hooks(work):
    found = problems(trainer=QuadraticTrainer(steps=1, **work), transforms=(NormaliseBySteps(),))
    assert "use the sgd optimizer and no hooks, or remove it" in found["transforms.0"]
    momentum = Sgd(learning_rate=0.1, momentum=0.9)
    assert problems(trainer=trainer(optimizer=momentum), transforms=(NormaliseBySteps(),)) == {}


def test_a_branch_without_a_server_optimizer_is_refused_with_the_line_to_write():
    found = problems(trainer=trainer(ControlVariate()))
    advice = 'control = { kind = "sgd", learning_rate = "included/population" }'
    assert advice in found["server_optimizer.branches.control"]
    assert problems(trainer=trainer(ControlVariate()), server_optimizer=ServerSgd(branches=CONTROL)) == {}


@pytest.mark.parametrize("name", ["control", "params", "buffers"])
def test_an_optimizer_of_a_branch_that_nothing_adds_is_refused(name):
    found = problems(server_optimizer=ServerSgd(branches={name: ServerSgd()}))
    assert f"no piece of the plan has a branch {name!r}; remove it" in found[f"server_optimizer.branches.{name}"]


def test_an_optimizer_of_a_branch_has_no_branches_itself():
    table = {"kind": "sgd", "branches": {"control": {"kind": "sgd", "branches": {"control": {"kind": "sgd"}}}}}
    assert "cannot have branches itself" in problems(server_optimizer=table)["server_optimizer"]


def test_other_server_optimizers_may_have_branches_too():
    optimizer = Momentum(branches={"control": ServerSgd(learning_rate="included/population")})
    assert problems(trainer=trainer(ControlVariate()), server_optimizer=optimizer) == {}


def test_a_clip_names_branches_that_exist():
    found = problems(transforms=(Clip(clip_norm=1.0, branches=("params", "contrl")),))
    assert "no branch 'contrl'" in found["transforms.0.branches"]
    found = problems(
        transforms=(Clip(clip_norm=1.0, branches=("contrl",)),),
        trainer=trainer(ControlVariate()),
        server_optimizer=ServerSgd(branches=CONTROL),
    )
    assert "did you mean 'control'" in found["transforms.0.branches"]


def test_a_clip_names_buffers_only_where_they_travel():
    clip = (Clip(clip_norm=1.0, branches=("params", "buffers")),)
    assert "no branch 'buffers'" in problems(transforms=clip)["transforms.0.branches"]
    assert problems(transforms=clip, model=Model(factory="a:b", buffers="average")) == {}


def test_a_clip_names_a_branch_once():
    table = {"kind": "clip", "clip_norm": 1.0, "branches": ["params", "params"]}
    assert "twice" in problems(transforms=[table])["transforms.0"]


# Features, metrics and stopping


def column(**settings):
    return Column(name="age", **settings)


def test_declared_scaling_needs_its_numbers():
    def features(scaling, *columns):
        return Features(label="y", scaling=scaling, columns=columns)

    found = problems(features=features("declared", column(center=1.0)))
    assert "needs center and scale of 'age'" in found["features.columns.0"]
    assert 'use "none"' in found["features.columns.0"]
    assert problems(features=features("declared", column(center=1.0, scale=2.0))) == {}
    assert problems(features=features("federated", column(low=0.0, high=2.0))) == {}
    assert problems(features=features("declared", column(kind="category", categories=("a",)))) == {}


def test_metrics_are_known_and_listed_once():
    found = problems(evaluation=Evaluation(metrics=("acuracy", "loss", "loss")))
    assert "did you mean 'accuracy'" in found["evaluation.metrics.0"]
    assert "listed twice" in found["evaluation.metrics.2"]


@pytest.mark.parametrize("metric", ["accuracy", "central.acc", "server.loss", "central", ".loss", "central.loss.x"])
def test_a_watched_metric_is_a_part_and_a_metric(metric):
    found = problems(stopping=Stopping(metric=metric, target=0.5))
    assert "such as central.accuracy" in found["stopping.metric"]


def test_a_watched_metric_is_measured():
    stopping = Stopping(metric="central.loss", target=0.5)
    found = problems(stopping=stopping, evaluation=Evaluation(metrics=("accuracy",)))
    assert "add it to evaluation.metrics" in found["stopping.metric"]
    assert problems(stopping=stopping, evaluation=Evaluation(metrics=("accuracy", "loss"))) == {}
    found = problems(stopping=stopping, evaluation=Evaluation(central=False))
    assert "evaluation.central is off" in found["stopping.metric"]
    assert problems(stopping=stopping) == {}


def test_every_check_is_run_and_every_problem_found_at_once():
    found = problems(
        transforms=(NOISE, CLIP),
        trainer=trainer(ControlVariate(), optimizer=Adam()),
        evaluation=Evaluation(metrics=("auk",)),
        privacy=PRIVACY,
    )
    assert set(found) == {
        "transforms.0",
        "transforms.1",
        "aggregator",
        "trainer.hooks.0",
        "server_optimizer.branches.control",
        "evaluation.metrics.0",
        "evaluation.federated",
    }


# Pieces of the user's own


@pytest.mark.parametrize("kind", ["hansa.testing:ValueNoise", "hansa.testing.transforms:ValueNoise"])
def test_pieces_of_the_users_own_are_checked_like_any_other(kind):
    assert "there is no clip" in noisy({"kind": kind})["transforms.0"]
    assert noisy({"kind": "clip", "clip_norm": 1.0}, {"kind": kind}) == {}


def test_a_registered_piece_by_its_full_name_is_that_piece():
    assert plan(transforms=["hansa.algorithms.transforms:WeighBySize"]) == plan(transforms=[{"kind": "weigh-by-size"}])


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ("transforms", "hansa.algorithms.samplers:Full"),
        ("aggregator", "hansa.algorithms.samplers:Full"),
        ("cohort", "hansa.algorithms.aggregators:Mean"),
        ("server_optimizer", "hansa.algorithms.aggregators:Mean"),
        ("trainer", "hansa.algorithms.aggregators:Mean"),
    ],
)
def test_a_piece_of_another_family_is_refused_and_says_what_it_lacks(section, kind):
    found = problems(**{section: [{"kind": kind}] if section == "transforms" else {"kind": kind}})
    (message,) = found.values()
    assert "lacks" in message


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("hansa.testing:NoSuch", "has no 'NoSuch'"),
        ("no_such_module:Thing", "No module named"),
        ("hansa.testing:quadratic_clients", "is not a piece"),
        (":Thing", "not of the form"),
        ("hansa.testing:", "not of the form"),
    ],
)
def test_a_piece_that_cannot_be_imported_is_a_problem_with_its_key_path(kind, what):
    found = problems(transforms=[{"kind": kind}])
    assert list(found) == ["transforms.0.kind"]
    assert what in found["transforms.0.kind"]


# Schedules

BUFFERED = Buffered(buffer_size=2, concurrency=4)


def test_buffers_pick_by_themselves_so_a_sampler_beside_them_is_refused():
    found = problems(schedule=BUFFERED, cohort=Uniform(size=3))
    assert list(found) == ["cohort"]
    assert "remove [cohort] and set schedule.concurrency" in found["cohort"]
    assert problems(schedule=BUFFERED) == {}


def test_a_rule_over_rows_beside_buffers_is_refused():
    found = problems(schedule=BUFFERED, aggregator=Median())
    assert list(found) == ["aggregator"]
    assert "use mean or fixed-mean" in found["aggregator"]
    assert problems(schedule=BUFFERED, aggregator=FixedMean(divisor=2)) == {}


def test_a_hook_that_keeps_states_is_refused_beside_buffers_and_one_that_does_not_is_fine():
    found = problems(schedule=BUFFERED, trainer=trainer(ControlVariate()), server_optimizer=ServerSgd(branches=CONTROL))
    assert list(found) == ["trainer.hooks.0"]
    assert 'use schedule = "sync"' in found["trainer.hooks.0"]
    assert problems(schedule=BUFFERED, trainer=trainer(Prox(mu=0.1))) == {}


def test_noise_beside_buffers_is_refused_as_staleness_would_scale_it_down():
    found = noisy(CLIP, NOISE, schedule=BUFFERED)
    assert list(found) == ["transforms.1"]
    assert "scale down below what protects people" in found["transforms.1"]
    assert noisy(CLIP, schedule=BUFFERED) == {}


def test_over_selection_and_goals_need_a_sampler_that_picks_a_number():
    for sampler in (Full(), Poisson(rate=0.5)):
        found = problems(schedule=Sync(over_selection=0.3), cohort=sampler)
        assert list(found) == ["schedule.over_selection"]
        assert "use uniform" in found["schedule.over_selection"]
    found = problems(schedule=Sync(report_goal=2), cohort=Poisson(rate=0.5))
    assert list(found) == ["schedule.report_goal"]
    found = problems(schedule=Sync(minimum_reports=2), cohort=Poisson(rate=0.5))
    assert list(found) == ["schedule.minimum_reports"]
    assert problems(schedule=Sync(report_goal=2)) == {}
    assert problems(schedule=Sync(over_selection=0.3, report_goal=2), cohort=Uniform(size=3)) == {}
