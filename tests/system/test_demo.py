"""``hansa demo`` and ``hansa up`` as somebody runs them: what they give, what they keep, and that they leave nothing.

Every process that one of them starts is known by a mark in its environment, which the kernel tells. Test code within
the processes takes coins of the seed (for rounding: so that the model is the simulation's, bit for bit), writes down
what each hospital gives and what the server seals, and sets aside what the demonstration is about to remove. No process
of the demonstration finds a package that the light one does not bring.
"""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import time
import uuid
from os import environ
from pathlib import Path

import httpx
import pytest
from tests.system.test_secure_bytes import HOOKS, files, given, hits, needles

import hansa
from hansa.cli.local_federation import free_port
from hansa.testing.hooks import SEEDED, hooks

PLAN = Path(__file__).parents[2] / "examples" / "heart_secure.toml"
SHORT = ("rounds=2", "evaluation.every=2", "evaluation.baselines=[]")
KEEP = """
import shutil, tempfile

cleanup = tempfile.TemporaryDirectory.cleanup

def kept(self):
    if "hansa-demo-" in self.name:
        shutil.copytree(self.name, os.environ["HANSA_TEST_KEPT"])
    cleanup(self)

tempfile.TemporaryDirectory.cleanup = kept
"""
ABSENT = ("dp_accounting", "hvac", "opacus", "pyarrow", "ray", "scipy", "sklearn", "torch")
LIGHT = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\n"
MARK = "HANSA_TEST_MARK"
PATIENCE = 60.0


class Started:
    """A command as a process of its own, with a mark that its children inherit."""

    def __init__(self, folder, *words, **environment):
        self.mark = f"{MARK}={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        temporary = folder / "temporary"
        temporary.mkdir(exist_ok=True)
        self.said = folder / f"said-{value}"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", "from hansa.cli.main import main; main()", *map(str, words)],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                env={**environ, "COLUMNS": "200", "TMPDIR": str(temporary), name: value, **environment},
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for number in (self.process.pid, *self.alive()):
            subprocess.run(["kill", "-9", str(number)], check=False, capture_output=True)
        self.process.wait()

    @property
    def lines(self):
        return self.said.read_text().splitlines()

    def alive(self):
        """Return the numbers of all processes that have the mark."""
        found = []
        for each in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in each.read_bytes().split(b"\0"):
                    found.append(int(each.parent.name))
            except OSError:
                continue  # it has ended, or is another user's
        return found

    def told(self, word):
        """Wait for a line that begins with a word; return what follows."""
        until, ended = time.monotonic() + PATIENCE, False
        while time.monotonic() < until and not ended:
            ended = self.process.poll() is not None
            for line in self.lines:
                if line.split()[:1] == [word]:
                    return line.split(maxsplit=1)[1].strip()
            time.sleep(0.05)
        raise AssertionError(self.lines)


def port_of(url):
    return int(url.rsplit(":", 1)[1])


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what was closed may rest for a while
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory):
    """Run the shipped plan for two rounds: the command, its port, and how many processes it had as it ran."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "dump").mkdir()
    dumps = {"HANSA_TEST_DUMP": str(folder / "dump"), "HANSA_TEST_KEPT": str(folder / "kept")}
    settings = [word for each in SHORT for word in ("--set", each)]
    code = hooks(folder, LIGHT + HOOKS + SEEDED + KEEP)
    with Started(folder, "demo", PLAN, *settings, "--out", "run", "--json", **dumps, **code) as command:
        port, most = port_of(command.told("server")), 0
        assert not is_free(port)
        while command.process.poll() is None:
            most = max(most, len(command.alive()))
            time.sleep(0.05)
        assert command.process.returncode == 0, command.lines
        hidden = subprocess.run(
            [sys.executable, "-c", "import torch"],
            env={**environ, **dumps, **code},
            check=False,
            stderr=subprocess.DEVNULL,
        )
        assert hidden.returncode != 0, "it ran without"
        yield folder, command, port, most


@pytest.fixture(scope="module")
def summary(demonstrated):
    return json.loads(demonstrated[1].lines[-1])


def test_the_demo_gives_the_row_and_the_model_of_the_simulation(demonstrated, summary, tmp_path):
    simulated = hansa.run(hansa.read_plan(PLAN, SHORT), out=tmp_path / "run", executor="serial").summary
    for metric in ("auc", "accuracy", "loss"):
        ours, theirs = (each["metrics"]["federated"][metric]["overall"] for each in (summary, simulated))
        assert ours == theirs, metric
    assert (summary["rounds"], summary["model_sha256"]) == (2, simulated["model_sha256"])
    folder, command, *_ = demonstrated
    assert (folder / command.told("report")).samefile(folder / "run" / "report.html")


def test_the_demo_leaves_no_process_no_port_and_no_file_but_the_run_folder(demonstrated):
    folder, command, port, most = demonstrated
    assert most >= 6, "the command, the server and four agents"
    assert command.alive() == []
    assert is_free(port)
    assert [*(folder / "temporary").iterdir()] == []
    assert sorted(path.name for path in (folder / "run").iterdir()) == [
        "environment.json", "metrics.jsonl", "model.safetensors", "plan.toml", "replay.json", "report.html",
    ]  # fmt: skip


def test_in_the_demo_no_hospital_gives_its_update_in_the_clear(demonstrated):
    folder = demonstrated[0]
    plan = hansa.read_plan(folder / "run" / "plan.toml")
    assert plan.secure_aggregation is not None
    assert (plan.secure_aggregation.protocol, plan.secure_aggregation.registrar) == ("secagg-full", "pinned")
    contributions = given(folder / "dump")
    kinds = [str(each["kind"]) for each in contributions]
    assert (kinds.count("training"), set(kinds)) == (8, {"training", "evaluation", "statistics"})
    assert all("packed" in each and needles(each) for each in contributions), "each went into a ring"
    kept = files(folder / "kept" / "server") | {"log": (folder / "kept" / "server.log").read_bytes()}
    assert any(name.endswith("hansa.sqlite") for name in kept)
    sealed = {each.name: each.read_bytes() for each in (folder / "dump").glob("sealed-*")}
    assert len(sealed) > 8, "masked vectors, and the machines' records"
    assert set(hits(contributions, kept | sealed)) == set()


def clients_of(federation, ca, token):
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=federation, verify=ssl.create_default_context(cafile=ca), headers=headers) as http:
        assert http.get("/readyz").status_code == 200
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            clients = http.get("/api/v1/populations/hospitals/clients").raise_for_status().json()["clients"]
            if [each["state"] for each in clients] == ["active"] * 4:
                return sorted(each["id"] for each in clients)
            time.sleep(0.1)
    raise AssertionError(clients)


def test_up_keeps_a_federation_until_it_is_interrupted_and_the_same_folder_goes_on(tmp_path):
    port, found = free_port(), []
    for stop in (signal.SIGINT, signal.SIGTERM):
        with Started(tmp_path, "up", "--folder", "up", "--port", port) as command:
            url, token, ca = (command.told(word) for word in ("pages", "token", "ca"))
            assert url == f"https://localhost:{port}"
            secret = Path(token).read_text().strip()
            found.append(clients_of(url, ca, secret))
            assert len(command.alive()) >= 6, "the command, the server and four agents"
            command.process.send_signal(stop)
            assert command.process.wait(PATIENCE) == 0, command.lines
            assert secret not in command.said.read_text()
            assert command.alive() == []
            assert is_free(port)
    assert found[0] == found[1], "the same four clients"
