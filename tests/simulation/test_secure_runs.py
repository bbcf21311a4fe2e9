"""Runs with secure sums: one sum whatever computes it, near the clear one, for every method, evaluation included."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import hansa
from hansa.algorithms.fixed_point import vectors
from hansa.algorithms.plan import plan_from_mapping
from hansa.algorithms.secure_sums import RingFold, RingRows
from hansa.core.errors import PlanError, RefusedError
from hansa.core.ring import Ring, Segment
from hansa.simulation import exact_sums, secure_sum
from hansa.simulation.exact_sums import exact_sum
from hansa.simulation.preparation import federated_scaling, prepare

CLIENTS = 23
COMMON = {
    "name": "secure",
    "seed": 5,
    "rounds": 3,
    "data": {"source": "synthetic", "arguments": {"clients": CLIENTS, "features": 6, "classes": 3}},
    "model": {"factory": "hansa.training.linear:softmax"},
    "trainer": {"kind": "linear", "epochs": 2, "batch_size": 8, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
    "cohort": {"kind": "uniform", "size": 11},
    "evaluation": {"every": 1000},
}
FINE = {"max_weight": 100.0, "value_bits": 12, "weight_bits": 4}
SECURE = {"secure_aggregation": FINE}
HEART_SECURE = {"maximum_cohort": 4, "max_weight": 300.0}
METHODS = ["fedavg", "fedsgd", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "scaffold", "fednova"]


@pytest.fixture(autouse=True)
def _working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(tables, executor="serial", **how):
    return hansa.run(plan_from_mapping(tables), executor=executor, **how)


def model_of(result):
    return hansa.load_model(result.model).values if hasattr(hansa, "load_model") else _tensors(result)


def _tensors(result):
    from safetensors.numpy import load_file

    tensors = load_file(result.model)
    return np.concatenate([tensors[name].astype(np.float64).reshape(-1) for name in sorted(tensors)])


WAYS = [("serial", {}), ("batched", {"chunk": 4, "workers": 1}), ("batched", {"chunk": 8, "workers": 2}),
        ("process", {"chunk": 4, "workers": 2})]  # fmt: skip


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_every_executor_and_chunk_gives_the_same_model_bit_for_bit(method):
    tables = {"recipe": method, **COMMON, "secure_aggregation": {"max_weight": 100.0, "rotation": method == "scaffold"}}
    found = {run(tables, executor, **how).summary["model_sha256"] for executor, how in WAYS}
    assert len(found) == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_rounds_is_near_its_clear_sum(method):
    tables = {"recipe": method, **COMMON}
    if method == "fedsgd":
        tables["trainer"] = {**COMMON["trainer"], "epochs": 1, "batch_size": "all"}
    clear, secure = model_of(run(tables)), model_of(run(tables | SECURE))
    assert not np.array_equal(clear, secure), "integers are rounded"
    assert np.abs(secure - clear).max() < 2e-3 * np.abs(clear).max()


DECRYPTORS = [
    {"name": "first", "url": "https://first", "operator": "one"},
    {"name": "second", "url": "https://second", "operator": "two"},
]
PROTOCOLS = {
    "secagg-full": {"protocol": "secagg-full"},
    "secagg-plus": {"protocol": "secagg-plus", "assumed_colluding": 0, "registrar": "server"},
    "beacon": {"protocol": "secagg-plus", "server": "malicious", "registrar": "authority", "beacon": "authority",
               "expected_dropout": 0.0},
    "oneshot-seeds": {"protocol": "oneshot-seeds", "decryptors": DECRYPTORS},
    "authority": {"protocol": "oneshot-seeds", "decryptors": DECRYPTORS, "registrar": "authority"},
    "groups": {"protocol": "secagg-full", "group_size": 3},
}  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_machines_sum_what_arithmetic_adds_and_the_model_is_the_same(monkeypatch, protocol):
    asked = []

    def counted(section, ring, rows, *, number):
        asked.append((number, len(rows)))
        return exact_sum(section, ring, rows, number=number)

    monkeypatch.setattr(exact_sums, "exact_sum", counted)
    tables = {"recipe": "fedavg", **COMMON, "data": {**COMMON["data"], "test_fraction": 0.2}}
    section = {**FINE, **PROTOCOLS[protocol]}
    arithmetic = run(tables | {"secure_aggregation": section})
    exact = run(tables | {"secure_aggregation": {**section, "mode": "exact"}})
    assert exact.summary["model_sha256"] == arithmetic.summary["model_sha256"]
    assert exact.summary["metrics"] == arithmetic.summary["metrics"]
    groups = 3 if protocol == "groups" else 1
    assert len([each for each in asked if each[0] in (1, 2)]) == 2 * groups


def test_a_cohort_smaller_than_the_plan_demands_gives_no_sum():
    section = plan_from_mapping({"recipe": "fedavg", **COMMON, **SECURE}).secure_aggregation
    ring = Ring((Segment("params", 2, 16),))
    with pytest.raises(RefusedError, match="at least 3 survivors"):
        exact_sum(section, ring, [ring.zeros(), ring.zeros()], number=1)


def test_heart_is_as_accurate_as_in_the_clear_and_its_scaling_and_evaluation_are_sums(heart, monkeypatch):
    tables = {"recipe": "fedavg", **heart}
    clear = run(tables)
    sums = []
    original = secure_sum.lanes_code
    monkeypatch.setattr(secure_sum, "lanes_code", lambda *given: sums.append(given[1]) or original(*given))
    secure = run(tables | {"secure_aggregation": HEART_SECURE})
    for name, table in clear.summary["metrics"]["federated"].items():
        assert secure.summary["metrics"]["federated"][name]["overall"] == pytest.approx(table["overall"], abs=2e-3)
    names = [{lane.name.partition(".")[0] for lane in layout.lanes} for layout in sums]
    assert names[0] == {"n", "sum", "squares"}
    assert all({"auc", "accuracy", "loss"} <= each for each in names[1:])
    assert len(sums) == 1 + 4, "the prologue, and an evaluation before round 1 and after rounds 2, 4 and 6"


def test_the_scaling_of_a_secure_prologue_is_that_of_the_clear_one(heart):
    clear = prepare(plan_from_mapping({"recipe": "fedavg", **heart}))
    secure = prepare(plan_from_mapping({"recipe": "fedavg", **heart, "secure_aggregation": HEART_SECURE}))
    mine, theirs = federated_scaling(clear), federated_scaling(secure)
    assert mine.center.tobytes() == theirs.center.tobytes()
    assert mine.scale.tobytes() == theirs.scale.tobytes()


def test_images_of_twenty_clients_are_recognised_as_well_as_in_the_clear():
    pytest.importorskip("sklearn")
    partition = {"kind": "dirichlet", "clients": 20, "alpha": 1.0}
    trainer = {**COMMON["trainer"], "optimizer": {"kind": "sgd", "learning_rate": 0.3}}
    data = {"source": "digits", "partition": partition, "test_fraction": 0.2}
    tables = {"recipe": "fedavg", **COMMON, "rounds": 12, "data": data, "trainer": trainer}
    accuracy = {}
    for name, section in (("clear", {}), ("secure", {"secure_aggregation": {"max_weight": 200.0, "max_value": 2.0}})):
        accuracy[name] = run(tables | section).summary["metrics"]["federated"]["accuracy"]["overall"]
    assert accuracy["clear"] > 0.85
    assert accuracy["secure"] == pytest.approx(accuracy["clear"], abs=0.01)


def test_workers_hand_the_machines_the_same_vectors():
    tables = {"recipe": "scaffold", **COMMON, "secure_aggregation": {**FINE, "mode": "exact"}}
    found = {run(tables, executor, **how).summary["model_sha256"] for executor, how in (WAYS[0], WAYS[-1])}
    assert len(found) == 1


@pytest.mark.parametrize("mode", ["arithmetic", "exact"])
def test_summary_and_report_say_which_mode_was_used_and_what_it_means(mode):
    result = run({"recipe": "fedavg", **COMMON, "secure_aggregation": {**FINE, "mode": mode}})
    told = result.summary["secure_aggregation"]
    assert (told["protocol"], told["mode"]) == ("secagg-full", mode)
    assert told["meaning"] == secure_sum.MEANING[mode]
    assert told["meaning"] in " ".join(result.report.read_text().replace("&#39;", "'").split())


def test_a_run_with_secure_sums_is_replayed_bit_for_bit():
    result = run({"recipe": "scaffold", **COMMON, **SECURE})
    replayed = hansa.replay(result.path)
    assert (replayed.changed, replayed.differences) == ((), ())


def test_a_run_without_secure_sums_tells_of_none():
    result = run({"recipe": "fedavg", **COMMON})
    assert result.summary["secure_aggregation"] is None
    events = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    assert not any("scaled_down" in event for event in events)


def test_updates_that_do_not_fit_are_counted_and_told():
    tight = {"max_weight": 10.0, "max_value": 0.01}
    result = run({"recipe": "fedavg", **COMMON, "secure_aggregation": tight})
    told = result.summary["secure_aggregation"]
    assert told["cohort"] == 33
    assert 0 < told["scaled_down"] <= 33
    assert 0 < told["capped"] <= 33
    assert any("raise it if that is not meant" in note for note in result.summary["notes"])


def test_bytes_are_those_of_the_packed_vector():
    plan = plan_from_mapping({"recipe": "fedavg", **COMMON, **SECURE})
    result = hansa.run(plan, executor="serial")
    prepared = prepare(plan)
    code = secure_sum.training_code(plan, prepared.first.layout)
    assert result.summary["bytes_up_per_client"] == code.ring.nbytes
    assert len(code.ring.pack(code.ring.zeros())) == code.ring.nbytes


def test_a_poisson_cohort_that_is_too_small_is_drawn_anew():
    secure = {**FINE, "maximum_cohort": CLIENTS, "minimum_cohort": 5, "minimum_survivors": 5}
    tables = {"recipe": "fedavg", **COMMON, "cohort": {"kind": "poisson", "rate": 0.23}, "rounds": 12}
    clear, hidden = run(tables), run({**tables, "secure_aggregation": secure})

    def cohorts(result):
        events = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
        return [event["cohort"] for event in events if event["event"] == "round"]

    assert min(cohorts(clear)) < 5 <= min(cohorts(hidden))


def test_devices_that_leave_too_few_survivors_abandon_the_round():
    devices = {"classes": [{"name": "any", "losses_per_hour": 100.0}], "examples_per_second": 10.0}
    secure = {**FINE, "minimum_cohort": 8}
    result = run({"recipe": "fedavg", **COMMON, "devices": devices, "secure_aggregation": secure})
    events = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    cohorts = [event["cohort"] for event in events if event["event"] == "round"]
    assert min(cohorts) >= 2 * 11 // 3 + 1, "the threshold of a full graph of 11"
    assert result.summary["simulated"]["abandoned"] > 0


def test_a_partial_collector_is_of_the_kind_of_the_mode():
    plan = plan_from_mapping({"recipe": "fedavg", **COMMON, **SECURE})
    prepared = prepare(plan)
    coins = prepared.streams.of("cohort", 1).coins()
    from hansa.algorithms.rounds import client_update, open_round

    class Everyone:
        size = CLIENTS

    assignment = open_round(plan, prepared.first, Everyone(), coins)
    assert isinstance(secure_sum.partial_of(plan, assignment, prepared.streams), RingFold)
    exact = replace(plan, secure_aggregation=replace(plan.secure_aggregation, mode="exact"))
    assert isinstance(secure_sum.partial_of(exact, assignment, prepared.streams), RingRows)
    clients = prepared.clients(assignment.cohort, assignment.features)
    batch, _ = client_update(plan, assignment, clients, {}, prepared.streams)
    code = secure_sum.training_code(plan, assignment.layout)
    assert all(array.dtype == segment.dtype for row in vectors(code, batch)
               for array, segment in zip(row, code.ring.segments, strict=True))  # fmt: skip


def test_a_population_too_small_for_a_sum_is_refused():
    data = {"source": "synthetic", "arguments": {"clients": 2, "features": 6, "classes": 3}}
    full = {"kind": "full"}
    with pytest.raises(PlanError, match="3 clients are needed for a sum, but there are 2"):
        run({"recipe": "fedavg", **COMMON, "data": data, "cohort": full,
             "secure_aggregation": {**FINE, "maximum_cohort": 3}})  # fmt: skip
