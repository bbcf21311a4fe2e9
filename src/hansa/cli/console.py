"""Where the command line writes: people read standard error, programs the last line of standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hansa.core.errors import RunError

__all__ = [
    "NOT_DEFINED_STYLE",
    "command_line",
    "facts",
    "heading",
    "new_table",
    "print_json",
    "screen",
    "sentence",
    "shown",
    "write_new",
]

NOT_DEFINED_STYLE = "dim italic"


def screen() -> Console:
    """Return the console on standard error, for people. It marks up only what it is told to."""
    return Console(stderr=True, highlight=False)


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object as one line of standard output, for programs."""
    sys.stdout.write(json.dumps(content, allow_nan=False, default=str) + "\n")
    sys.stdout.flush()


def sentence(console: Console, text: str, style: str = "") -> None:
    """Print a sentence as it is, wrapped between words."""
    console.print(Text(text, style=style))


def command_line(console: Console, label: str, text: str) -> None:
    """Print a path or command after a label; it is never broken, so that it can be copied."""
    console.print(Text(f"{label:<8} ", style="dim").append(text, style="not dim"), soft_wrap=True)


def heading(console: Console, text: str) -> None:
    """Print a title over what follows."""
    console.print()
    console.print(Text(text, style="bold"))


def new_table(columns: Sequence[str], *, title: str = "", texts: int = 1) -> Table:
    """Return a table with a rule below its head; all but the first ``texts`` columns hold numbers."""
    table = Table(
        title=escape(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1),
    )
    for position, column in enumerate(columns):
        justify: Any = "left" if position < texts else "right"
        table.add_column(escape(column), justify=justify, overflow="fold")
    return table


def facts(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name), Text(value))
    console.print(table)


def shown(path: Path | str) -> str:
    """Return a path as a shell takes it."""
    import shlex  # noqa: PLC0415 - only where a command is shown

    return shlex.quote(str(path))


def write_new(path: Path, content: str, option: str) -> None:
    """Write a new text file. Raises RunError if it exists or cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        found, action = f"{path} exists.", f"Choose another {option}, or remove it."
    except OSError as error:
        found, action = f"{path} cannot be written: {error.strerror or error}.", f"Choose another {option}."
    else:
        return
    raise RunError("HANSA-RUN-FOLDER", rule="A file that exists is never overwritten.", found=found, action=action)
