"""The four functions of a round, and the prologue before the first."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
import pytest

from hansa import Plan, recipe
from hansa.algorithms import rounds
from hansa.algorithms.aggregators import FixedMean, Mean
from hansa.algorithms.fold import Fold
from hansa.algorithms.prologue import client_statistics, close_prologue, declared_scaling, statistics_layout
from hansa.algorithms.samplers import Full
from hansa.core.errors import PlanError
from hansa.core.layout import Branch, Layout, Parameter
from hansa.core.nouns import Aggregate, ClientBatch, InitialModel, Signature
from hansa.core.schema import Doc
from hansa.core.sections import Column, Features
from hansa.core.streams import Streams
from hansa.testing import MemoryClients, MemoryView, Rehearsal, StumpTrainer, quadratic_clients, quadratic_signature

TRAINER = {"kind": "hansa.testing:QuadraticTrainer", "steps": 2, "optimizer": {"kind": "sgd", "learning_rate": 0.1}}


@dataclass(frozen=True, kw_only=True)
class UnitStep:
    """Moves by the direction of the update: every entry's step depends on all."""

    branches: dict = field(default_factory=dict)

    def start(self, size):
        return {}

    def step(self, model, update, slot, included_share):
        return model + update / np.linalg.norm(update), {}


def plan(method=None, **sections):
    sections = {"name": "x", "rounds": 3, "model": {"factory": "a:b"}, "trainer": TRAINER} | sections
    return recipe(method, **sections) if method else Plan(**sections)


def rehearsal(method=None, clients=5, **sections):
    random = np.random.default_rng(0)
    optima = [random.standard_normal(3) for _ in range(clients)]
    return Rehearsal(plan(method, **sections), quadratic_clients([np.eye(3)] * clients, optima), quadratic_signature(3))


def test_start_adds_a_branch_of_zeros_for_every_hook_and_a_lane_for_every_transform():
    state = rehearsal("scaffold", transforms=[{"kind": "clip", "clip_norm": 1.0}]).state
    assert [branch.name for branch in state.layout.branches] == ["params", "control"]
    assert not state.model.any()
    assert state.round == 0
    assert set(state.layout.lane_index) == {
        "count", "non_finite", "train_loss", "weight.params", "weight.control", "below_clip",
    }  # fmt: skip
    assert set(state.slots) == {"server_optimizer.params", "server_optimizer.control"}


def test_clients_start_with_rows_of_zeros_for_every_hook():
    one = rehearsal("scaffold")
    assert one.states["client_control"].shape == (5, 3)
    assert not one.states["client_control"].any()


def test_the_four_functions_change_nothing_that_they_are_given():
    one = rehearsal("scaffold", server_optimizer={"kind": "adam", "branches": {"control": {"kind": "sgd"}}})
    one.play(1)
    before = (
        one.state,
        one.state.model.copy(),
        {k: {n: a.copy() for n, a in s.items()} for k, s in one.state.slots.items()},
    )
    states = one.states["client_control"]
    copy = states.copy()
    one.play(1)
    assert one.state is not before[0]
    np.testing.assert_array_equal(before[0].model, before[1])
    np.testing.assert_array_equal(states, copy)
    for key, slot in before[2].items():
        for name, array in slot.items():
            np.testing.assert_array_equal(before[0].slots[key][name], array)


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fednova", "fedadam"])
def test_chunks_of_clients_give_the_model_of_one_by_one(method):
    models = []
    for chunk in (1, 2, 100):
        one = rehearsal(method, clients=40)
        one.chunk = chunk
        models.append(one.play(3)[-1])
    np.testing.assert_allclose(models[1], models[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(models[2], models[0], rtol=1e-5, atol=1e-7)


def test_rounds_are_numbered_from_one_and_reported():
    one = rehearsal("fedavg")
    one.play()
    assert [report.round for report in one.reports] == [1, 2, 3]
    assert {report.count for report in one.reports} == {5}
    assert one.reports[-1].model_norm == pytest.approx(np.linalg.norm(one.params), rel=1e-6)
    assert all(a.train_loss > b.train_loss for a, b in zip(one.reports, one.reports[1:], strict=False))


def test_the_update_norm_is_that_of_the_combined_update():
    one = rehearsal("fedavg")
    first = one.play(1)[0]
    assert one.reports[0].update_norm == pytest.approx(np.linalg.norm(first), rel=1e-6)


def test_an_empty_cohort_leaves_the_model_and_reports_no_loss():
    one = rehearsal("fedavg", cohort={"kind": "poisson", "rate": 1e-12})
    one.play(2)
    assert not one.params.any()
    assert one.reports[0].count == 0
    assert one.reports[0].train_loss is None
    assert one.reports[0].update_norm == 0


def test_an_empty_cohort_under_a_median_leaves_the_model():
    one = rehearsal(cohort={"kind": "poisson", "rate": 1e-12}, aggregator="median")
    one.play(1)
    assert not one.params.any()


def test_a_fixed_divisor_shrinks_the_step_of_a_small_cohort():
    whole = rehearsal().play(1)[0]
    half = rehearsal(aggregator={"kind": "fixed-mean", "divisor": 10}).play(1)[0]
    np.testing.assert_allclose(half, whole / 2, rtol=1e-6)


def test_a_median_of_updates_moves_the_model_by_the_median():
    one = rehearsal(aggregator="median", clients=7)
    model = one.play(1)[0]
    optima = np.stack([x[0, -1] for x in one.data.x])
    np.testing.assert_allclose(model, 0.19 * np.median(optima, axis=0), rtol=1e-5)


def test_averaged_buffers_take_the_mean_and_no_server_optimizer():
    """A layout with buffers, folded by hand: momentum moves the parameters only."""
    base = plan("fedavgm", momentum=0.9)
    layout = rehearsal().state.layout.branches[0]
    model = InitialModel(
        Layout((layout, Branch("buffers", (Parameter("mean", (2,)),)))), np.arange(5, dtype=np.float32)
    )
    state = rounds.start(base, model)
    for _ in range(2):
        lanes = state.layout.encode_lanes({"count": np.ones(1)}, 1).sum(axis=0)
        weights = {"params": 2.0, "buffers": 4.0}
        state, _ = rounds.close_round(base, state, Aggregate(np.full(5, 4.0), weights, lanes, 1, 1, state.layout))
    np.testing.assert_allclose(state.model, [0 + 2 + 3.8, 1 + 5.8, 2 + 5.8, 3 + 2, 4 + 2])


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adagrad", "adam", "yogi"])
def test_a_large_branch_that_goes_range_by_range_takes_the_step_of_the_whole(optimizer, monkeypatch):
    base = plan(server_optimizer={"kind": optimizer, "learning_rate": 0.1})
    layout = Layout((Branch("params", (Parameter("weight", (100,)),)),))
    random = np.random.default_rng(1)

    def after_two_steps():
        state = rounds.start(base, InitialModel(layout, np.linspace(-1, 1, 100, dtype=np.float32)))
        lanes = state.layout.encode_lanes({"count": np.ones(1)}, 1).sum(axis=0)
        for values in random_values:
            state, report = rounds.close_round(
                base, state, Aggregate(values.copy(), {"params": 3.0}, lanes, 1, 1, state.layout)
            )
        return state, report

    random_values = random.standard_normal((2, 100))
    whole, told = after_two_steps()
    monkeypatch.setattr(rounds, "RANGE", 32)
    ranges, told_again = after_two_steps()
    np.testing.assert_array_equal(ranges.model, whole.model)
    for name, array in whole.slots["server_optimizer.params"].items():
        np.testing.assert_array_equal(ranges.slots["server_optimizer.params"][name], array)
    assert told_again.update_norm == pytest.approx(told.update_norm)
    assert told_again.model_norm == pytest.approx(told.model_norm)


def test_an_optimizer_that_claims_nothing_sees_a_large_branch_as_a_whole(monkeypatch):
    monkeypatch.setattr(rounds, "RANGE", 2)
    base = plan(server_optimizer={"kind": "tests.algorithms.test_rounds:UnitStep"})
    state = rehearsal().state
    lanes = state.layout.encode_lanes({"count": np.ones(1)}, 1).sum(axis=0)
    closed, _ = rounds.close_round(
        base, state, Aggregate(np.array([3.0, 0.0, 4.0]), {"params": 1.0}, lanes, 1, 1, state.layout)
    )
    np.testing.assert_allclose(closed.model, [0.6, 0.0, 0.8])


def test_a_branch_to_which_nobody_contributed_keeps_its_values_and_its_slot():
    base = plan("fedavgm")
    state = rehearsal("fedavgm").state
    lanes = state.layout.encode_lanes({"count": np.ones(1)}, 1).sum(axis=0)
    closed, report = rounds.close_round(base, state, Aggregate(np.ones(3), {"params": 0.0}, lanes, 1, 1, state.layout))
    assert not closed.model.any()
    assert closed.round == 1
    assert report.update_norm == 0


def test_a_loss_that_is_not_finite_does_not_colour_the_mean_loss_of_the_others():
    x = [np.array([[1.0]], np.float32)] * 2
    plan_ = plan("fedsgd", model={"factory": "hansa.training.linear:regression"},
                 trainer={"kind": "linear", "optimizer": {"kind": "sgd", "learning_rate": 0.1}})  # fmt: skip
    one = Rehearsal(plan_, MemoryClients(x, [np.array([2.0]), np.array([np.inf])]), Signature((1,), 0))
    with np.errstate(all="ignore"):
        one.play(1)
    assert one.reports[0].non_finite == 1
    assert one.reports[0].train_loss == pytest.approx(4.0)


def test_a_client_whose_update_is_not_finite_keeps_the_states_that_it_had():
    one = rehearsal("scaffold")
    one.play(1)
    before = one.states["client_control"].copy()
    one.data.x[2][:] = np.nan
    with np.errstate(all="ignore"):
        one.play(1)
    assert one.reports[-1].non_finite == 1
    np.testing.assert_array_equal(one.states["client_control"][2], before[2])
    assert not np.array_equal(one.states["client_control"][1], before[1])
    assert np.isfinite(one.state.model).all()


def test_the_stump_trainer_learns_the_leaves_without_gradients():
    x = [np.array([[-1.0], [2.0], [3.0]], np.float32), np.array([[-4.0]], np.float32)]
    y = [np.array([1.0, 5.0, 7.0], np.float32), np.array([3.0], np.float32)]
    one = Rehearsal(plan(trainer=StumpTrainer()), MemoryClients(x, y), Signature((1,), 0))
    np.testing.assert_allclose(one.play(1)[0], [2.0, 3.0])
    outputs = one.plan.trainer.predict(one.plan.model, one.signature, one.params, x[0], {})
    np.testing.assert_allclose(outputs[:, 0], [2.0, 3.0, 3.0])


def test_the_cohort_is_drawn_from_the_view_and_the_coins_of_the_round():
    one = rehearsal(cohort={"kind": "uniform", "size": 2})
    coins = Streams(0).of("cohort", 1).coins
    first = rounds.open_round(one.plan, one.state, MemoryView(5), coins())
    again = rounds.open_round(one.plan, one.state, MemoryView(5), coins())
    assert first.cohort.tolist() == again.cohort.tolist()
    assert first.round == 1
    assert first.population == 5


# The prologue


@dataclass(frozen=True, kw_only=True)
class Drawing(Full):
    """Draws what it is told to."""

    what: Annotated[str, Doc("a name")]

    def draw(self, eligible, round_number, coins):
        return DRAWS[self.what]


DRAWS = {
    "floats": np.array([0.0, 1.0]),
    "mask": np.array([True, False, True, False, False]),
    "rows": np.array([[0, 1]]),
    "one": 3,
    "none": None,
    "ragged": [[1], [1, 2]],
    "names": ["client-0"],
    "twice": np.array([2, 0, 2]),
    "negative": np.array([-1, 2]),
    "beyond": np.array([0, 5]),
    "list": [4, 0],
    "small integers": np.array([4, 0], dtype=np.uint8),
    "nobody": [],
}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("floats", r"a ndarray of float64 with shape \[2\]"),
        ("mask", r"of bool"),
        ("rows", r"shape \[1, 2\]"),
        ("one", r"a int of int64 with shape \[\]"),
        ("none", r"a NoneType"),
        ("ragged", r"a list"),
        ("names", r"of <U8"),
        ("twice", r"3 ordinals of which 2 are distinct"),
        ("negative", r"the ordinals -1 to 2"),
        ("beyond", r"the ordinals 0 to 5; .* from 0 to 4"),
    ],
)
def test_what_a_sampler_draws_is_checked(what, words):
    with pytest.raises(PlanError, match=words) as error:
        rehearsal("fedavg", cohort={"kind": f"{__name__}:Drawing", "what": what}).play(1)
    assert [problem.path for problem in error.value.problems] == ["cohort"]
    assert f"{__name__}:Drawing" in str(error.value)


@pytest.mark.parametrize(("what", "cohort"), [("list", [4, 0]), ("small integers", [4, 0]), ("nobody", [])])
def test_ordinals_of_any_form_are_taken(what, cohort):
    one = plan("fedavg", cohort={"kind": f"{__name__}:Drawing", "what": what})
    state = rehearsal("fedavg").state
    found = rounds.open_round(one, state, MemoryView(5), Streams(0).of("cohort").coins()).cohort
    assert found.dtype == np.int64
    assert found.tolist() == cohort


COLUMNS = (
    Column(name="age", low=0.0, high=100.0),
    Column(name="sex", kind="category", categories=("f", "m")),
    Column(name="flat", low=-1.0, high=3.0),
)


def prologue(rows, columns=COLUMNS, chunk=2, **settings):
    """Run the prologue over clients' encoded rows [n_i, slots]."""
    features = Features(label="y", columns=columns, **settings)
    base = plan(features=features)
    data = MemoryClients([np.asarray(x, np.float32) for x in rows], [np.zeros(len(x)) for x in rows])
    fold = Fold(statistics_layout(features))
    for start in range(0, len(rows), chunk):
        ordinals = np.arange(start, min(start + chunk, len(rows)))
        fold.add(client_statistics(base, ClientBatch(ordinals, data, Signature((len(features.slots()),), 2))), start)
    total = fold.finish(FixedMean(divisor=1.0), len(rows))
    state = replace(rehearsal().state)
    return close_prologue(base, state, total).features


def test_the_prologue_is_the_mean_and_spread_of_all_examples():
    random = np.random.default_rng(0)
    ages = [random.uniform(20, 90, n) for n in (3, 50, 1, 8)]
    rows = [np.column_stack([a, a * 0, a * 0 + 1, a * 0, a * 0 + 0.5]) for a in ages]
    scaling = prologue(rows)
    pooled = np.concatenate(ages)
    np.testing.assert_allclose(scaling.center, [pooled.mean(), 0, 0, 0, 0.5], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scaling.scale, [pooled.std(), 1, 1, 1, 2], rtol=1e-4)


def test_values_beyond_the_declared_bounds_count_as_the_bounds_and_missing_ones_not_at_all():
    rows = [[[-50.0], [200.0], [np.nan]], [[100.0]]]
    scaling = prologue(rows, columns=COLUMNS[:1])
    values = np.array([0.0, 100.0, 100.0])
    np.testing.assert_allclose([scaling.center[0], scaling.scale[0]], [values.mean(), values.std()], rtol=1e-5)


def test_a_column_that_nobody_has_keeps_its_middle_and_half_range():
    scaling = prologue([[[np.nan]]], columns=COLUMNS[:1])
    np.testing.assert_allclose([scaling.center[0], scaling.scale[0]], [50, 50])


def test_federated_scaling_without_bounds_is_refused_with_the_column():
    columns = (Column(name="age", low=0.0, high=1.0), Column(name="weight"))
    with pytest.raises(PlanError, match="'weight' in fixed point and needs its low and high") as error:
        statistics_layout(Features(label="y", columns=columns))
    assert [problem.path for problem in error.value.problems] == ["features.columns.1"]


def test_declared_scaling_is_what_the_plan_says():
    columns = (Column(name="age", center=40.0, scale=10.0), COLUMNS[1])
    scaling = declared_scaling(Features(label="y", columns=columns, scaling="declared"))
    np.testing.assert_array_equal(scaling.center, [40, 0, 0, 0])
    np.testing.assert_array_equal(scaling.scale, [10, 1, 1, 1])
    plain = declared_scaling(Features(label="y", columns=columns, scaling="none"))
    np.testing.assert_array_equal(plain.scale, [1, 1, 1, 1])
    assert declared_scaling(None) is None


def test_the_prologue_sums_lanes_exactly_in_any_chunks():
    random = np.random.default_rng(1)
    rows = [random.uniform(0, 100, (n, 1)) for n in (5, 9, 2, 30, 1)]
    one, other = prologue(rows, COLUMNS[:1], chunk=1), prologue(rows, COLUMNS[:1], chunk=5)
    np.testing.assert_array_equal(one.center, other.center)
    np.testing.assert_array_equal(one.scale, other.scale)


def test_a_mean_keeps_its_lanes_for_each_branch():
    one = rehearsal("scaffold", transforms=["weigh-by-size"])
    fold = Fold(one.state.layout)
    clients = ClientBatch(np.arange(5), one.data, one.signature)
    assignment = rounds.open_round(one.plan, one.state, one.view, Streams(0).of("cohort", 1).coins())
    batch, _ = rounds.client_update(one.plan, assignment, clients, one.states, one.streams)
    fold.add(batch, 0)
    assert fold.finish(Mean(), 5).weights == {"params": 5.0, "control": 5.0}
