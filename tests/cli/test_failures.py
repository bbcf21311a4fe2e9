"""How commands fail: sentences for people, codes for programs, tracebacks in a file."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from hansa.cli import doctor
from hansa.cli.main import VERBS
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
def test_usage_errors_end_with_2_and_without_a_traceback(hansa, arguments):
    found = hansa(*arguments)
    assert found.status == 2
    assert "Traceback" not in found.err


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


def test_doctor_finds_this_installation_working(hansa):
    found = hansa("doctor", "--json")
    assert found.status == 0
    assert found.json["works"] is True
    assert {"torch", "pyarrow", "scikit-learn", "numpy"} <= found.json["packages"].keys()
    assert {"memory", "disk here", "cache", "processors"} <= found.json["machine"].keys()
    assert "Everything that is essential works." in found.said


def test_doctor_says_what_is_missing_for_what(hansa, monkeypatch):
    part = doctor.Part("no-such-package", "no_such_package", "nothing at all", "hansa[nothing]")
    monkeypatch.setattr(doctor, "OPTIONAL", (part,))
    found = hansa("doctor")
    assert found.status == 0
    assert "no-such-package" in found.said
    assert "nothing at all; pip install 'hansa[nothing]'" in found.said


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
    told = import_module(f"hansa.cli.{verb}").command.__doc__.split("\n\n")[0]
    assert VERBS[verb] == " ".join(told.split())
