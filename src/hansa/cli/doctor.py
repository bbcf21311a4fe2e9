"""``hansa doctor``: what is installed, what is missing for what, and what the machine has."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console
from rich.text import Text

from hansa.cli.console import facts, heading, new_table, print_json, screen, sentence
from hansa.cli.options import AsJson
from hansa.core.settings import SETTINGS, cache_folder, value_of

OK: Final = "ok"
MISSING: Final = "missing"
BROKEN: Final = "broken"


@dataclass(frozen=True)
class Part:
    """A package: what it is for, and how it is installed where it is optional."""

    package: str
    module: str
    use: str
    extra: str = ""


ESSENTIAL: Final = (
    Part("numpy", "numpy", "all numbers"),
    Part("pydantic", "pydantic", "checking plans"),
    Part("cryptography", "cryptography", "secure sums, keys and signatures"),
    Part("rfc8785", "rfc8785", "the hash of a plan"),
    Part("safetensors", "safetensors", "models and checkpoints"),
    Part("jinja2", "jinja2", "the report"),
    Part("tomli-w", "tomli_w", "writing plans"),
    Part("typer", "typer", "the command line"),
    Part("rich", "rich", "tables and progress"),
)
OPTIONAL: Final = (
    Part(
        "torch",
        "torch",
        "the torch trainer: any nn.Module",
        "'.[torch]' (without a GPU, install PyTorch's CPU build first)",
    ),
    Part("pyarrow", "pyarrow", "reading Parquet files", "'.[parquet]'"),
    Part("dp-accounting", "dp_accounting", "what differential privacy costs", "'.[dp]'"),
    Part("scikit-learn", "sklearn", 'the source "digits"', "'.[digits]'"),
)


@dataclass(frozen=True)
class Finding:
    """A package as it was found."""

    part: Part
    state: str
    version: str
    problem: str = ""


def command(
    *,
    as_json: AsJson = False,
) -> None:
    """Say what is installed, what is missing for what, and what this machine has."""
    console = screen()
    with console.status("looking") if console.is_terminal else nullcontext():
        findings = [_examine(part) for part in (*ESSENTIAL, *OPTIONAL)]
    machine = dict(_machine())
    broken = [finding for finding in findings if finding.state != OK and finding.part in ESSENTIAL]
    _show(console, findings, machine, broken)
    if as_json:
        print_json(_answer(findings, machine, broken))
    if broken:
        raise typer.Exit(1)


def _examine(part: Part) -> Finding:
    """Import one package, since one that is installed may still be broken."""
    try:
        version = metadata.version(part.package)
    except metadata.PackageNotFoundError:
        return Finding(part, MISSING, "")
    try:
        importlib.import_module(part.module)
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything
        return Finding(part, BROKEN, version, f"{type(error).__name__}: {error}")
    return Finding(part, OK, version)


def _show(console: Console, findings: list[Finding], machine: dict[str, str], broken: list[Finding]) -> None:
    """Print the findings for people."""
    table = new_table(["package", "version", "state", "for"], texts=4)
    styles = {OK: "green", MISSING: "yellow", BROKEN: "bold red"}
    for position, finding in enumerate(findings):
        if position == len(ESSENTIAL):
            table.add_section()
        style = "bold red" if finding in broken else styles[finding.state]
        table.add_row(finding.part.package, finding.version, Text(finding.state, style=style), Text(_use(finding)))
    console.print(table)
    heading(console, "This machine")
    facts(console, list(machine.items()))
    console.print()
    if broken:
        names = ", ".join(finding.part.package for finding in broken)
        sentence(
            console,
            f"Hansa cannot work without: {names}. Install it again: pip install --force-reinstall hansa",
            "bold red",
        )
    else:
        sentence(console, "Everything that is essential works.", "green")


def _use(finding: Finding) -> str:
    """Return what a package is for, and what to do where it is not there."""
    wanted = finding.part.extra and finding.state != OK
    install = f"; in Hansa's folder: pip install -e {finding.part.extra}" if wanted else ""
    problem = f" ({finding.problem})" if finding.problem else ""
    return finding.part.use + problem + install


def _machine() -> Iterator[tuple[str, str]]:
    """Yield what the machine has, as names and values."""
    yield "hansa", metadata.version("hansa")
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()
    yield "processors", _processors()
    yield "memory", _memory()
    here, cache = Path.cwd(), cache_folder()
    yield "disk here", f"{_gigabytes(shutil.disk_usage(here).free)} free in {here}"
    yield "cache", _cache(cache)
    for setting in SETTINGS:
        value = value_of(setting)
        shown = "set, not shown" if value and setting.secret else value
        yield setting.name, shown or f"not set ({setting.default})"


def _processors() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} of {os.cpu_count()} usable"


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (ValueError, OSError):
        return "not known"
    return f"{_gigabytes(total)}, {_gigabytes(free)} unused"


def _cache(folder: Path) -> str:
    """Return where the cache is, what it holds, and whether it can be written."""
    if not folder.exists():
        return f"{folder} (not there yet; made when needed)"
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    writable = "" if os.access(folder, os.W_OK) else ", not writable"
    return f"{folder} ({_gigabytes(used)} used{writable})"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _answer(findings: list[Finding], machine: dict[str, str], broken: list[Finding]) -> dict[str, Any]:
    """Return the findings for programs."""
    return {
        "works": not broken,
        "packages": {
            finding.part.package: {
                "state": finding.state,
                "version": finding.version or None,
                "for": finding.part.use,
                "essential": finding.part in ESSENTIAL,
                "problem": finding.problem or None,
            }
            for finding in findings
        },
        "machine": machine,
    }
