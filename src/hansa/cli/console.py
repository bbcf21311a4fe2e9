"""Where the command line writes: people read standard error, programs the last line of standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
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
    "printable",
    "screen",
    "sentence",
    "shown",
    "write_new",
]

NOT_DEFINED_STYLE = "dim italic"

_CONTROLS: Final = (*range(0x20), *range(0x7F, 0xA0), 0x061C, *range(0x200E, 0x2010), *range(0x202A, 0x202F))
_REPLACED: Final = {code: "?" for code in (*_CONTROLS, *range(0x2066, 0x206A)) if chr(code) not in "\n\t"}
"""Control characters (C0, delete, C1) and those of text direction -> what stands in their place."""


class Screen(Console):
    """A console that shows control characters of texts as they are not: replaced, wherever they come from.

    Names of plans, clients and columns, and notes, are other people's; a terminal would obey what is in them.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of what is printed; those that control the terminal are rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def printable(text: str) -> str:
    """Return a text with every control character but line ends and tabs replaced, and those that turn its direction."""
    return text.translate(_REPLACED)


def screen() -> Console:
    """Return the console on standard error, for people. It marks up only what it is told to."""
    return Screen(stderr=True, highlight=False)


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object as one line of standard output, for programs."""
    sys.stdout.write(json.dumps(content, allow_nan=False, default=str) + "\n")
    sys.stdout.flush()


def sentence(console: Console, text: str, style: str = "") -> None:
    """Print a sentence as it is, wrapped between words."""
    console.print(Text(text, style=style))


def command_line(console: Console, label: str, text: str, width: int = 8) -> None:
    """Print a path or command after a label; it is never broken, so that it can be copied."""
    console.print(Text(f"{label:<{width}} ", style="dim").append(text, style="not dim"), soft_wrap=True)


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
    raise RunError("HANSA-OUTPUT-FILE", rule="A file that exists is never overwritten.", found=found, action=action)
