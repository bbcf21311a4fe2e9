"""How a command fails: a sentence and a code for people, an object for programs, never a bare traceback."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from hansa.cli.console import print_json, printable
from hansa.core.errors import CATALOGUE, HansaError, PlanError, RunError, SettingsError, described
from hansa.core.settings import TRACEBACK, is_on

INTERNAL: Final = "HANSA-INTERNAL"
USAGE: Final = "HANSA-USAGE"
_FILE: Final = "error.txt"


class UnexpectedError(Exception):
    """Carries the run folder of an exception that no one foresaw; the cause is that exception."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__(folder)
        self.folder = folder


@contextmanager
def running(folder: Callable[[], Path | None]) -> Iterator[None]:
    """Say of an interrupt or an unforeseen exception in which run folder it came, if there is one yet."""
    try:
        yield
    except (HansaError, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        raise _interrupted(folder()) from None
    except MemoryError as error:
        raise out_of_memory(error) from error
    except (Exception, SystemExit) as error:
        raise UnexpectedError(folder()) from error


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Return a verb's command that never ends the process by itself: SystemExit is what other people's code raised."""

    @wraps(command)
    def call(*positional: Any, **options: Any) -> None:
        try:
            command(*positional, **options)
        except SystemExit as error:
            raise UnexpectedError(None) from error

    return call


def out_of_memory(error: MemoryError) -> HansaError:
    """Return what to say where the machine has too little memory."""
    asked = f" ({' '.join(str(error).split()).rstrip('.')})" if str(error) else ""
    return RunError(
        "HANSA-RUN-MEMORY",
        rule="A plan runs where the model, the updates and a chunk of the examples fit into memory.",
        found=f"There is not enough memory{asked}.",
        action="Lower trainer.steps, trainer.epochs, trainer.batch_size or the model's size, or take a larger machine.",
    )


def is_usage(error: Exception) -> bool:
    """Return True for what the parser of the command line raises: its class has another home in each version."""
    return hasattr(error, "format_message")


def tell_usage(console: Console, error: Any, *, as_json: bool) -> int:
    """Print what was wrong with the command line; return the exit status."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return CATALOGUE[USAGE].exit_status  # the help is on the screen
    context = getattr(error, "ctx", None)
    found = error.format_message().strip().replace("Input should be", "it must be")
    command = "hansa" if context is None else context.command_path
    rule, action = "A command is called as its --help says.", f"See: {command} --help"
    found = found if found.endswith((".", "?", ")")) else f"{found}."
    return tell(console, HansaError(USAGE, rule=rule, found=found, action=action), as_json=as_json)


def _interrupted(folder: Path | None) -> RunError:
    if folder is None:
        found, action = "It had not begun, and nothing was written.", "Start it again."
    else:
        found = "The last closed round is saved."
        action = f"Go on with: hansa run --resume {folder}"
    rule = "An interrupted run can go on from its last whole round."
    return RunError("HANSA-RUN-INTERRUPTED", rule=rule, found=found, action=action)


def tell(console: Console, error: HansaError, *, as_json: bool) -> int:
    """Print a foreseen error, for people and (if asked) for programs; return the exit status."""
    text = Text("error", style="bold red").append(f" [{error.code}]: ", style="bold")
    if isinstance(error, PlanError | SettingsError):
        count = len(error.problems)
        subject = error.subject if isinstance(error, SettingsError) else "the plan"
        text.append(f"{subject} has {count} problem{'' if count == 1 else 's'}, each at its key path:", style="none")
        for problem in error.problems:
            text.append(f"\n  {problem.path}", style="bold").append(f": {problem.message}", style="not bold")
    else:
        text.append(f"{error.rule} {error.found} {error.action}", style="none")
    console.print(text, soft_wrap=True)
    if as_json:
        print_json({"error": described(error)})
    return error.exit_status


def tell_unexpected(console: Console, error: BaseException, folder: Path | None, *, as_json: bool) -> int:
    """Print that something is broken and where the traceback lies; return the exit status."""
    full = "".join(traceback.format_exception(error))
    written = _write(full, folder)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    what = f"This should not happen: it is a bug in Hansa, or in code that the plan names. {reason} ({_place(error)})."
    where = f"The full traceback is in {written}; send it along when you report this." if written else ""
    text = Text("error", style="bold red").append(f" [{INTERNAL}]: ", style="bold").append(what, style="none")
    console.print(text, soft_wrap=True)
    if where:
        console.print(Text(where), soft_wrap=True)
    if folder is not None:
        console.print(Text(f"The last closed round is saved: hansa run --resume {folder}"), soft_wrap=True)
    if is_on(TRACEBACK) or not written:
        sys.stderr.write(printable(full))
    if as_json:
        print_json({"error": {"code": INTERNAL, "found": reason, "traceback": str(written) if written else None}})
    return CATALOGUE[INTERNAL][0]


def _place(error: BaseException) -> str:
    """Return the file and line that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "no line known"


def _write(full: str, folder: Path | None) -> Path | None:
    """Write a traceback into the run folder, else into a temporary file; return where, or None if neither works."""
    try:
        if folder is not None and folder.is_dir():
            path = folder / _FILE
            path.write_text(full, encoding="utf-8")
            return path
    except OSError:
        pass
    try:
        descriptor, name = tempfile.mkstemp(prefix="hansa-error-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(full)
        return Path(name)
    except OSError:
        return None
