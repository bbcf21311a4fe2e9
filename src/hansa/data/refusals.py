"""How this room refuses: bad data, a missing file, a plan key that a source cannot honour."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hansa.core.errors import DataError, HansaError, PlanError, Problem
from hansa.core.sections import Data


def invalid(*, rule: str, found: str, action: str) -> DataError:
    """Return the error for data that do not fit the plan."""
    return DataError("HANSA-DATA-INVALID", rule=rule, found=found, action=action)


def unreadable(path: Path, why: str, *, action: str = "Correct data.path, or mend the file.") -> DataError:
    """Return the error for a file that is missing or cannot be read."""
    return DataError(
        "HANSA-DATA-MISSING", rule="A data file must exist and be readable.", found=f"{path}: {why}.", action=action
    )


def malformed(path: Path, why: str, *, action: str = "Mend the file, or correct data.path.") -> DataError:
    """Return the error for a file that is there, but is not what it should be."""
    return invalid(
        rule="A data file must be whole and of the kind it is read as.", found=f"{path}: {why}.", action=action
    )


def plan_problem(path: str, message: str) -> PlanError:
    """Return the error for one key of the plan."""
    return PlanError([Problem(path, message)])


def leave_some(data: Data, clients: int) -> None:
    """Raise PlanError where every client would be held out."""
    if data.held_out_clients >= clients:
        message = f"must leave a client to train, but {data.held_out_clients} of {clients} would be held out."
        raise plan_problem("data.held_out_clients", message)


def extra_missing(package: str, needed_for: str, install: str) -> HansaError:
    """Return the error for an optional dependency that is not installed."""
    return HansaError(
        "HANSA-EXTRA-MISSING",
        rule=f"{needed_for} needs the package {package}.",
        found="It is not installed.",
        action=f"Run: pip install '{install}'.",
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the operating system says of ``path`` into a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise _nowhere(path) from error
    except IsADirectoryError as error:
        raise unreadable(path, "it is a folder", action='Name a file, or use source = "folder".') from error
    except PermissionError as error:
        raise unreadable(path, "this user may not read it", action="Grant access, or name another file.") from error
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error


def _nowhere(path: Path) -> DataError:
    """Return the error for a path where nothing is; a relative one is of the working directory."""
    if path.is_absolute() or str(path).startswith("~"):
        return unreadable(path, "there is no such file")
    action = "Correct data.path, or run in another folder; a path in a plan is relative to the folder in which you run."
    return unreadable(path, f"there is no such file in {Path.cwd()}", action=action)


def resolved(path: str) -> Path:
    """Return the path that a plan names, from the working directory; ``~`` is the user's home.

    Raises DataError where nothing is there.
    """
    with reading(Path(path)):
        try:
            path.encode()  # a plan and a report, which name it, are UTF-8
            found = Path(path).expanduser().resolve()
            found.stat()
        except (ValueError, RuntimeError) as error:
            raise unreadable(Path(repr(path)), f"it is not a path ({error})") from error
    return found
