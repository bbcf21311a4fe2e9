"""The systemd units: each starts a command that there is, with files that its how-to names, and starts again."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import generate_reference
import pytest
from pages import ROOT

from hansa.core.settings import SETTINGS

HOW_TO = {
    "hansa-client": "run-a-client",
    "hansa-server": "operate-a-server",
    "hansa-decryptor": "run-a-decryptor",
    "hansa-authority": "run-an-authority",
}
UNITS = sorted((ROOT / "deploy").iterdir())
HANSA = "/opt/hansa/bin/hansa"
SECTIONS = {"Unit", "Service", "Install"}

every_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)


def test_every_unit_has_a_page() -> None:
    assert {unit.name for unit in UNITS} == {f"{name}.service" for name in HOW_TO}


def lines(unit: Path) -> Iterator[tuple[str, str]]:
    """Yield (key, value) for every setting of a unit, those that come several times too."""
    for line in unit.read_text().replace("\\\n", " ").splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            yield key, value


def values(unit: Path, key: str) -> list[str]:
    return [value for name, value in lines(unit) if name == key]


def page(unit: Path) -> str:
    return (ROOT / "docs" / "how-to" / f"{HOW_TO[unit.stem]}.md").read_text()


@every_unit
def test_a_unit_parses_and_is_started_at_boot(unit: Path) -> None:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(unit.read_text().replace("\\\n", " "))
    assert set(parsed.sections()) == SECTIONS
    assert parsed["Install"]["WantedBy"] == "multi-user.target"
    assert parsed["Service"]["Restart"] == "always"


@every_unit
def test_a_unit_starts_a_command_that_there_is_with_options_that_it_takes(unit: Path, tmp_path: Path) -> None:
    (line,) = values(unit, "ExecStart")
    program, *words = shlex.split(line)
    assert program == HANSA
    commands = generate_reference.commands()
    verb = next(name for name in (" ".join(words[:2]), words[0]) if name in commands)
    known = {option for each in commands[verb].params for option in each.opts}
    options = [word for word in words if word.startswith("-")]
    assert [option for option in options if option not in known] == []
    taking = {option for each in commands[verb].params if not getattr(each, "is_flag", False) for option in each.opts}
    for option, value in zip(words, [*words[1:], "--"], strict=True):
        assert option not in taking or not value.startswith("--"), f"{option} has no value"
    started = [sys.executable, "-P", "-c", "from hansa.cli.main import main; main()", *words, "--help"]
    done = subprocess.run(started, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@every_unit
def test_what_a_unit_needs_is_in_its_how_to(unit: Path) -> None:
    """Files under /etc and /opt, the group and the user that somebody has to make, and the unit itself."""
    text, told = page(unit), unit.read_text()
    files = set(re.findall(r"/etc/hansa/[\w.]+", "\n".join(value for _, value in lines(unit))))
    owners = {*values(unit, "User"), *values(unit, "SupplementaryGroups")}
    needed = {f"deploy/{unit.name}", "/opt/hansa", *files, *owners}
    assert sorted(each for each in needed if each not in text) == []
    assert files <= set(re.findall(r"/etc/hansa/[\w.]+", told))


@every_unit
def test_variables_of_a_unit_are_used_or_known(unit: Path) -> None:
    (line,) = values(unit, "ExecStart")
    given = [name for value in values(unit, "Environment") for name in re.findall(r"(\w+)=", value)]
    known = {setting.name for setting in SETTINGS}
    assert [name for name in given if name not in known and f"${{{name}}}" not in line] == []
    assert set(re.findall(r"\$\{(\w+)\}", line)) <= {*given, *known}


@every_unit
def test_a_unit_starts_without_the_secrets_that_are_removed_after_use(unit: Path) -> None:
    """A missing file of LoadCredential= is fatal unless SetCredential= of that name stands for it (systemd.exec)."""
    loaded = {value.partition(":")[0] for value in values(unit, "LoadCredential")}
    standing = {name: text for name, _, text in (each.partition(":") for each in values(unit, "SetCredential"))}
    assert loaded == set(standing)
    assert [text for text in standing.values() if text.encode().decode("unicode_escape").strip()] == [], "no secret"
    assert "" not in standing.values(), "systemd ignores an empty one"
    assert [path for path in values(unit, "EnvironmentFile") if not path.startswith("-")] == []
    used = set(re.findall(r"%d/(\w+)", " ".join(values(unit, "ExecStart"))))
    assert used <= loaded


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here to be asked, too")
@every_unit
def test_systemd_has_nothing_to_say_against_a_unit(unit: Path, tmp_path: Path) -> None:
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace(HANSA, shutil.which("true") or "/bin/true"))
    verify = [shutil.which("systemd-analyze") or "", "verify", "--man=no", str(here)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
