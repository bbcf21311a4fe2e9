from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import hansa
from hansa.core.errors import DivergenceError, PlanError, RunError
from hansa.simulation import engine as engine_module
from hansa.simulation.checkpoint import write_checkpoint

METHODS = ["fedavg", "fedsgd", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "scaffold", "fednova"]


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


def test_a_run_leaves_the_six_files_and_a_summary(heart, tmp_path):
    result = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run")
    assert sorted(path.name for path in result.path.iterdir()) == [
        "environment.json",
        "metrics.jsonl",
        "model.safetensors",
        "plan.toml",
        "replay.json",
        "report.html",
    ]
    assert result.summary["rounds"] == 6
    assert result.summary["metrics"]["federated"]["auc"]["overall"] > 0.85
    assert len(result.summary["metrics"]["per_client"]) == 4


@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_runs_on_real_data_and_repeats_bit_for_bit(method, heart, tmp_path):
    heart["rounds"] = 3
    if method == "fedsgd":
        heart["trainer"] = {key: value for key, value in heart["trainer"].items() if key != "batch_size"}
    first = hansa.run(hansa.recipe(method, **heart), out=tmp_path / "first")
    second = hansa.run(hansa.recipe(method, **heart), out=tmp_path / "second")
    assert first.summary["model_sha256"] == second.summary["model_sha256"]
    assert first.summary["metrics"] == second.summary["metrics"]


def test_another_seed_gives_another_model(heart, tmp_path):
    first = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "first")
    heart["seed"] = 4
    second = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "second")
    assert first.summary["model_sha256"] != second.summary["model_sha256"]


def test_an_output_folder_that_exists_is_never_overwritten(heart, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep me")
    with pytest.raises(RunError, match="never overwrites") as caught:
        hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run")
    assert caught.value.code == "HANSA-RUN-FOLDER"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedadam"])
@pytest.mark.parametrize("round_number", [0, 1, 3, 6])
@pytest.mark.parametrize(
    "place", ["before the rename", "after the rename", "before it counts", "while rows are written"]
)
def test_a_run_killed_anywhere_goes_on_to_the_same_model(method, round_number, place, heart, tmp_path, monkeypatch):
    plan = hansa.recipe(method, **heart, cohort={"kind": "uniform", "size": 2})
    whole = hansa.run(plan, out=tmp_path / "whole")

    def kill_here(folder, checkpoint):
        if checkpoint.state.round == round_number and place == "before the rename":
            raise Killed
        write_checkpoint(folder, checkpoint)
        if checkpoint.state.round == round_number and place == "after the rename":
            raise Killed

    apply, journal = engine_module.ClientStore.apply, engine_module.ClientStore.journal

    def kill_in_apply(self, number, cohort):
        if number == round_number and place == "before it counts":
            raise Killed
        apply(self, number, cohort)

    def kill_in_journal(self, number, cohort):
        found = journal(self, number, cohort)
        if number == max(1, round_number) and place == "while rows are written":
            found.write(0, {name: np.full((1, *row.shape), 123.0) for name, row in self.first_rows.items()})
            found.close()
            raise Killed
        return found

    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "write_checkpoint", kill_here)
        patched.setattr(engine_module.ClientStore, "apply", kill_in_apply)
        patched.setattr(engine_module.ClientStore, "journal", kill_in_journal)
        with pytest.raises(Killed):
            hansa.run(plan, out=tmp_path / "killed")
    resumed = hansa.resume(tmp_path / "killed")
    assert resumed.summary["model_sha256"] == whole.summary["model_sha256"]
    assert resumed.summary["metrics"] == whole.summary["metrics"]
    lines = [json.loads(line)["event"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line)["event"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines == expected


def test_resuming_a_finished_run_changes_nothing(heart, tmp_path):
    first = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run")
    before = {path.name: path.read_bytes() for path in first.path.iterdir()}
    assert hansa.resume(first.path).summary == json.loads(json.dumps(first.summary))
    assert {path.name: path.read_bytes() for path in first.path.iterdir()} == before


def test_resume_refuses_a_plan_that_was_changed(heart, tmp_path):
    first = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run")
    replay = json.loads((first.path / "replay.json").read_text())
    (first.path / "replay.json").write_text(json.dumps({**replay, "files": {}}))
    plan = (first.path / "plan.toml").read_text().replace("learning_rate = 0.1", "learning_rate = 0.2")
    (first.path / "plan.toml").write_text(plan)
    with pytest.raises(RunError, match="plan_sha256 was") as caught:
        hansa.resume(first.path)
    assert caught.value.code == "HANSA-RUN-CHANGED"


def test_replay_is_exact_and_names_a_file_that_changed(heart, tmp_path):
    result = hansa.run(hansa.recipe("scaffold", **heart), out=tmp_path / "run")
    replayed = hansa.replay(result.path)
    assert replayed.changed == ()
    assert replayed.differences == ()
    assert replayed.model_sha256 == result.summary["model_sha256"]
    for name in ("plan.toml", "metrics.jsonl", "model.safetensors", "report.html", "environment.json"):
        copy = tmp_path / f"copy-{name}"
        shutil.copytree(result.path, copy)
        (copy / name).write_bytes((copy / name).read_bytes() + b" ")
        assert hansa.replay(copy).changed == (name,)


def test_replay_of_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        hansa.replay(tmp_path / "nothing")


def test_divergence_stops_with_a_diagnosis_and_keeps_the_last_round(heart, tmp_path):
    heart["trainer"] = {**heart["trainer"], "optimizer": {"kind": "sgd", "learning_rate": 3e38, "momentum": 0.9}}
    with pytest.raises(DivergenceError) as caught:
        hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run")
    assert caught.value.code == "HANSA-RUN-DIVERGED"
    assert "round" in caught.value.found.lower()
    assert "clients" in caught.value.found
    assert "learning_rate = 3e+38" in caught.value.action
    assert "clip" in caught.value.action
    assert (tmp_path / "run" / "checkpoint" / "checkpoint.safetensors").exists()


def test_an_exploding_update_is_divergence_even_while_finite(heart, tmp_path):
    heart |= {"rounds": 30, "stopping": {"explosion_factor": 1.5}}
    heart["server_optimizer"] = {"kind": "sgd", "learning_rate": 60.0}
    with pytest.raises(DivergenceError, match="times the largest"):
        hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run")


def test_a_target_stops_the_run_and_is_named(heart, tmp_path):
    heart |= {"rounds": 50, "stopping": {"metric": "federated.auc", "target": 0.85}, "evaluation": {"every": 1}}
    result = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run")
    assert result.summary["rounds"] < 50
    assert result.summary["stopped_because"] == "federated.auc reached 0.85"
    assert result.summary["metrics"]["federated"]["auc"]["overall"] >= 0.85


def test_patience_watches_the_validation_part(heart, tmp_path):
    heart |= {"rounds": 200, "stopping": {"metric": "validation.loss", "patience": 3}, "evaluation": {"every": 1}}
    heart["data"] = {**heart["data"], "validation_fraction": 0.2}
    heart["trainer"] = {**heart["trainer"], "optimizer": {"kind": "sgd", "learning_rate": 2.0}}
    result = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run")
    assert result.summary["rounds"] < 200
    assert "did not improve in 3 evaluations" in result.summary["stopped_because"]


def test_watching_a_part_that_the_data_do_not_have_is_refused_before_anything_is_written(heart, tmp_path):
    heart["stopping"] = {"metric": "validation.loss", "patience": 3}
    with pytest.raises(PlanError, match="data.validation_fraction"):
        hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_callback_sees_every_round_and_may_stop_the_run(heart, tmp_path):
    seen = []

    def watch(event):
        seen.append((event["event"], event.get("round")))
        return event["event"] == "round" and event["round"] == 4

    result = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run", callbacks=[watch])
    assert [number for event, number in seen if event == "round"] == [1, 2, 3, 4]
    assert result.summary["rounds"] == 4
    assert result.summary["stopped_because"] == "a callback asked to stop"


def test_a_cohort_larger_than_the_population_is_refused(heart, tmp_path):
    with pytest.raises(PlanError, match="a cohort of 5 needs as many clients, but there are 4"):
        hansa.run(hansa.recipe("fedavg", **heart, cohort={"kind": "uniform", "size": 5}), out=tmp_path / "run")


@pytest.mark.parametrize("aggregator", [{"kind": "median"}, {"kind": "trimmed-mean", "fraction": 0.25}])
def test_rules_over_rows_run_and_repeat(aggregator, heart, tmp_path):
    plan = hansa.Plan(**heart, aggregator=aggregator, transforms=[{"kind": "clip", "clip_norm": 1.0}])
    first = hansa.run(plan, out=tmp_path / "first")
    second = hansa.run(plan, out=tmp_path / "second")
    assert first.summary["model_sha256"] == second.summary["model_sha256"]
    assert first.summary["metrics"]["federated"]["auc"]["overall"] > 0.8


def test_int8_rotation_sends_about_a_quarter_of_the_bytes(heart, tmp_path):
    heart["data"] = {"source": "fashion-mnist-small", "partition": {"kind": "iid", "clients": 20}}
    heart |= {"rounds": 2, "model": {"factory": "hansa.training.linear:softmax"}}
    heart["cohort"] = {"kind": "uniform", "size": 3}
    plain = hansa.run(hansa.Plan(**heart, transforms=[{"kind": "weigh-by-size"}]), out=tmp_path / "plain")
    packed = [{"kind": "weigh-by-size"}, {"kind": "int8-rotation"}]
    small = hansa.run(hansa.Plan(**heart, transforms=packed), out=tmp_path / "small")
    assert small.summary["bytes_up_per_client"] < 0.3 * plain.summary["bytes_up_per_client"]
    close = [run.summary["metrics"]["central"]["accuracy"] for run in (plain, small)]
    assert abs(close[0] - close[1]) < 0.02


def test_an_empty_poisson_cohort_closes_its_round_and_changes_nothing(heart, tmp_path):
    heart |= {"rounds": 8, "cohort": {"kind": "poisson", "rate": 0.05}}
    result = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run")
    rounds = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    empty = [event for event in rounds if event["event"] == "round" and event["cohort"] == 0]
    assert empty
    assert all(event["update_norm"] == 0 and event["train_loss"] is None for event in empty)


def test_federated_scaling_equals_the_pooled_mean_and_spread(heart, tmp_path):
    heart["data"] = {"source": "heart"}
    heart["rounds"] = 1
    result = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run")
    tensors = safetensors.numpy.load_file(result.model)
    from hansa.core.sections import Data
    from hansa.data import load

    data = load(Data(source="heart"), None, heart["seed"])
    everyone = np.arange(4)
    sizes = data.train.sizes(everyone)
    rows = np.concatenate(
        [data.train.gather(everyone[i : i + 1], np.arange(n)[None])[0][0] for i, n in enumerate(sizes)]
    )
    age = [slot.name for slot in data.features.slots()].index("age")
    assert tensors["features/center"][age] == pytest.approx(np.nanmean(rows[:, age]), rel=1e-5)
    assert tensors["features/scale"][age] == pytest.approx(np.nanstd(rows[:, age]), rel=1e-4)


def test_baselines_are_reported_overall_and_on_own_examples(heart, tmp_path):
    heart["evaluation"] = {"every": 6, "baselines": ["local-only", "centralised"]}
    summary = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run").summary
    local = summary["baselines"]["local_only"]
    assert [client["client"] for client in local["clients"]] == ["Cleveland", "Hungary", "Switzerland", "VA Long Beach"]
    assert local["overall"]["auc"]["mean"] == pytest.approx(np.mean([c["overall"]["auc"] for c in local["clients"]]))
    assert summary["baselines"]["centralised"]["overall"]["auc"] > local["overall"]["auc"]["mean"]
    assert len(summary["baselines"]["centralised"]["per_client"]) == 4


def test_held_out_clients_are_measured_and_never_trained(heart, tmp_path):
    heart["data"] = {**heart["data"], "held_out_clients": 1}
    summary = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run").summary
    assert summary["data"]["clients"] == 3
    assert summary["metrics"]["held_out_clients"]["auc"]["clients"] == 1


@pytest.mark.parametrize("given", ["plan.toml", {"name": "n"}, None])
def test_what_is_no_plan_is_refused_with_the_way_to_get_one(given):
    with pytest.raises(PlanError, match=r"hansa.read_plan\(path\) reads one"):
        hansa.run(given)


def test_a_plan_is_read_from_a_path_given_as_text(heart, tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(
        """
        name = "n"
        rounds = 1
        model = { factory = "hansa.training.linear:logistic" }
        trainer = { kind = "linear", epochs = 1, optimizer = { kind = "sgd", learning_rate = 1.0 } }
        """
    )
    assert hansa.read_plan(str(path)) == hansa.read_plan(path)


def test_a_run_that_stops_early_is_judged_on_all_clients(heart, tmp_path):
    heart |= {"rounds": 50, "stopping": {"metric": "federated.auc", "target": 0.7}}
    heart["evaluation"] = {"every": 1, "federated_clients": 2}
    result = hansa.run(hansa.recipe("fedavg", **heart), out=tmp_path / "run")
    assert result.summary["rounds"] < 50
    assert result.summary["metrics"]["federated"]["accuracy"]["clients"] == 4
    assert len(result.summary["metrics"]["per_client"]) == 4
