"""The commands of an operator, against a real server over TLS."""

from __future__ import annotations

import re
import sqlite3
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from tests.server.authority import Authority

from hansa.authority.settings import AuthoritySettings
from hansa.cli.local_federation import LocalFederation
from hansa.cli.operator_client import Operator
from hansa.cli.service_commands import greet

PLAN = """
name = "two sites"
rounds = 2
recipe = "fedavg"

[features]
label = "ill"
task = "classification"
classes = ["no", "yes"]
scaling = "none"
columns = [{ name = "age", low = -5.0, high = 5.0 }, { name = "dose", low = -5.0, high = 5.0 }]

[model]
factory = "hansa.training.linear:logistic"

[trainer]
kind = "linear"
epochs = 1
batch_size = 4
optimizer = { kind = "sgd", learning_rate = 0.1 }

[evaluation]
metrics = ["accuracy", "loss"]
"""


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with LocalFederation(tmp_path_factory.mktemp("federation")) as started:
        started.start_server()
        yield started


@pytest.fixture
def operate(federation, hansa, monkeypatch, tmp_path):
    """Run a command as the owner; return its JSON."""
    monkeypatch.setenv("HANSA_SERVER", federation.url)
    monkeypatch.setenv("HANSA_CA", str(federation.ca))
    monkeypatch.setenv("HANSA_TOKEN", federation.token_file.read_text())
    (tmp_path / "plan.toml").write_text(PLAN)

    def run(*words, status=0):
        found = hansa(*words, "--json")
        assert found.status == status, found.err
        run.said = found.said
        return found.json

    return run


def write_site(folder, seed):
    """Write the examples of a site."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for part, count in (("train", 24), ("test", 12)):
        age, dose = rng.normal(size=count), rng.normal(size=count)
        rows = [f"{a:.4f},{d:.4f},{'yes' if a + d > 0 else 'no'}" for a, d in zip(age, dose, strict=True)]
        (folder / f"{part}.csv").write_text("age,dose,ill\n" + "\n".join(rows) + "\n")


def test_from_an_empty_server_to_a_model_in_a_file(federation, operate, tmp_path):
    """A population, two agents with their own data, a plan submitted and waited for, its model downloaded."""
    operate("populations", "create", "sites", "--attribute", "region=string")
    made = operate("clients", "invite", "sites", "one", "two", "--out", tmp_path / "invitations")["invitations"]
    assert all(
        stat.S_IMODE((tmp_path / "invitations" / f"{name}.token").stat().st_mode) == 0o600 for name in ("one", "two")
    )
    assert "token" not in made[0]
    for seed, name in enumerate(("one", "two")):
        write_site(tmp_path / name, seed)
        token = (tmp_path / "invitations" / f"{name}.token").read_text().strip()
        federation.start_agent(name, data=tmp_path / name, token=token)
    try:
        taken = operate("submit", "plan.toml", "--population", "sites", "--wait")
    finally:
        for name in ("one", "two"):
            federation.stop(name)
    run = taken["run"]
    assert (run["state"], run["round"]) == ("finished", 2)
    assert taken["round_bytes"] > 2 * 4 * 3
    assert f"the server stores about {taken['round_bytes']} B of updates in an open round" in operate.said
    assert "training 2: closed, 2 of 2" in operate.said
    assert f"hansa models download {run['id']} --out {run['id']}.safetensors" in operate.said
    assert "warning" not in operate.said
    rounds = operate("rounds", run["id"])["rounds"]
    assert {each["state"] for each in rounds} == {"closed"}
    assert 0 <= rounds[0]["report"]["federated"]["accuracy"]["overall"] <= 1
    models = operate("models", "--run", run["id"])["models"]
    assert [each["round"] for each in models] == [2, 1]
    operate("models", "download", run["id"], "--out", "final.safetensors")
    again = operate("models", "download", run["id"], "--out", "final.safetensors", status=4)
    assert again["error"]["code"] == "HANSA-OUTPUT-FILE"
    operate("models", "download", models[0]["sha256"][:12], "--out", "served.safetensors", "--as-served")
    from safetensors.numpy import load_file

    named, served = load_file("final.safetensors"), load_file("served.safetensors")
    assert set(named) == {"params/weight", "params/intercept", "features/center", "features/scale"}
    assert np.array_equal(np.concatenate([named["params/weight"].ravel(), named["params/intercept"]]), served["model"])
    assert np.any(named["params/weight"] != 0)
    assert operate("models", "stage", run["id"], "production")["stage"] == "production"
    kinds = {event["kind"] for event in operate("events", "--run", run["id"], "--limit", 1000)["events"]}
    assert {"run.submitted", "round.closed", "run.finished", "model.stage"} <= kinds
    states = {row["state"]: row["clients"] for row in operate("clients")["populations"]["sites"]}
    assert sum(states.values()) == 2


def test_a_run_that_went_on_without_a_site_that_declined_says_so(federation, operate, tmp_path):
    operate("populations", "create", "unwilling")
    operate("clients", "invite", "unwilling", "yes", "no", "--out", tmp_path / "invitations")
    for seed, name in enumerate(("yes", "no")):
        write_site(tmp_path / name, seed)
        token = (tmp_path / "invitations" / f"{name}.token").read_text().strip()
        federation.start_agent(name, data=tmp_path / name, token=token)
    for part in ("train", "test"):  # a table without a column of the plan
        (tmp_path / "no" / f"{part}.csv").write_text("age,ill\n" + "0.1,yes\n0.2,no\n" * 6)
    try:
        operate("submit", "plan.toml", "--population", "unwilling", "--wait-for", 2, "--wait")
    finally:
        for name in ("yes", "no"):
            federation.stop(name)
    assert "training 2: closed, 1 of 2, 1 declined" in operate.said
    assert "2 of 2 rounds of training counted the update of a single client" in operate.said
    assert "in 2 of 2 rounds of training clients declined" in operate.said


def test_who_stops_waiting_hears_that_the_run_goes_on(operate, hansa, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    operate("populations", "create", "patience")
    monkeypatch.setattr("hansa.cli.submit.follow", interrupted)
    found = hansa("submit", "plan.toml", "--population", "patience", "--wait")
    assert found.status == 130
    assert "the run goes on" in found.said
    assert "hansa runs cancel run-" in found.said


def test_who_waits_for_a_run_hears_why_it_opens_no_round(operate, hansa, monkeypatch):
    told = []

    def say(_console, text):
        told.append(text)
        if "(--wait-for) needs 2 eligible clients" in text or len(told) > 60:
            raise KeyboardInterrupt

    operate("populations", "create", "few")
    monkeypatch.setattr("hansa.cli.submit.sentence", say)
    monkeypatch.setattr("hansa.cli.submit._QUIET", 0.0)
    assert hansa("submit", "plan.toml", "--population", "few", "--wait-for", "2", "--wait").status == 130
    assert any(each.startswith("waiting: ") and "(--wait-for) needs 2 eligible clients" in each for each in told)


def test_who_calls_the_port_of_https_by_http_is_asked_about_it(federation, operate, hansa):
    found = hansa("runs", "--server", federation.url.replace("https:", "http:"))
    assert found.status == 7
    assert "Does it begin with https?" in found.said


def test_a_file_that_cannot_be_used_is_named(operate, hansa):
    for option in ("--ca", "--token-file"):
        found = hansa("runs", option, "nope.pem")
        assert found.status == 2
        assert "nope.pem" in found.said
        assert "No such file" in found.said


def test_a_run_is_paused_resumed_prioritised_and_cancelled(operate):
    operate("populations", "create", "waiting")
    operate("clients", "invite", "waiting", "late")
    run = operate("submit", "plan.toml", "--population", "waiting", "--priority", 5)["run"]["id"]
    assert operate("runs", "pause", run, "--why", "lunch")["state"] == "paused"
    assert operate("runs", "show", run)["why"] == "lunch"
    assert run in {each["id"] for each in operate("runs", "--state", "paused")["runs"]}
    assert operate("runs", "prioritise", run, 7)["priority"] == 7
    assert operate("runs", "resume", run)["state"] == "running"
    assert operate("runs", "cancel", run)["state"] == "cancelled"
    assert operate("runs", "pause", run, status=1)["error"]["code"] == "HANSA-RUN-STATE"


def test_a_client_is_listed_suspended_resumed_and_retired(operate):
    operate("populations", "create", "lone")
    client = operate("clients", "invite", "lone", "only")["invitations"][0]["client"]
    assert operate("clients", "list", "lone")["clients"][0]["name"] == "only"
    assert operate("clients", "suspend", client, "--why", "odd")["state"] == "suspended"
    assert operate("clients", "resume", client, status=1)["error"]["code"] == "HANSA-STATE"
    assert operate("clients", "retire", client)["state"] == "retired"


def test_tokens_are_made_listed_and_revoked(operate):
    made = operate("tokens", "create", "bob", "--role", "auditor", "--days", 1)
    assert made["token"].startswith("hansa_token_")
    assert made["id"] in {each["id"] for each in operate("tokens")["tokens"]}
    assert operate("tokens", "revoke", made["id"])["revoked_at"] is not None


def test_problems_of_a_plan_found_by_the_server_are_told_with_their_key_paths(operate):
    operate("populations", "create", "empty")
    found = operate("submit", "plan.toml", "--population", "empty", "--set", "cohort={kind='uniform',size=9}", status=2)
    assert found["error"]["code"] == "HANSA-PLAN-INVALID"
    assert [problem["path"] for problem in found["error"]["problems"]] == ["cohort.size"]


def test_a_plan_without_features_and_data_says_what_it_needs(operate, tmp_path):
    operate("populations", "create", "pictures")
    operate("clients", "invite", "pictures", "one")
    (tmp_path / "bare.toml").write_text(re.sub(r"\[features\].*?\n\n", "", PLAN, flags=re.DOTALL))
    assert (
        operate("submit", "bare.toml", "--population", "pictures", status=2)["error"]["problems"][0]["path"] == "data"
    )
    taken = operate("submit", "bare.toml", "--population", "pictures", "--shape", "7", "--classes", 2)
    assert taken["run"]["state"] == "running"


def test_secrets_are_no_arguments_and_travel_over_tls_only(operate, hansa, monkeypatch):
    assert hansa("runs", "--token", "x").status == 2
    refused = hansa("runs", "--server", "http://example.org")
    assert refused.status == 2
    assert "https only" in refused.said
    monkeypatch.delenv("HANSA_TOKEN")
    assert "--token-file FILE or HANSA_TOKEN" in hansa("runs").said


def test_a_server_that_is_not_trusted_or_not_there_is_told_in_a_sentence(operate, hansa, monkeypatch):
    monkeypatch.delenv("HANSA_CA")
    untrusted = hansa("runs")
    assert untrusted.status == 7
    assert "HANSA-SERVER-UNREACHABLE" in untrusted.said
    assert "--ca" in untrusted.said
    assert "HANSA-SERVER-UNREACHABLE" in hansa("runs", "--server", "http://localhost:9").said


def test_the_doctor_shows_no_token(hansa, monkeypatch):
    monkeypatch.setenv("HANSA_TOKEN", "s3cret-of-mine")
    found = hansa("doctor")
    assert "set, not shown" in found.said
    assert "s3cret-of-mine" not in found.out + found.err


@pytest.mark.parametrize(
    "verb", ["server", "submit", "runs", "rounds", "populations", "clients", "models", "events", "tokens"]
)
def test_help_comes_at_once_and_loads_nothing_heavy(verb):
    heavy = {"httpx", "sqlalchemy", "fastapi", "granian", "cryptography", "torch", "structlog"}
    code = (
        "import sys; from hansa.cli.main import main\n"
        f"try: main([{verb!r}, '--help'])\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    finished = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "Usage: hansa" in finished.stdout
    assert heavy & set(finished.stderr.split()) == set()


def test_a_server_is_prepared_backed_up_and_restored(hansa, monkeypatch, tmp_path):
    monkeypatch.setenv("HANSA_SERVER_FOLDER", str(tmp_path / "server"))
    made = hansa("server", "init", "--json")
    assert made.status == 0, made.err
    assert stat.S_IMODE((tmp_path / "server" / "owner-token").stat().st_mode) == 0o600
    assert hansa("server", "init", "--json").json["token"] is None
    assert hansa("server", "tenant", "clinic", "--out", tmp_path / "clinic.token").status == 0
    assert hansa("server", "owner-token", "nobody", "--out", tmp_path / "no.token").status == 2
    assert not (tmp_path / "no.token").exists()
    first = hansa("server", "rotate-key", "--json").json["key"]
    assert hansa("server", "rotate-key", "--json").json["key"] != first
    assert hansa("server", "rotate-ca").status == 0
    assert hansa("server", "backup", tmp_path / "backup").status == 0
    assert hansa("server", "backup", tmp_path / "backup").status == 2  # nothing is overwritten
    assert not [path for path in (tmp_path / "backup").rglob("*") if "key" in path.name]
    assert hansa("server", "restore", tmp_path / "backup").status == 2
    monkeypatch.setenv("HANSA_SERVER_FOLDER", str(tmp_path / "again"))
    assert hansa("server", "restore", tmp_path / "backup").status == 0
    with sqlite3.connect(tmp_path / "again" / "hansa.sqlite") as restored:
        assert sorted(name for (name,) in restored.execute("SELECT name FROM tenants")) == ["clinic", "default"]


def test_certificates_that_are_not_valid_now_are_told_at_the_start(hansa, monkeypatch, tmp_path, capsys):
    authority = Authority(tmp_path / "ca")
    (old, old_key), (fresh, _) = authority.issue("old", days=-1), authority.issue("fresh")
    settings = {"FOLDER": tmp_path / "server", "TLS": "files", "TLS_CERTIFICATE": old, "TLS_KEY": old_key}
    for name, value in {**settings, "DECRYPTOR_CA": old, "AUTHORITY_CA": fresh}.items():
        monkeypatch.setenv(f"HANSA_SERVER_{name}", str(value))
    told = hansa("server", "init")
    assert told.status == 0
    assert f"warning: tls_certificate: {old} holds a certificate that is valid from" in told.said
    assert f"warning: decryptor_ca: {old}" in told.said
    assert told.said.count("warning:") == 2
    shared = {"operator": "notary", "server_keys": ("A" * 43 + "=",), "folder": str(tmp_path / "own")}
    greet(AuthoritySettings(**shared, tls="files", tls_certificate=str(old), tls_key=str(old_key)), bytes(32))
    assert f"warning: tls_certificate: {old}" in capsys.readouterr().err


def test_a_list_of_clients_can_be_read_on_a_narrow_screen(operate, monkeypatch, hansa):
    monkeypatch.setenv("COLUMNS", "80")
    operate("populations", "create", "narrow")
    client = operate("clients", "invite", "narrow", "north-hospital")["invitations"][0]["client"]
    get = Operator.get

    def detailed(calls, path, **query):
        found = get(calls, path, **query)
        for each in found.get("clients", ()):
            each |= {
                "version": "0.1.0.dev0",
                "attributes": {"region": "north", "size": "large"},
                "last_seen": 1.8e9,
                "state": "suspended",
            }
        return found

    monkeypatch.setattr(Operator, "get", detailed)
    lines = hansa("clients", "list", "narrow").err.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(client in line and " suspended " in line for line in lines)
    for word in ("north-hospital", "0.1.0.dev0", "consent", "region=north", "size=large"):
        assert any(word in line for line in lines), lines


def test_the_labels_of_a_service_are_one_column(tmp_path, capsys):
    greet(AuthoritySettings(operator="notary", server_keys=("A" * 43 + "=",), folder=str(tmp_path)), bytes(32))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["authority", "key", "certificate"]
    assert {line.index(line.split()[1]) for line in lines} == {12}


def test_the_schema_goes_down_and_up_again(hansa, monkeypatch, tmp_path):
    monkeypatch.setenv("HANSA_SERVER_FOLDER", str(tmp_path / "server"))
    raised = hansa("server", "upgrade", "--json").json
    assert raised["schema"] >= 1
    assert hansa("server", "downgrade", 0, "--json").json["schema"] == 0
    assert hansa("server", "upgrade", "--json").json == raised


def test_settings_are_listed_and_every_problem_is_told(hansa, monkeypatch, tmp_path):
    monkeypatch.setenv("HANSA_SERVER_METRICS_TOKEN", "s3cret")
    listed = hansa("server", "settings", "--json")
    assert listed.json["settings"]["port"] == 8443
    assert "s3cret" not in listed.out + listed.err
    (tmp_path / "hansa.toml").write_text("prot = 1\nmax_attempts = 0\n")
    found = hansa("server", "--config", "hansa.toml")
    assert found.status == 2
    assert "the server's configuration has 2 problems" in found.said
    assert "did you mean 'port'?" in found.said


def test_a_server_ends_soon_when_asked_and_starts_where_it_was(tmp_path):
    with LocalFederation(tmp_path / "federation") as federation:
        federation.start_server()
        token = federation.token_file.read_text()
        began = time.monotonic()
        federation.stop("server")
        assert time.monotonic() - began < 5
        assert federation.processes["server"].returncode == 0
        federation.start_server()
        assert federation.token_file.read_text() == token
