"""`hansa run`: what people see, what programs read, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from hansa.cli.progress import Bar
from hansa.simulation.run import run
from hansa.wire.plans import read_plan


@pytest.fixture
def done(hansa, plan):
    """A finished run."""
    found = hansa("run", plan, "--out", "out", "--json")
    assert found.status == 0, found.err
    return found


def test_json_is_one_object_on_the_last_line_with_all_that_was_promised(done):
    assert len(done.out.splitlines()) == 1
    assert {
        "run_id",
        "plan_sha256",
        "model_sha256",
        "rounds",
        "metrics",
        "baselines",
        "seconds_per_round",
        "client_updates_per_second",
        "bytes_up_per_client",
        "bytes_down_per_client",
        "peak_rss_mb",
    } <= done.json.keys()
    assert {"central", "federated", "per_client"} <= done.json["metrics"].keys()
    assert done.json["baselines"].keys() == {"local_only", "centralised"}
    assert Path(done.json["report"]).is_file()


def test_without_json_standard_output_stays_empty(hansa, plan):
    assert hansa("run", plan).out == ""


def test_the_result_names_every_hospital_alone_and_pooled_training(done):
    for said in ("Federated", "Pooled training", "Cleveland alone", "clients alone, mean", "own model alone"):
        assert said in done.err
    assert "On each client's own held-out examples" in done.said
    assert "out/report.html" in done.err
    assert "hansa replay out" in done.err


def test_plain_progress_has_round_loss_metric_and_speed(done):
    assert "round 6/6, loss 0." in done.err
    assert "AUC 0." in done.err
    assert "updates/s" in done.err
    assert "for comparison: each client alone, pooled training" in done.err


def test_a_terminal_gets_a_bar():
    console = Console(force_terminal=True, width=100, highlight=False)
    with console.capture() as seen, Bar(console) as bar:
        about = {"notes": ("a [note]",), "folder": "runs/x", "computed": ("serial", "asked for")}
        bar({"event": "start", "rounds": 4, "name": "a [bold]name", **about})
        bar({"event": "evaluation", "round": 0, "federated": {"auc": {"overall": 0.5}}})
        bar({"event": "round", "round": 1, "train_loss": 0.25, "cohort": 10, "seconds": 0.01})
        bar({"event": "evaluation", "round": 1, "federated": None, "central": {"accuracy": None}})
        bar({"event": "baselines", "baselines": ["centralised"]})
        bar({"event": "something new"})
    assert "a [bold]name" in seen.get()
    assert "a [note]" in seen.get()
    assert bar.words()[:3] == ["loss 0.250", "accuracy not defined", "1,000 updates/s"]
    assert bar.folder == Path("runs/x")


def test_an_undefined_metric_is_said_to_be_so_and_never_zero(hansa, tmp_path):
    rows = ["client,x,y"]
    rows += [
        f"{client},{i * 7 % 11},{'yes' if client == 'b' or i % 2 else 'no'}" for client in "abc" for i in range(20)
    ]
    (tmp_path / "one.csv").write_text("\n".join(rows))
    assert hansa("init", "one.csv", "--client", "client", "--label", "y").status == 0
    found = hansa("run", "one.toml", "--set", "rounds=2", "--json")
    assert found.status == 0
    line = next(line for line in found.err.splitlines() if re.match(r"b +\d", line))
    assert "not defined" in line
    assert "AUC is not defined for 1 of 3 clients" in found.said
    assert found.json["metrics"]["per_client"][1]["auc"] is None


def test_many_clients_are_summed_up(hansa, plan):
    found = hansa(
        "run", plan, "--set", "rounds=2", "--set", "data.partition.kind=iid", "--set", "data.partition.clients=30",
        "--set", "evaluation.local_only_clients=5",
    )  # fmt: skip
    assert found.status == 0, found.err
    for said in ("worst 10%", "5 of 30 clients alone, mean", "federated (5 clients)"):
        assert said in found.said
    assert "client-07" not in found.err


@pytest.mark.parametrize("width", [60, 100])
def test_tables_fit_the_screen(hansa, plan, monkeypatch, width):
    found = hansa("run", plan, "--set", "rounds=1", "--out", "wide")
    monkeypatch.setenv("COLUMNS", str(width))
    found = hansa("run", plan, "--set", "rounds=1", "--out", "narrow")
    tables = [line for line in found.err.splitlines() if not line.startswith(("round ", "report", "replay"))]
    assert max(map(len, tables)) <= width


def test_an_existing_folder_is_refused_and_left_alone(hansa, plan, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    found = hansa("run", plan, "--out", "there", "--json")
    assert found.status == 4
    assert found.json["error"]["code"] == "HANSA-RUN-FOLDER"
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("rounds=2", ("rounds",), 2),
        ("name=a longer name", ("name",), "a longer name"),
        ('name="quoted"', ("name",), "quoted"),
        ("cohort.kind=uniform", ("cohort", "kind"), "uniform"),
        ("trainer.optimizer.learning_rate=0.01", ("trainer", "optimizer", "learning_rate"), 0.01),
        ("trainer.batch_size=all", ("trainer", "batch_size"), "all"),
        ('transforms=[{kind="clip", clip_norm=1.0}]', ("transforms", 0, "clip_norm"), 1.0),
        ('evaluation.metrics=["auc"]', ("evaluation", "metrics"), ["auc"]),
        ("evaluation.metrics.0=accuracy", ("evaluation", "metrics", 0), "accuracy"),
        ("evaluation.central=false", ("evaluation", "central"), False),
        ("data.partition.kind=natural", ("data", "partition", "kind"), "natural"),
        ("stopping.metric=federated.auc", ("stopping", "metric"), "federated.auc"),
        ('trainer.hooks=[{kind="prox", mu=0.5}]', ("trainer", "hooks", 0, "mu"), 0.5),
    ],
)
def test_set_reaches_every_kind_of_key(hansa, plan, setting, key, value):
    beside = {
        "cohort.kind=uniform": ["--set", "cohort.size=2"],
        "stopping.metric=federated.auc": ["--set", "stopping.target=1.5"],
    }
    if setting == "evaluation.metrics.0=accuracy":
        beside[setting] = ["--set", "evaluation.metrics.1=auc"]
    found = hansa("check", plan, "--set", setting, *beside.get(setting, []), "--json")
    assert found.status == 0, found.err
    place = found.json["plan"]
    for part in key:
        place = place[part]
    assert place == value


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("roundz=3", "roundz: unknown key; did you mean 'rounds'?"),
        ("trainer.epoch=3", "trainer.epoch: unknown key; did you mean 'epochs'?"),
        ("cohort.kind=unifrm", "cohort.kind: unknown sampler 'unifrm'; did you mean 'uniform'?"),
        ("data.source=hart", "data.source: unknown source 'hart'; did you mean 'heart'?"),
        ("rounds=0", "rounds: must be greater than or equal to 1"),
        ("rounds", "rounds: is not of the form key.path=value."),
        ("evaluation.metrics.9=auc", "evaluation.metrics.9: leads to nothing"),
        ("cohort={kind='uniform',size=9}", "cohort.size: "),
    ],
)
def test_what_is_wrong_is_named_with_its_key(hansa, plan, setting, said):
    found = hansa("run", plan, "--set", setting, "--json")
    assert found.status == 2
    assert said in found.said
    assert found.json["error"]["problems"][0]["path"] == said.partition(":")[0]
    assert not Path("runs").exists()


def test_every_problem_is_listed_on_a_line_of_its_own(hansa, plan):
    found = hansa("run", plan, "--set", "trainr.epochs=3", "--set", "rounds=0", "--set", 'evaluation.metrics=["acc"]')
    assert "the plan has 3 problems" in found.err
    assert len([line for line in found.err.splitlines() if line.startswith("  ")]) == 3


def test_a_file_that_is_no_toml_is_refused_with_the_line(hansa, tmp_path):
    (tmp_path / "bad.toml").write_text("name = 'x'\nrounds = = 3\n")
    found = hansa("run", "bad.toml")
    assert found.status == 2
    assert "[HANSA-PLAN-FILE]" in found.err
    assert "line 2" in found.err


def test_a_missing_file_is_refused(hansa):
    found = hansa("run", "nowhere.toml")
    assert found.status == 2
    assert "nowhere.toml cannot be read: No such file or directory" in found.said


@pytest.mark.parametrize("arguments", [[], ["plan.toml", "--resume", "x"], ["--resume", "x", "--set", "rounds=3"]])
def test_a_plan_or_a_folder_to_resume_but_not_both(hansa, plan, arguments):
    found = hansa("run", *arguments)
    assert found.status == 2
    assert "Traceback" not in found.err


def test_resuming_a_finished_run_shows_its_result_again(hansa, done):
    found = hansa("run", "--resume", "out", "--json")
    assert found.status == 0
    assert found.json["model_sha256"] == done.json["model_sha256"]
    assert "already finished: this is its result" in found.said


def test_a_run_that_goes_on_says_from_where(hansa, plan):
    def power_cut(event):
        if event["event"] == "round" and event["round"] == 3:
            raise RuntimeError("the lights went out")

    with pytest.raises(RuntimeError):
        run(read_plan(plan), out="cut", callbacks=[power_cut])
    found = hansa("run", "--resume", "cut")
    assert found.status == 0, found.err
    assert "going on after round 3" in found.said
    assert "already finished" not in found.said


def test_resuming_what_is_no_run_is_refused(hansa):
    found = hansa("run", "--resume", "nowhere")
    assert found.status == 4
    assert "nowhere does not exist" in found.said


def test_divergence_is_diagnosed_and_what_was_written_is_kept(hansa, tmp_path):
    (tmp_path / "line.csv").write_text("who,x,y\n" + "".join(f"{i % 3},{i * 0.5},{i / 7}\n" for i in range(60)))
    assert hansa("init", "line.csv", "--client", "who", "--label", "y").status == 0
    found = hansa("run", "line.toml", "--set", "trainer.optimizer.learning_rate=9.0", "--out", "out", "--json")
    assert found.status == 6
    assert found.json["error"]["code"] == "HANSA-RUN-DIVERGED"
    assert Path("out/metrics.jsonl").is_file()


def test_two_runs_of_one_plan_give_one_model(hansa, plan, done):
    assert hansa("run", plan, "--json").json["model_sha256"] == done.json["model_sha256"]


def test_the_summary_in_the_folder_is_what_was_printed(done):
    last = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[-1])
    assert last["model_sha256"] == done.json["model_sha256"]


def test_a_model_that_is_worse_than_untrained_is_no_success(hansa, plan):
    found = hansa("run", plan, "--set", "trainer.optimizer.learning_rate=100", "--out", "steep")
    assert found.status == 0, found.err
    assert "The federated model is worse than untrained: its loss" in found.said
    assert "The step size is likely too large; comparisons mean little." in found.said
    assert "better than training on pooled data" not in found.said
    assert "worse than untrained" in Path("steep/report.html").read_text()
