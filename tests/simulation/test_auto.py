"""``--executor auto``: what it chooses, that it keeps to it, and that nothing it meets ends a run."""

from __future__ import annotations

import json
import os

import pytest

import hansa
from hansa.algorithms.fold import BLOCK
from hansa.core.errors import PlanError
from hansa.simulation import auto
from hansa.simulation.choice import EXECUTORS, Choice
from hansa.simulation.executors import compute
from hansa.simulation.preparation import prepare

PLAN = {
    "name": "chosen",
    "seed": 2,
    "rounds": 2,
    "data": {"source": "synthetic", "arguments": {"clients": 40, "features": 6, "classes": 3, "mean_size": 8}},
    "model": {"factory": "hansa.training.linear:softmax"},
    "trainer": {"kind": "linear", "epochs": 1, "batch_size": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
    "cohort": {"kind": "uniform", "size": 24},
    "evaluation": {"every": 100, "federated": False, "central": False},
}
TORCH = {"kind": "torch", "epochs": 1, "batch_size": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.1}}


def plan_of(**changes):
    return hansa.recipe("fedavg", **{**PLAN, **changes})


def of_network(factory, **changes):
    return plan_of(trainer=TORCH, model={"factory": f"tests.simulation.networks:{factory}"}, **changes)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HANSA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def unmeasured(monkeypatch):
    """Fail whoever measures."""

    def fail(_):
        raise AssertionError("it measured again")

    return lambda: monkeypatch.setattr(auto, "_measured", fail)


def kept(cache):
    return sorted((cache / "executors").glob("*.json"))


def test_a_choice_is_measured_once_and_taken_again(cache, unmeasured):
    first = auto.choose(prepare(plan_of()))
    (path,) = kept(cache)
    assert Choice.from_json(json.loads(path.read_text())) == first
    unmeasured()
    assert auto.choose(prepare(plan_of(seed=3, name="another"))) == first


@pytest.mark.parametrize(
    "change",
    [{"rounds": 50}, {"cohort": {"kind": "uniform", "size": 7}}, {"trainer": {**PLAN["trainer"], "epochs": 3}}],
)
def test_another_plan_is_measured_for_itself(change, cache):
    auto.choose(prepare(plan_of()))
    auto.choose(prepare(plan_of(**change)))
    assert len(kept(cache)) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"executor": "nothing"}',
        b'{"executor": "batched", "chunk": 0}',
        b'{"executor": "batched", "chunk": "many"}',
        b'{"executor": "batched", "chunk": 4.5}',
        b'{"executor": "batched", "workers": true}',
        b'{"executor": "batched", "kernels": {"fast": 1}}',
        b'{"executor": "batched", "kernels": 3}',
        b'{"executor": "batched", "why": 3}',
        b'{"executor": "batched", "kind": 3}',
        b'{"executor": ["batched"]}',
    ],
)
def test_a_kept_choice_that_cannot_be_read_is_measured_anew(content, cache):
    prepared = prepare(plan_of())
    auto.choose(prepared)
    (path,) = kept(cache)
    path.write_bytes(content)
    found = auto.choose(prepared)
    assert found.executor == "batched"
    assert path.read_bytes() != content
    assert Choice.from_json(json.loads(path.read_text())) == found


def test_a_cache_that_cannot_be_written_is_done_without(cache):
    cache.write_text("a file where the folder should be")
    assert auto.choose(prepare(plan_of())).executor in EXECUTORS
    assert cache.read_text() == "a file where the folder should be"


def test_a_run_keeps_its_choice_in_replay_json_and_replays_by_it(tmp_path, unmeasured, cache):
    result = hansa.run(plan_of(), out=tmp_path / "run")
    chosen = json.loads((result.path / "replay.json").read_text())["executor"]
    assert chosen == {**json.loads(kept(cache)[0].read_text()), "kind": "fused"}
    kept(cache)[0].unlink()
    unmeasured()
    assert hansa.replay(result.path).differences == ()


def test_a_run_is_resumed_by_the_choice_it_began_with(tmp_path, unmeasured, cache):
    plan = plan_of(rounds=4)
    whole = hansa.run(plan, out=tmp_path / "whole")

    def stop(event):
        if event["event"] == "round" and event["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hansa.run(plan, out=tmp_path / "run", callbacks=[stop])
    kept(cache)[0].unlink()
    unmeasured()
    assert hansa.resume(tmp_path / "run").summary["model_sha256"] == whole.summary["model_sha256"]


@pytest.mark.parametrize("options", [{"workers": 2}, {"chunk": 8}, {"workers": 2, "chunk": 8}])
def test_auto_with_workers_or_a_chunk_is_refused_in_words(options, tmp_path):
    with pytest.raises(PlanError, match="auto chooses --workers and --chunk; leave them out, or name an executor"):
        hansa.run(plan_of(), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_start_of_a_run_tells_what_was_chosen_and_why(tmp_path):
    told = []
    hansa.run(plan_of(), out=tmp_path / "run", callbacks=[lambda event: told.append(event) and None])
    how, why = told[0]["computed"]
    assert how.startswith("batched, ")
    assert "updates a second" in why or "at once" in why
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["executor"] == how


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_small_cohorts_are_chosen_for(size, tmp_path):
    plan = plan_of(cohort={"kind": "uniform", "size": size})
    chosen = auto.choose(prepare(plan))
    assert chosen.executor == "batched"
    assert 1 <= chosen.chunk <= 5
    assert hansa.run(plan, out=tmp_path / "run").summary["rounds"] == 2


@pytest.mark.parametrize("plan", [plan_of, lambda **changes: of_network("dense", **changes)])
def test_a_population_of_one_is_chosen_for(plan, tmp_path):
    pytest.importorskip("torch")
    data = {"source": "synthetic", "arguments": {**PLAN["data"]["arguments"], "clients": 1}}
    one = plan(data=data, cohort={"kind": "full"})
    assert auto.choose(prepare(one)).workers == 1
    assert hansa.run(one, out=tmp_path / "run").summary["rounds"] == 2


@pytest.mark.parametrize(("rounds", "executor"), [(2, "serial"), (100_000, "process")])
def test_a_module_whose_examples_mix_trains_alone_in_workers_where_the_run_is_long(rounds, executor, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(auto, "processors", lambda: 2)
    monkeypatch.setattr(auto._Trial, "seconds", lambda *_: 0.01)
    monkeypatch.setattr(auto._Trial, "seconds_on", lambda *_: 0.02)  # threads hold each other up
    chosen = auto.choose(prepare(of_network("batch_normed", rounds=rounds)))
    assert (chosen.executor, chosen.chunk) == (executor, 1)
    assert chosen.workers == (1 if executor == "serial" else 2)
    assert "BatchNorm" in chosen.why


@pytest.mark.parametrize(
    ("seconds", "executor"), [((1.3,), "batched"), ((2.0, 1.3), "batched"), ((2.0, 1.9), "process")]
)
def test_threads_that_keep_up_are_taken_and_looked_at_twice_before_they_are_not(seconds, executor, monkeypatch):
    """They are held against the span with the most examples, which processes would wait for as well."""
    pytest.importorskip("torch")
    monkeypatch.setattr(auto, "processors", lambda: 2)
    prepared = prepare(of_network("batch_normed", rounds=100_000))
    looks, alone = iter(seconds), []

    def one_by_one(trial, span, _):
        alone.append(prepared.data.train.sizes(trial.assignment.cohort[span.positions]).sum())
        return 1.0

    monkeypatch.setattr(auto._Trial, "seconds", one_by_one)
    monkeypatch.setattr(auto._Trial, "seconds_on", lambda *_: next(looks))
    monkeypatch.setattr(auto, "_VERY_LONG_SECONDS", 10.0)
    assert auto.choose(prepared).executor == executor
    assert next(looks, None) is None
    spans = auto._trial(prepared, 24).assignment.cohort[: 2 * BLOCK].reshape(2, BLOCK)
    assert alone[-1] == max(prepared.data.train.sizes(span).sum() for span in spans)


def test_a_stack_of_layers_is_batched(monkeypatch):
    pytest.importorskip("torch")
    chosen = auto.choose(prepare(of_network("dense")))
    assert chosen.executor == "batched"
    assert "a stack of layers" in chosen.why


def test_a_trial_that_fails_leaves_it_to_the_run_to_say_why(monkeypatch, cache):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(auto, "_measured", fail)
    chosen = auto.choose(prepare(plan_of()))
    assert chosen.executor == "serial"
    assert "MemoryError" in chosen.why
    assert not kept(cache)


def test_no_more_workers_than_there_is_work_for(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(auto, "processors", lambda: 64)
    plan = of_network("batch_normed", rounds=100_000, cohort={"kind": "uniform", "size": 10})
    assert auto.choose(prepare(plan)).workers == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_without_permission_is_done_without(cache):
    cache.mkdir(mode=0o500)
    assert auto.choose(prepare(plan_of())).executor in EXECUTORS


def test_a_model_beyond_the_caches_never_trains_a_whole_cohort_at_once(monkeypatch):
    """Or else memory would grow with the cohort."""
    monkeypatch.setattr(auto, "_CACHED", 1)
    plan = prepare(plan_of(cohort={"kind": "uniform", "size": 10}))
    assert auto.choose(plan).executor == "batched"
    assert auto.choose(plan).chunk <= BLOCK


OWN = """
import torch

def net():
    return torch.nn.Linear(6, 3)
"""


def test_a_choice_is_not_taken_again_where_the_code_of_the_model_changed(tmp_path, monkeypatch, cache):
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "own_network_of_auto.py"
    code.write_text(OWN)
    plan = plan_of(trainer=TORCH, model={"factory": "own_network_of_auto:net"})
    auto.choose(prepare(plan))
    auto.choose(prepare(plan))
    assert len(kept(cache)) == 1
    code.write_text(OWN + "# it may be larger now")
    auto.choose(prepare(plan))
    assert len(kept(cache)) == 2


@pytest.mark.parametrize("factory", ["dense", "batch_normed"])
def test_the_trial_is_on_first_values_and_changes_nothing_of_the_run(factory, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    tried = []

    def watched(prepared, assignment, work):
        tried.append(assignment.model)
        return compute(prepared, assignment, work)

    monkeypatch.setattr(auto, "compute", watched)
    plan = of_network(factory)
    wanted = prepare(plan).first.model.copy()
    chosen = hansa.run(plan, out=tmp_path / "auto")
    assert tried
    assert all((model == wanted).all() for model in tried)
    how = json.loads((chosen.path / "replay.json").read_text())["executor"]
    options = {} if how["executor"] == "serial" else {"workers": how["workers"], "chunk": how["chunk"]}
    asked = hansa.run(plan, out=tmp_path / "asked", executor=how["executor"], **options)
    assert asked.summary["model_sha256"] == chosen.summary["model_sha256"]


@pytest.mark.parametrize(
    ("factory", "kind"), [("dense", "fused"), ("batch_normed", "none")], ids=["together", "one by one"]
)
@pytest.mark.parametrize("executor", ["auto", "batched"])
def test_replay_json_says_how_the_clients_of_a_chunk_train(factory, kind, executor, tmp_path):
    pytest.importorskip("torch")
    result = hansa.run(of_network(factory), out=tmp_path / "run", executor=executor)
    assert json.loads((result.path / "replay.json").read_text())["executor"]["kind"] == kind


def test_a_replay_that_differs_says_where_clients_train_together_in_another_way(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from hansa.training.torch_trainer import TorchTrainer

    result = hansa.run(of_network("dense"), out=tmp_path / "run", executor="batched", workers=1, chunk=8)
    monkeypatch.setattr(TorchTrainer, "batching", lambda *_: ("none", "as if torch had changed"))
    found = hansa.replay(result.path).differences
    assert found[0] == "clients of a chunk trained as 'fused' and train as 'none'"
