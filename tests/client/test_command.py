from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest
from fake_server import TOKEN, job_of

import hansa
from hansa.client.policy import read_policy


def client(*words, cwd, **environment):
    home = {**os.environ, "PYTHONPATH": str(Path(hansa.__file__).parents[1]), **environment}
    command = [sys.executable, "-P", "-c", "from hansa.cli.main import main; main()", "client", *map(str, words)]
    return subprocess.run(command, env=home, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("words", [["--token", "sesame-open"], ["--token=sesame-open"], ["sesame-open"]])
def test_a_secret_as_an_argument_is_refused_and_never_shown(tmp_path, words):
    ended = client(*words, cwd=tmp_path)
    assert ended.returncode == 2
    assert "sesame" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("how", ["file", "environment"])
def test_a_dry_run_says_what_would_leave(server, data, tmp_path, how):
    (tmp_path / "token").write_text(TOKEN + "\n")
    path = server.assign(job_of())
    given = ["--token-file", tmp_path / "token"] if how == "file" else []
    more = {"HANSA_TOKEN": TOKEN} if how == "environment" else {}
    words = ["--server", server.url, "--data", data, "--state", tmp_path / "s", *given, "--dry-run", "--json"]
    ended = client(*words, "--attribute", "region=EU", "--no-consent", cwd=tmp_path, **more)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["assignment"] == path
    assert set(told["would_send_tensors"]) == {"values", "lanes"}
    assert "would send bytes" in ended.stderr
    assert "would send tensors: lanes (I64 [4]), values (F32 [3])" in ended.stderr
    assert "policy objects: nothing" in ended.stderr
    assert server.reports == {}
    assert TOKEN not in ended.stdout + ended.stderr
    assert dict(server.enrolments[0].attributes) == {"region": '"EU"'}
    assert server.enrolments[0].consent is False


def test_without_a_token_it_says_how_to_give_one(server, data, tmp_path):
    words = ["--server", server.url, "--data", data, "--state", tmp_path / "s"]
    ended = client(*words, cwd=tmp_path)
    assert ended.returncode == 2
    assert "--token-file" in ended.stderr
    assert client(*words, "--token-file", tmp_path / "none", cwd=tmp_path).returncode == 2


def at_a_terminal(*words, cwd, typed):
    """Run the client with a terminal of its own, type a line when it asks, and return its status and what is shown."""
    ours, its = pty.openpty()
    home = {name: value for name, value in os.environ.items() if name != "HANSA_TOKEN"}
    home["PYTHONPATH"] = str(Path(hansa.__file__).parents[1])
    command = [sys.executable, "-P", "-c", "from hansa.cli.main import main; main()", "client", *map(str, words)]
    process = subprocess.Popen(command, env=home, cwd=cwd, preexec_fn=lambda: os.login_tty(its))  # noqa: PLW1509 - one thread
    os.close(its)
    shown = b""
    with process, os.fdopen(ours, "r+b", buffering=0) as terminal:
        while select.select([terminal], [], [], 60)[0]:
            try:
                block = terminal.read(4096)
            except OSError:  # the other end is closed
                break
            if b"one-time token: " in shown + block and b"one-time token: " not in shown:
                terminal.write(typed.encode() + b"\n")
            shown += block
        else:
            process.kill()
    return process.returncode, shown.decode()


def test_a_token_is_asked_for_at_a_terminal_and_never_shown(server, data, tmp_path):
    words = ["--server", server.url, "--data", data, "--state", tmp_path / "s", "--dry-run"]
    status, shown = at_a_terminal(*words, cwd=tmp_path, typed=TOKEN)
    assert status == 0, shown
    assert [each.token for each in server.enrolments] == [TOKEN]
    assert shown.count("one-time token: ") == 1
    assert TOKEN not in shown
    status, shown = at_a_terminal(*words, cwd=tmp_path, typed="")
    assert status == 0, shown
    assert "one-time token" not in shown, "it is enrolled"


@pytest.mark.parametrize(("typed", "status"), [("", 2), ("sesame-open", 3)], ids=["nothing", "another"])
def test_a_token_that_is_typed_wrong_is_told_without_showing_it(server, data, tmp_path, typed, status):
    words = ["--server", server.url, "--data", data, "--state", tmp_path / "s"]
    ended, shown = at_a_terminal(*words, cwd=tmp_path, typed=typed)
    assert ended == status, shown
    assert ("--token-file" if not typed else "HANSA-ENROL-TOKEN") in shown
    assert "sesame" not in shown
    assert "Traceback" not in shown


def test_a_secret_as_an_argument_is_refused_at_a_terminal_too_before_anything_is_asked(server, data, tmp_path):
    words = ["--server", server.url, "--data", data, "--state", tmp_path / "s", "--token", "sesame-open"]
    status, shown = at_a_terminal(*words, cwd=tmp_path, typed=TOKEN)
    assert status == 2
    assert "a secret is no argument" in " ".join(shown.split())
    assert "sesame" not in shown
    assert "one-time token: " not in shown
    assert server.requests == []
    assert not (tmp_path / "s").exists()


def test_once_enrolled_a_client_needs_no_token_any_more(server, data, tmp_path):
    """As the unit has it: its credential is the token, and an empty line once that is removed."""
    token = tmp_path / "credential"
    token.write_text("\n")
    words = ["--server", server.url, "--data", data, "--state", tmp_path / "s", "--token-file", token, "--dry-run"]
    without = client(*words, cwd=tmp_path)
    assert without.returncode == 2
    assert "a client that is not enrolled needs --token-file" in " ".join(without.stderr.split())
    token.write_text(TOKEN)
    assert client(*words, cwd=tmp_path).returncode == 0
    token.write_text("\n")
    assert client(*words, cwd=tmp_path).returncode == 0
    token.unlink()
    assert client(*words, cwd=tmp_path).returncode == 0
    assert len(server.enrolments) == 1


def test_a_refused_token_ends_with_the_servers_code(server, data, tmp_path):
    words = ["--server", server.url, "--data", data, "--state", tmp_path / "s", "--json"]
    ended = client(*words, cwd=tmp_path, HANSA_TOKEN="wrong")  # noqa: S106 - it lets nobody in
    assert ended.returncode == 3
    assert json.loads(ended.stdout.splitlines()[-1])["error"]["code"] == "HANSA-ENROL-TOKEN"


def test_data_of_a_function_need_the_policys_leave(server, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "own_reader.py").write_text(
        "import numpy as np\n\n"
        "def read(features, signature):\n"
        "    return {'X': np.ones((4, 2), dtype=np.float32), 'y': [0, 1, 0, 1]}\n"
    )
    path = os.pathsep.join([str(Path(hansa.__file__).parents[1]), str(site)])
    server.assign(job_of())
    words = ["--server", server.url, "--data", "own_reader:read", "--state", tmp_path / "s", "--dry-run", "--json"]
    more = {"PYTHONPATH": path, "HANSA_TOKEN": TOKEN}
    refused = client(*words, cwd=tmp_path, **more)
    assert "HANSA-CODE-FORBIDDEN" in refused.stdout
    allowed = client("allow", "own_reader:read", "--policy", tmp_path / "policy.toml", cwd=tmp_path, **more)
    assert allowed.returncode == 0, allowed.stderr
    ended = client(*words, "--policy", tmp_path / "policy.toml", cwd=tmp_path, **more)
    assert json.loads(ended.stdout.splitlines()[-1])["would_send_bytes"] > 0, ended.stderr


def test_the_key_that_peers_pin_is_printed_without_a_server_and_stays(server, data, tmp_path):
    state = tmp_path / "s"
    first = client("key", "--state", state, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    again = client("key", "--state", state, "--json", cwd=tmp_path)
    printed = first.stdout.removesuffix("\n")
    assert json.loads(again.stdout) == {"public_key": printed}
    (tmp_path / "policy.toml").write_text(f'[secure_sums]\npeers = ["{printed}"]\n')
    (key,) = read_policy(tmp_path / "policy.toml").secure_sums.keys()
    words = ["--server", server.url, "--data", data, "--state", state, "--dry-run"]
    enrolled = client(*words, cwd=tmp_path, HANSA_TOKEN=TOKEN)
    assert enrolled.returncode == 0, enrolled.stderr
    assert server.public_key == key, "it is the key that the client enrols with"


def test_a_key_is_not_printed_of_a_folder_that_others_may_enter(tmp_path):
    state = tmp_path / "s"
    state.mkdir(mode=0o755)
    state.chmod(0o755)
    ended = client("key", "--state", state, "--json", cwd=tmp_path)
    assert ended.returncode != 0
    assert json.loads(ended.stdout.splitlines()[-1])["error"]["code"] == "HANSA-CLIENT-FOLDER"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["key", "sesame"],
        ["--server", "http://127.0.0.1:9"],
        ["--server", "http://127.0.0.1:9", "--data", ".", "--attribute", "region"],
        ["--server", "http://127.0.0.1:9", "--data", ".", "--certificate", "x"],
        ["allow"],
        ["allow", "a.b:c"],
    ],
)
def test_what_is_missing_is_said(tmp_path, words):
    ended = client(*words, cwd=tmp_path)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
