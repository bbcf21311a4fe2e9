"""Fenced blocks of Markdown pages, and how they are run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


_EXTRA = re.compile(r"(?:\.|hansa)\[([a-z,]+)\]")
LIBRARIES = {
    "torch": ("torch",),
    "opacus": ("opacus", "torch", "dp_accounting", "scipy"),
    "parquet": ("pyarrow",),
    "digits": ("sklearn", "scipy"),
    "ray": ("ray",),
    "client": ("httpx", "stamina"),
    "server": ("alembic", "connectrpc", "fastapi", "granian", "httpx", "obstore", "psycopg", "sqlalchemy", "structlog"),
    "decryptor": ("granian", "starlette", "structlog"),
    "authority": ("granian", "starlette", "structlog"),
    "dp": ("dp_accounting", "scipy"),
    "vault": ("hvac",),
}
"""What is imported of the libraries of each extra: enough to tell that it is missing."""
_WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {modules!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the file that a comment above it names."""

    language: str
    text: str
    file: str | None


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page in order."""
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        note = found["note"] or ""
        file = note.removeprefix("file: ") if note.startswith("file: ") else None
        yield Block(found["language"], found["text"], file)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def extras(page: Path) -> set[str]:
    """Return the extras that a page tells its reader to install."""
    return {name for found in _EXTRA.findall(page.read_text(encoding="utf-8")) for name in found.split(",")}


def run_page(page: Path, folder: Path) -> None:
    """Do in a folder what a page tells its reader to do: write files, type commands, run Python.

    Libraries of extras are there for it only where the page tells to install them.
    """
    there = {library for name in extras(page) for library in LIBRARIES[name]}
    modules = {library for libraries in LIBRARIES.values() for library in libraries} - there
    (folder / "sitecustomize.py").write_text(_WITHOUT.format(modules=modules), encoding="utf-8")
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            _run([sys.executable, "-c", block.text], folder)
        elif block.language == "console":
            for line in block.text.splitlines():
                if line.startswith("$ "):
                    _run(shlex.split(line.removeprefix("$ ")), folder)


def _run(command: list[str], folder: Path) -> None:
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)[:300]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
