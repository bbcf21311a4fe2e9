"""How commands fail: sentences for people, codes for programs, tracebacks in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from hansa.cli import doctor
from hansa.cli.main import VERBS, build
from hansa.core.errors import CATALOGUE
from hansa.core.settings import SETTINGS, TRACEBACK, is_on


@pytest.fixture
def broken(monkeypatch, tmp_path, plan):
    """A plan whose trainer breaks in its second round."""
    (tmp_path / "breaking.py").write_text(
        "from dataclasses import dataclass\n"
        "from hansa.training.linear import LinearTrainer\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Breaking(LinearTrainer):\n"
        "    def train(self, model, context, states):\n"
        "        if context.assignment.round == 2:\n"
        "            raise ZeroDivisionError('something odd')\n"
        "        return super().train(model, context, states)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield plan
    sys.modules.pop("breaking", None)


def test_an_unforeseen_error_is_a_sentence_and_a_file_in_the_run_folder(hansa, broken):
    found = hansa("run", broken, "--set", "trainer.kind=breaking:Breaking", "--out", "out", "--json")
    assert found.status == 70
    assert "[HANSA-INTERNAL]" in found.err
    assert "it is a bug in Hansa, or in code that the plan names" in found.said
    assert "ZeroDivisionError: something odd" in found.said
    assert "breaking.py, line 7" in found.said
    assert "Traceback" not in found.err
    assert "Traceback" in Path("out/error.txt").read_text()
    assert "hansa run --resume out" in found.said
    assert found.json["error"]["code"] == "HANSA-INTERNAL"


def test_the_traceback_is_shown_on_request(hansa, broken, monkeypatch):
    monkeypatch.setenv("HANSA_TRACEBACK", "1")
    found = hansa("run", broken, "--set", "trainer.kind=breaking:Breaking")
    assert "Traceback (most recent call last)" in found.err


def test_before_there_is_a_folder_the_file_is_a_temporary_one(hansa, plan, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("hansa.cli.check.prepare", lambda plan: 1 / 0)
    found = hansa("check", plan)
    assert found.status == 70
    [written] = tmp_path.glob("hansa-error-*.txt")
    assert written.name in found.err


def test_an_interrupt_before_the_run_began_says_so(hansa, plan, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hansa.cli.run.run", interrupted)
    found = hansa("run", plan)
    assert found.status == 130
    assert "nothing was written" in found.said


@pytest.mark.parametrize("arguments", [["rnu"], ["run", "--executer", "serial"], ["check"], ["explain", "HANSA-PLAN"]])
def test_usage_errors_end_with_2_a_code_and_the_command_whose_help_says_more(hansa, arguments):
    found = hansa(*arguments)
    assert found.status == 2
    assert found.err.startswith("error [HANSA-USAGE]: A command is called as its --help says. ")
    named = "hansa" if arguments == ["rnu"] else f"hansa {arguments[0]}"
    assert found.err.endswith(f" See: {named} --help\n")
    assert "Traceback" not in found.err


@pytest.mark.parametrize("arguments", [[], ["ledger", "--help"]])
def test_who_asks_for_nothing_or_for_help_gets_help_and_no_error(hansa, arguments):
    found = hansa(*arguments)
    assert found.status == (0 if arguments else 2)
    assert "Usage: hansa" in found.out + found.err
    assert "HANSA-USAGE" not in found.err


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["rnu"], "rnu"),
        (["run", "--executer", "serial"], "--executer"),
        (["check"], "PLAN"),
        (["explain", "HANSA-PLAN"], "did you mean"),
        (["run", "--resume", "x", "--out", "y"], "give nothing beside it"),
    ],
)
def test_usage_errors_are_told_to_programs_too(hansa, arguments, found):
    end = hansa(*arguments, "--json")
    assert end.status == 2
    assert end.json["error"]["code"] == "HANSA-USAGE"
    assert found in end.json["error"]["found"]
    assert set(end.json["error"]) == {"code", "rule", "found", "action", "problems"}


def test_help_with_json_prints_no_error(hansa):
    end = hansa("run", "--json", "--help")
    assert end.status == 0
    assert '"error"' not in end.out


@pytest.fixture
def leaving(monkeypatch, tmp_path, plan):
    """A plan beside code that ends the process with success, here or there."""
    (tmp_path / "leaving.py").write_text(
        "import sys\n"
        "from dataclasses import dataclass\n"
        "from hansa.training.linear import LinearModel, LinearTrainer\n"
        "def factory() -> LinearModel:\n"
        "    sys.exit(0)\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Training(LinearTrainer):\n"
        "    def train(self, model, context, states):\n"
        "        sys.exit(0)\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Building(LinearTrainer):\n"
        "    def initial(self, model, signature, stream):\n"
        "        sys.exit()\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Hungry(LinearTrainer):\n"
        "    def train(self, model, context, states):\n"
        "        raise MemoryError('Unable to allocate 3 TiB')\n"
    )
    (tmp_path / "gone.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield plan
    for name in ("leaving", "gone"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("verb", ["run", "check"])
@pytest.mark.parametrize(
    ("override", "status", "code"),
    [
        ("model.factory=sys:exit", 2, "HANSA-MODEL-UNSUITABLE"),
        ("model.factory=leaving:factory", 2, "HANSA-MODEL-UNSUITABLE"),
        ("model.factory=gone:factory", 2, "HANSA-CODE-IMPORT"),
        ("trainer.kind=leaving:Training", 70, "HANSA-INTERNAL"),
        ("trainer.kind=leaving:Building", 70, "HANSA-INTERNAL"),
        ("trainer.kind=gone:Training", 2, "HANSA-PLAN-INVALID"),
    ],
)
def test_code_that_ends_the_process_does_not_end_a_command_with_success(hansa, leaving, verb, override, status, code):
    found = hansa(verb, leaving, "--set", override, "--json")
    assert found.status == status
    assert f"[{code}]" in found.err
    assert found.json["error"]["code"] == code


def test_an_exit_within_a_round_names_the_run_folder(hansa, leaving):
    found = hansa("run", leaving, "--set", "trainer.kind=leaving:Training", "--out", "out")
    assert found.status == 70
    assert "SystemExit" in found.said
    assert "Traceback" in Path("out/error.txt").read_text()


@pytest.mark.parametrize("verb", ["run", "check"])
def test_too_little_memory_is_a_sentence(hansa, leaving, verb):
    found = hansa(verb, leaving, "--set", "trainer.kind=leaving:Hungry", "--json")
    assert found.status == 4
    assert "not enough memory (Unable to allocate 3 TiB)" in found.said
    assert found.json["error"]["code"] == "HANSA-RUN-MEMORY"


EVIL = "\x1b]0;pwn\x07\x1b[2Jname\x9b31m\x7f\u202e"


def evil_files(tmp_path):
    """A table whose client and column names, and a plan whose name, would steer a terminal."""
    rows = [f"{client}{EVIL},{i % 2},{i}" for client in "ab" for i in range(12)]
    (tmp_path / "evil.csv").write_text("\n".join([f"who,label,x{EVIL}", *rows]), encoding="utf-8")
    (tmp_path / "evil.toml").write_text(
        'name = "NAME"\nrounds = 2\n[data]\nsource = "csv"\npath = "evil.csv"\nclient = "who"\ntest_fraction = 0.25\n'
        '[features]\nlabel = "label"\n[model]\nfactory = "hansa.training.linear:logistic"\n'
        '[trainer]\nkind = "linear"\nepochs = 1\noptimizer = { kind = "sgd", learning_rate = 0.1 }\n'
        '[evaluation]\nbaselines = ["local-only"]\n'.replace("NAME", EVIL.encode("unicode_escape").decode())
        .replace("\\x1b", "\\u001b")
        .replace("\\x07", "\\u0007")
        .replace("\\x9b", "\\u009b")
        .replace("\\x7f", "\\u007f"),
        encoding="utf-8",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "evil.toml"],
        ["run", "evil.toml", "--out", "out"],
        ["data", "evil.toml"],
        ["init", "evil.csv", "--client", "nobody", "--label", "label"],
        ["run", "evil.toml", "--set", f"trainer.{EVIL}=1"],
        ["check", f"{EVIL}.toml"],
    ],
)
def test_nothing_that_is_printed_steers_the_terminal(hansa, tmp_path, arguments):
    evil_files(tmp_path)
    found = hansa(*arguments)
    assert "name" in found.err
    assert not any((ord(letter) < 32 and letter != "\n") or 127 <= ord(letter) < 160 for letter in found.err)
    assert "\u202e" not in found.err


@pytest.mark.parametrize("verb", ["check", "run"])
def test_on_a_terminal_only_richs_own_sequences_are_written(tmp_path, verb):
    pty = pytest.importorskip("pty")
    evil_files(tmp_path)
    ours, theirs = pty.openpty()
    code = "from hansa.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, verb, "evil.toml"], cwd=tmp_path, stderr=theirs, stdout=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        try:
            while part := os.read(ours, 65536):
                seen += part
        except OSError:  # a terminal whose other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    assert b"name" in seen
    assert b"pwn" in seen
    assert b"\x1b]0" not in seen
    assert b"\x07" not in seen
    assert "\x9b".encode() not in seen


def test_an_unknown_executor_is_refused_with_the_nearest(hansa, plan):
    found = hansa("run", plan, "--executor", "seriell")
    assert found.status == 2
    assert "--executor: unknown executor 'seriell'; did you mean 'serial'?" in found.said


def test_brackets_in_names_are_printed_as_they_are(hansa, plan):
    assert "[red]name[/x]" in hansa("check", plan, "--set", 'name="[red]name[/x]"').err


def test_the_version_is_told(hansa):
    found = hansa("--version")
    assert found.status == 0
    assert found.out.startswith("hansa 0.")


def test_help_names_every_verb_and_setting(hansa):
    found = hansa("--help")
    for word in (
        "run",
        "check",
        "replay",
        "compare",
        "data",
        "init",
        "doctor",
        *(setting.name for setting in SETTINGS),
    ):
        assert word in found.out


@pytest.mark.parametrize("code", CATALOGUE)
def test_every_code_is_explained(hansa, code):
    found = hansa("explain", code.lower(), "--json")
    assert found.json == {code: {"exit_status": CATALOGUE[code][0], "meaning": CATALOGUE[code][1]}}


@pytest.mark.parametrize("why", ["STRANGER", "REFUSED"])
def test_what_to_do_about_an_authority_that_refuses_is_explained(hansa, why):
    said = hansa("explain", f"HANSA-AUTHORITY-{why}").said
    assert "its operator" in said
    assert "hansa clients suspend" in said


def test_doctor_finds_this_installation_working(hansa):
    found = hansa("doctor", "--json")
    assert found.status == 0
    assert found.json["works"] is True
    assert {"torch", "pyarrow", "scikit-learn", "numpy"} <= found.json["packages"].keys()
    assert {"memory", "disk here", "cache", "processors"} <= found.json["machine"].keys()
    assert "Everything that is essential works." in found.said


def test_doctor_says_what_is_missing_for_what(hansa, monkeypatch):
    part = doctor.Part("no-such-package", "no_such_package", "nothing at all", "'.[nothing]'")
    monkeypatch.setattr(doctor, "OPTIONAL", (part,))
    found = hansa("doctor")
    assert found.status == 0
    assert "no-such-package" in found.said
    assert "nothing at all; in Hansa's folder: pip install -e '.[nothing]'" in found.said


def test_doctor_fails_where_something_essential_is_missing(hansa, monkeypatch):
    monkeypatch.setattr(doctor, "ESSENTIAL", (doctor.Part("no-such-package", "no_such_package", "everything"),))
    found = hansa("doctor")
    assert found.status == 1
    assert "cannot work without: no-such-package" in found.said


@pytest.mark.parametrize(("value", "on"), [("1", True), ("yes", True), ("0", False), ("", False), ("off", False)])
def test_a_switch_is_on_or_off(monkeypatch, value, on):
    monkeypatch.setenv("HANSA_TRACEBACK", value)
    assert is_on(TRACEBACK) is on


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_verbs_says_what_each_verb_says_of_itself(verb):
    module = import_module(f"hansa.cli.{verb}")
    if hasattr(module, "app"):  # the help of a verb with commands of its own is that of the list
        assert build([verb]).registered_groups[0].typer_instance.info.help == VERBS[verb]
        return
    told = module.command.__doc__.split("\n\n")[0]
    assert VERBS[verb] == " ".join(told.split())
