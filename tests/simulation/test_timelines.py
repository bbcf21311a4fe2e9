"""Rounds and buffers under a simulated clock: whose updates change the model, when, and what is told of it."""

from __future__ import annotations

import heapq
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

import hansa
from hansa.algorithms import rounds
from hansa.algorithms.fold import Fold
from hansa.algorithms.plan import plan_from_mapping
from hansa.algorithms.schedule import Round
from hansa.core.errors import RunError
from hansa.core.nouns import Assignment
from hansa.core.secure_aggregation import SecureAggregation
from hansa.simulation import engine as engine_module
from hansa.simulation.checkpoint import write_checkpoint
from hansa.simulation.client_store import ClientStore
from hansa.simulation.preparation import prepare
from hansa.simulation.timed_rounds import TimedRounds
from hansa.simulation.timeline import timeline_of
from hansa.simulation.work import encoded_bytes

HOSPITALS = ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


def plan(heart, **sections):
    return plan_from_mapping({"recipe": "fedavg", **heart, **sections})


def result(heart, path, **sections):
    return hansa.run(plan(heart, **sections), out=path)


def events(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def told(run):
    return [event for event in events(run) if event["event"] == "round"]


def devices(tmp_path, rows, **settings):
    """Return devices from a file with a row for each hospital: {column: [four values]}."""
    lines = [
        ["client", *rows],
        *([name, *map(str, cells)] for name, *cells in zip(HOSPITALS, *rows.values(), strict=True)),
    ]
    path = tmp_path / "devices.csv"
    path.write_text("\n".join(",".join(line) for line in lines) + "\n")
    return {"path": str(path), **settings}


PHONES = {"preset": "phones", "start_hour": 21.0}
BUFFERED = {"recipe": {"kind": "fedbuff", "buffer_size": 2, "concurrency": 3}}


# Rounds


def test_devices_that_lose_nobody_change_nothing_but_the_clock(heart, tmp_path):
    without = result(heart, tmp_path / "without", cohort={"kind": "uniform", "size": 3})
    classes = [{"name": "any", "speed_spread": 1.0}]
    within = result(heart, tmp_path / "within", cohort={"kind": "uniform", "size": 3}, devices={"classes": classes})
    assert within.summary["model_sha256"] == without.summary["model_sha256"]
    assert within.summary["plan_sha256"] == without.summary["plan_sha256"]
    clock = [event["simulated_seconds"] for event in told(within)]
    assert clock == sorted(clock)
    assert clock[0] > 0
    assert "simulated_seconds" not in told(without)[0]


def test_a_round_lasts_as_long_as_its_slowest_client(heart, tmp_path):
    slow = devices(tmp_path, {"speed": [1, 1, 0.001, 1]}, examples_per_second=100.0)
    run = result(heart, tmp_path / "run", devices=slow)
    (examples,) = (
        size
        for name, size in zip(run.summary["data"]["names"], run.summary["data"]["sizes"], strict=True)
        if name == "Switzerland"
    )
    each = told(run)[0]["simulated_seconds"]
    assert each == pytest.approx(examples / 0.1, rel=1e-3)
    assert told(run)[-1]["simulated_seconds"] == pytest.approx(len(told(run)) * each)


def test_who_misses_the_deadline_changes_nothing_and_is_counted_as_late(heart, tmp_path):
    """Switzerland is always late, so the model is that of the other three."""
    slow = devices(tmp_path, {"speed": [1, 1, 0.001, 1]})
    run = result(heart, tmp_path / "late", devices=slow, schedule={"kind": "sync", "round_deadline": 60.0})
    assert all((each["cohort"], each["late"], each["selected"]) == (3, 1, 4) for each in told(run))
    assert [each["simulated_seconds"] for each in told(run)] == [60.0 * number for number in range(1, 7)]
    assert told(run)[-1]["participants"] == 3
    prepared = prepare(plan(heart, devices=slow))
    model = safetensors.numpy.load_file(run.path / "model.safetensors")
    assert np.allclose(_flat(model), _three_hospitals(prepared), atol=1e-6)


def _flat(model):
    return np.concatenate([model[name].reshape(-1) for name in ("params/weight", "params/intercept")])


def _three_hospitals(prepared):
    """Return the parameters after the plan's rounds by its own functions, with three hospitals alone."""
    state = replace(prepared.first, features=_scaling(prepared))
    for number in range(1, prepared.plan.rounds + 1):
        cohort = np.array([0, 1, 3])
        assignment = Assignment(number, state.layout, state.model, cohort, 4, state.features)
        clients = prepared.clients(cohort, state.features)
        batch, _ = rounds.client_update(prepared.plan, assignment, clients, {}, prepared.streams)
        fold = Fold(state.layout)
        fold.add(batch, 0)
        state, _ = rounds.close_round(prepared.plan, state, fold.finish(prepared.plan.aggregator, 4))
    return state.model


def _scaling(prepared):
    from hansa.simulation.preparation import federated_scaling

    return federated_scaling(prepared)


def test_over_selection_closes_at_the_cohort_and_the_clock_is_faster_than_waiting(heart, tmp_path):
    phones = {"classes": [{"name": "any", "speed_spread": 1.0}]}
    cohort = {"kind": "uniform", "size": 2}
    waited = result(heart, tmp_path / "waited", cohort={"kind": "uniform", "size": 3}, devices=phones)
    closed = result(
        heart, tmp_path / "closed", cohort=cohort, devices=phones, schedule={"kind": "sync", "over_selection": 0.5}
    )
    assert all((each["selected"], each["cohort"], each["late"]) == (3, 2, 1) for each in told(closed))
    assert told(closed)[-1]["simulated_seconds"] < told(waited)[-1]["simulated_seconds"]


def test_a_round_without_enough_reports_is_tried_again_and_changes_nothing(heart, tmp_path):
    """Half of the attempts lose somebody; a goal of all four makes those be tried again."""
    fragile = {"classes": [{"name": "any", "losses_per_hour": 200.0}], "examples_per_second": 20.0}
    run = result(heart, tmp_path / "run", devices=fragile, schedule={"kind": "sync", "report_goal": 4})
    assert all(each["cohort"] == 4 for each in told(run))
    assert max(each["attempts"] for each in told(run)) > 1
    assert all(each["selected"] == 4 * each["attempts"] for each in told(run))
    assert all(each["dropped_out"] >= each["attempts"] - 1 for each in told(run))
    whole = result(heart, tmp_path / "whole")
    models = [safetensors.numpy.load_file(each.path / "model.safetensors") for each in (run, whole)]
    assert np.array_equal(_flat(models[0]), _flat(models[1]))


SPARSE = {"protocol": "secagg-plus", "server": "curious", "registrar": "server", "assumed_colluding": 1}


def test_a_sum_over_a_full_graph_in_place_of_a_sparse_one_needs_two_thirds_and_one_more(heart, tmp_path):
    """Of nine clients, of whom most are expected to be lost, every pair masks: seven must be left."""
    fragile = {"classes": [{"name": "any", "losses_per_hour": 400.0}], "examples_per_second": 20.0}
    data = heart["data"] | {"partition": {"kind": "iid", "clients": 9}}
    section = SPARSE | {"expected_dropout": 0.6, "max_weight": 200.0, "maximum_cohort": 9}
    run = result(heart, tmp_path / "run", data=data, devices=fragile, secure_aggregation=section)
    assert min(each["cohort"] for each in told(run)) >= 7
    assert max(each["attempts"] for each in told(run)) > 1


@pytest.mark.parametrize(
    ("changes", "lost", "counted"),
    [
        ({}, 9, 3),
        ({}, 10, None),
        ({"protocol": "secagg-full"}, 3, 9),
        ({"protocol": "secagg-full"}, 4, None),
        ({"minimum_cohort": 13}, 0, None),
        ({"protocol": "secagg-full", "group_size": 6}, 1, 11),
        ({"protocol": "secagg-full", "group_size": 6}, 2, 6),  # the first group's sum is not shown, the other's is
        ({"protocol": "secagg-full", "group_size": 6}, 8, None),
    ],
)
def test_of_a_cohort_those_count_whose_sum_a_federation_would_show(changes, lost, counted):
    plan = SimpleNamespace(secure_aggregation=SecureAggregation(**SPARSE | changes))
    timed = TimedRounds(SimpleNamespace(prepared=SimpleNamespace(plan=plan)))
    played = Round(tuple(range(12)), goal=12, at_goal=False)
    for client in played.cohort:
        (played.lose if client < lost else played.report)(client, 1.0)
    found = timed._counted(played)
    assert found == (None if counted is None else list(range(12 - counted, 12)))


def test_a_goal_that_is_never_reached_ends_the_run_with_what_to_do(heart, tmp_path):
    slow = devices(tmp_path, {"speed": [1, 1, 0.001, 1]})
    schedule = {"kind": "sync", "report_goal": 4, "round_deadline": 10.0}
    with pytest.raises(RunError, match="Lower schedule.minimum_reports or report_goal") as caught:
        result(heart, tmp_path / "run", devices=slow, schedule=schedule)
    assert caught.value.code == "HANSA-RUN-STALLED"


def test_only_clients_that_can_be_reached_are_picked_and_the_server_waits_for_them(heart, tmp_path):
    hours = devices(tmp_path, {"available": ["6-8", "6-8", "6-7", "7-8"]}, start_hour=0.0)
    run = result(heart, tmp_path / "run", devices=hours)
    assert told(run)[0]["simulated_seconds"] >= 6 * 3600
    assert all(each["selected"] == 3 for each in told(run))
    shut = devices(tmp_path, {"available": ["30-31"] * 4}, period_hours=24.0)
    with pytest.raises(hansa.HansaError, match="period_hours"):
        result(heart, tmp_path / "shut", devices=shut)


def test_a_cohort_of_a_number_is_filled_from_those_who_can_be_reached(heart, tmp_path):
    hours = devices(tmp_path, {"available": ["0-1", "", "", "0-1"]}, start_hour=12.0)
    run = result(heart, tmp_path / "run", cohort={"kind": "uniform", "size": 2}, devices=hours)
    assert all((each["selected"], each["cohort"]) == (2, 2) for each in told(run))
    assert told(run)[-1]["participants"] == 2


def test_a_client_whose_hours_end_while_it_works_is_lost(heart, tmp_path):
    hours = devices(tmp_path, {"speed": [1, 1, 0.0001, 1], "available": ["", "", "0-1", ""]})
    run = result(heart, tmp_path / "run", devices=hours, rounds=1)
    assert [(each["cohort"], each["dropped_out"]) for each in told(run)] == [(3, 1)]
    assert told(run)[0]["simulated_seconds"] == 3600.0


def test_bytes_are_those_of_the_model_and_of_the_encoded_update(heart, tmp_path):
    transforms = [{"kind": "weigh-by-size"}, {"kind": "int8-rotation"}]
    run = result(heart, tmp_path / "run", transforms=transforms, devices={"preset": "hospitals"})
    first = told(run)[0]
    assert first["bytes_up_total"] == first["bytes_up"] * first["reported"]
    assert first["bytes_down_total"] == first["bytes_down"] * first["selected"]


@pytest.mark.parametrize("recipe", ["fedavg", "scaffold", "fednova", "fedbuff"])
def test_the_size_of_an_update_is_known_before_anyone_trains(recipe, heart):
    given = {"kind": recipe, **({"buffer_size": 1, "concurrency": 1} if recipe == "fedbuff" else {})}
    prepared = prepare(plan(heart, recipe=given, devices={"preset": "hospitals"}))
    cohort = np.arange(1)
    assignment = Assignment(1, prepared.first.layout, prepared.first.model, cohort, 4, _scaling(prepared))
    states = {name: row[None] for name, row in prepared.first_rows.items()}
    clients = prepared.clients(cohort, assignment.features)
    batch, _ = rounds.client_update(prepared.plan, assignment, clients, states, prepared.streams)
    assert encoded_bytes(prepared) == batch.bytes_each


def test_a_client_that_is_not_included_keeps_its_states(heart, tmp_path, monkeypatch):
    """Switzerland never reports in time, so its control variate stays at zero."""
    seen = {}
    states = ClientStore.states

    def watching(self, ordinals):
        seen.update(dict.fromkeys(ordinals.tolist()))
        return states(self, ordinals)

    monkeypatch.setattr(ClientStore, "states", watching)
    slow = devices(tmp_path, {"speed": [1, 1, 0.001, 1]})
    schedule = {"kind": "sync", "round_deadline": 60.0}
    evaluation = {"every": 100, "federated": False}
    result(heart, tmp_path / "run", recipe="scaffold", devices=slow, schedule=schedule, evaluation=evaluation)
    assert sorted(seen) == [0, 1, 3]


# Buffers


def naive_buffers(prepared, schedule):
    """Return the model of algorithm 1 of Nguyen et al. 2022, trained as clients start, with everyone at work."""
    fleet, population = prepared.fleet, prepared.population
    state = replace(prepared.first, features=_scaling(prepared))
    sizes = prepared.data.train.sizes(np.arange(population))
    seconds = fleet.seconds(
        np.arange(population),
        sizes.astype(float),
        down_bytes=state.model.nbytes,
        up_bytes=encoded_bytes(prepared),
    )
    working, buffer, now, idle, starts = [], [], 0.0, list(range(population)), 0
    while state.round < prepared.plan.rounds:
        for client in idle:
            cohort = np.array([client])
            assignment = Assignment(state.round + 1, state.layout, state.model, cohort, population, state.features)
            clients = prepared.clients(cohort, state.features)
            batch, _ = rounds.client_update(prepared.plan, assignment, clients, {}, prepared.streams)
            starts += 1
            heapq.heappush(working, (now + seconds[client], starts, client, state.round, batch.values[0]))
        now, _, client, version, update = heapq.heappop(working)
        staleness = state.round - version
        idle = [client]
        if schedule.max_staleness is not None and staleness > schedule.max_staleness:
            continue
        buffer.append((client, round(256 / (1 + staleness) ** 0.5) / 256 * update.astype(np.float64)))
        idle = []
        if len(buffer) == schedule.buffer_size:
            mean = sum(update for _, update in buffer) / schedule.buffer_size
            state = replace(state, round=state.round + 1, model=(state.model + mean).astype(np.float32))
            idle, buffer = [client for client, _ in buffer], []
    return state.model, now


@pytest.mark.parametrize(("buffer_size", "max_staleness"), [(1, None), (2, None), (3, None), (1, 1)])
def test_buffers_are_those_of_the_published_algorithm(buffer_size, max_staleness, heart, tmp_path):
    speeds = devices(tmp_path, {"speed": [2.0, 1.3, 0.06, 0.4]}, examples_per_second=100.0)
    schedule = {"kind": "buffered", "buffer_size": buffer_size, "concurrency": 4}
    schedule |= {} if max_staleness is None else {"max_staleness": max_staleness}
    recipe = {"kind": "fedbuff", "buffer_size": buffer_size, "concurrency": 4}
    sections = {"recipe": recipe, "schedule": schedule, "devices": speeds, "rounds": 30}
    run = result(heart, tmp_path / "run", **sections)
    prepared = prepare(plan(heart, **sections))
    expected, at = naive_buffers(prepared, prepared.plan.schedule)
    assert np.allclose(_flat(safetensors.numpy.load_file(run.path / "model.safetensors")), expected, atol=1e-5)
    assert told(run)[-1]["simulated_seconds"] == pytest.approx(at)
    assert max(each["staleness_max"] for each in told(run)) > 0
    if max_staleness is not None:
        assert max(each["staleness_max"] for each in told(run)) <= max_staleness
        assert sum(each["too_stale"] for each in told(run)) > 0


def test_a_buffer_without_staleness_is_a_round(heart, tmp_path):
    """One client at a time and a buffer of one: nobody is ever behind."""
    recipe = {"kind": "fedbuff", "buffer_size": 1, "concurrency": 1}
    run = result(heart, tmp_path / "run", recipe=recipe, devices={"preset": "hospitals"}, rounds=9)
    assert all((each["staleness_max"], each["cohort"], each["selected"]) == (0, 1, 1) for each in told(run))


def test_a_buffered_run_waits_for_clients_and_says_so_where_none_ever_come(heart, tmp_path):
    hours = devices(tmp_path, {"available": ["6-8", "6-8", "6-7", "7-8"]}, start_hour=0.0)
    run = result(heart, tmp_path / "run", **BUFFERED, devices=hours)
    assert told(run)[0]["simulated_seconds"] >= 6 * 3600
    lost = {"classes": [{"name": "any", "losses_per_hour": 1e-9, "available": "0-0.001"}], "start_hour": 1.0}
    with pytest.raises(RunError, match="Widen the hours") as caught:
        result(heart, tmp_path / "lost", **BUFFERED, devices={**lost, "period_hours": 1.55})
    assert caught.value.code == "HANSA-RUN-STALLED"
    frail = {"classes": [{"name": "any", "losses_per_hour": 1e9}]}
    with pytest.raises(RunError, match="0 reported in time for version 1"):
        result(heart, tmp_path / "frail", **BUFFERED, devices=frail)


def test_models_of_versions_that_nobody_trains_from_are_dropped(heart, tmp_path, monkeypatch):
    kept = []
    apply = engine_module.ClientStore.apply

    def counting(self, *arguments):
        kept.append(len(list(self.folder.glob("version-*"))))
        apply(self, *arguments)

    monkeypatch.setattr(engine_module.ClientStore, "apply", counting)
    result(heart, tmp_path / "run", **BUFFERED, devices={"preset": "hospitals"}, rounds=40)
    assert max(kept) < 12


@pytest.mark.parametrize("executor", ["serial", "batched"])
def test_executors_agree_on_buffers_and_repeat_them_bit_for_bit(executor, heart, tmp_path):
    prepared_plan = plan(heart, **BUFFERED, devices={"preset": "hospitals"})
    serial = hansa.run(prepared_plan, out=tmp_path / "serial")
    chunk = {} if executor == "serial" else {"chunk": 4, "workers": 1}
    other = hansa.run(prepared_plan, out=tmp_path / "other", executor=executor, **chunk)
    models = [safetensors.numpy.load_file(run.path / "model.safetensors") for run in (serial, other)]
    assert np.allclose(_flat(models[0]), _flat(models[1]), atol=1e-6)
    assert hansa.replay(other.path).differences == ()


# Both


@pytest.mark.parametrize("round_number", [1, 4])
@pytest.mark.parametrize("place", ["before the rename", "after the rename"])
@pytest.mark.parametrize("kind", ["sync", "buffered"])
def test_a_timed_run_killed_anywhere_goes_on_to_the_same_model(kind, place, round_number, heart, tmp_path, monkeypatch):
    rough = {"classes": [{"name": "any", "speed_spread": 1.0, "losses_per_hour": 100.0, "available": "6-18"}]}
    rough |= {"start_hour": 5.0, "examples_per_second": 30.0}
    sync = {"cohort": {"kind": "uniform", "size": 2}, "schedule": {"kind": "sync", "over_selection": 0.5}}
    sections = sync if kind == "sync" else BUFFERED
    whole = result(heart, tmp_path / "whole", devices=rough, **sections)

    def kill_here(folder, checkpoint):
        if checkpoint.state.round == round_number and place == "before the rename":
            raise Killed
        write_checkpoint(folder, checkpoint)
        if checkpoint.state.round == round_number and place == "after the rename":
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "write_checkpoint", kill_here)
        with pytest.raises(Killed):
            result(heart, tmp_path / "killed", devices=rough, **sections)
    resumed = hansa.resume(tmp_path / "killed")
    assert resumed.summary["model_sha256"] == whole.summary["model_sha256"]
    measured = {"seconds"}
    strip = [[{k: v for k, v in each.items() if k not in measured} for each in told(run)] for run in (resumed, whole)]
    assert strip[0] == strip[1]


def test_a_file_of_devices_that_changed_is_told_on_resume(heart, tmp_path):
    slow = devices(tmp_path, {"speed": [1, 1, 0.5, 1]})
    run = result(heart, tmp_path / "run", devices=slow)
    devices(tmp_path, {"speed": [1, 1, 0.7, 1]})
    with pytest.raises(RunError, match="devices_sha256 was") as caught:
        hansa.replay(run.path)
    assert caught.value.code == "HANSA-RUN-CHANGED"


@pytest.mark.parametrize("sections", [BUFFERED, {"schedule": {"kind": "sync", "round_deadline": 3000.0}}])
def test_nothing_about_one_client_is_in_what_a_clock_tells(sections, heart, tmp_path):
    run = result(heart, tmp_path / "run", devices=PHONES, **sections)
    for event in told(run):
        assert all(isinstance(value, int | float | str | None) for value in event.values())
        assert not any(name in json.dumps(event) for name in HOSPITALS)


def test_the_cost_of_opening_does_not_grow_with_the_population(heart, tmp_path):
    """Opening a round of a fleet draws for its cohort only."""
    prepared = prepare(plan(heart, devices={"preset": "hospitals"}, cohort={"kind": "uniform", "size": 2}))
    asked = []
    fleet = prepared.fleet
    watching = type("Watching", (), {})()
    for name in ("seconds", "lost_after", "reachable_for"):

        def call(clients, *arguments, _name=name, **named):
            asked.append(len(clients))
            return getattr(fleet, _name)(clients, *arguments, **named)

        setattr(watching, name, call)
    watching.always, watching.devices = fleet.always, fleet.devices
    timeline = timeline_of(replace(prepared, fleet=watching))
    (tmp_path / "checkpoint").mkdir()
    store = ClientStore(tmp_path / "checkpoint", prepared.data.train.names, {})
    timeline.open(prepared.first, store)
    assert max(asked) <= 2
