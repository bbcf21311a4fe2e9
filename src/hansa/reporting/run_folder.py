"""The folder of one run: what it was (plan, environment), what happened (metrics), what came out (model, report)."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from hansa.core.errors import RunError

PLAN: Final = "plan.toml"
ENVIRONMENT: Final = "environment.json"
METRICS: Final = "metrics.jsonl"
MODEL: Final = "model.safetensors"
REPORT: Final = "report.html"
REPLAY: Final = "replay.json"
CHECKPOINT: Final = "checkpoint"
"""The folder in a run folder that holds what a run in progress needs; it goes when the run is done."""
CHECKPOINT_FILE: Final = "checkpoint.safetensors"

_DIGESTED: Final = (PLAN, ENVIRONMENT, METRICS, MODEL, REPORT)
_PACKAGES: Final = ("hansa", "numpy", "torch", "pyarrow", "scikit-learn")


def new_run_id() -> str:
    """Return a name for one execution: the time and a few random letters."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


class RunFolder:
    """Reads and writes one run folder. A folder that exists is never overwritten."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make a new folder. Raises RunError if it exists or cannot be made."""
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise taken(path) from None
        except OSError as error:
            raise RunError(
                "HANSA-RUN-FOLDER",
                rule="A run needs a folder that it can make.",
                found=f"{path} cannot be made: {error.strerror}.",
                action="Choose another --out.",
            ) from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder. Raises RunError if it is none."""
        if not (path / PLAN).is_file() or not (path / REPLAY).is_file():
            raise RunError(
                "HANSA-RUN-FOLDER",
                rule=f"A run folder holds {PLAN} and {REPLAY}.",
                found=f"{path} does not." if path.exists() else f"{path} does not exist.",
                action="Give the folder that `hansa run` printed.",
            )
        return cls(path)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from running in this folder meanwhile. Raises RunError if one does already."""
        with (self.path / PLAN).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    "HANSA-RUN-FOLDER",
                    rule="One process at a time runs in a run folder.",
                    found=f"Another one is running in {self.path}.",
                    action="Wait until it has ended, or end it.",
                ) from None
            yield

    def write(self, name: str, content: str | bytes) -> None:
        """Write one file whole, and bring it to disk."""
        with storing(self.path):
            replace_file(self.path / name, content.encode() if isinstance(content, str) else content)

    def read(self, name: str) -> str:
        """Return one file as text. Raises RunError if it cannot be read."""
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(
                "HANSA-RUN-FOLDER",
                rule=f"A run folder holds {name}.",
                found=f"It cannot be read in {self.path}: {error}.",
                action="Restore the folder, or run the plan again.",
            ) from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Return one JSON file. Raises RunError if it is none."""
        try:
            content = json.loads(self.read(name))
            if not isinstance(content, dict):
                raise ValueError("it is no object")  # noqa: TRY004, TRY301 - handled with the other kinds of bad JSON
        except (ValueError, RecursionError) as error:
            raise RunError(
                "HANSA-RUN-CHANGED",
                rule=f"{name} of a run folder is JSON.",
                found=f"In {self.path} it is not: {error}.",
                action="Restore the file, or run the plan again.",
            ) from error
        return content

    def append_events(self, events: Sequence[Mapping[str, Any]], *, durable: bool = True) -> int:
        """Append events to metrics.jsonl and return the file's length in bytes.

        ``durable`` brings them to disk; what a checkpoint counts is brought there with the checkpoint.
        """
        with storing(self.path), (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(event, allow_nan=False) + "\n" for event in events)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            return file.tell()

    def cut_events(self, length: int) -> None:
        """Cut metrics.jsonl back to what a checkpoint counted. Raises RunError if it is shorter."""
        path = self.path / METRICS
        with storing(self.path):
            path.touch()
            if path.stat().st_size >= length:
                os.truncate(path, length)
                return
        raise RunError(
            "HANSA-RUN-CHANGED",
            rule=f"{METRICS} holds every closed round.",
            found=f"In {self.path} it is shorter than when the last round closed.",
            action="Restore the file, or run the plan again.",
        )

    def events(self) -> list[dict[str, Any]]:
        """Return the events of metrics.jsonl in order."""
        try:
            return [json.loads(line) for line in self.read(METRICS).splitlines()]
        except ValueError as error:
            raise RunError(
                "HANSA-RUN-CHANGED",
                rule=f"Every line of {METRICS} is JSON.",
                found=f"In {self.path} one is not: {error}.",
                action="Restore the file, or run the plan again.",
            ) from error

    def summary(self) -> dict[str, Any]:
        """Return the summary event of a finished run. Raises RunError if the run did not finish."""
        last = self.events()[-1:]
        if not last or last[0].get("event") != "summary":
            raise RunError(
                "HANSA-RUN-FOLDER",
                rule="A finished run ends its metrics with a summary.",
                found=f"The run in {self.path} has none yet.",
                action=f"Finish it: hansa run --resume {self.path}",
            )
        return {key: value for key, value in last[0].items() if key != "event"}

    def digests(self) -> dict[str, str]:
        """Return SHA-256 of every file that a finished run must keep as it is."""
        return {
            name: hashlib.sha256((self.path / name).read_bytes()).hexdigest()
            for name in _DIGESTED
            if (self.path / name).is_file()
        }

    def changed_files(self) -> list[str]:
        """Return the names of files that are not what replay.json recorded."""
        recorded = self.read_json(REPLAY).get("files", {})
        now = self.digests()
        return sorted(name for name in {*recorded, *now} if recorded.get(name) != now.get(name))


def replace_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all: a new file, to disk, renamed over the old one.

    Without ``durable`` that holds if the process is killed, but not if the machine is.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    if durable:
        bring_to_disk(temporary)
    temporary.replace(path)
    if durable:
        bring_to_disk(path.parent)


def bring_to_disk(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def storing(run: Path) -> Iterator[None]:
    """Turn a full or failing disk under a run folder into an error that says what is kept."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        kept = (run / CHECKPOINT / CHECKPOINT_FILE).exists()
        state = "The last closed round is kept." if kept else "No round was closed yet."
        raise RunError(
            "HANSA-RUN-STORAGE",
            rule="A run writes every round to its folder.",
            found=f"{run} could not be written: {reason}. {state}",
            action="Make room, then " + (f"hansa run --resume {run}" if kept else "run the plan again."),
        ) from error


def _linear_algebra() -> str:
    """Return the library of numpy's matrix products and its kernels, which the environment may choose."""
    import numpy as np  # noqa: F401, PLC0415 - what it loads is what is asked about
    from threadpoolctl import threadpool_info  # noqa: PLC0415 - needed where a run begins

    kernels = {
        " ".join(str(found.get(key) or "") for key in ("internal_api", "version", "architecture")).strip()
        for found in threadpool_info()
        if found.get("user_api") == "blas"
    }
    return ", ".join(sorted(kernels)) or "unknown"


def _processor() -> str:
    """Return the processor's name: matrix products may add up in another order on another one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def describe_environment(executor: str) -> dict[str, str]:
    """Return what a result may depend on beside plan and data: versions, platform, executor."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "executor": executor,
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "linear_algebra": _linear_algebra(),
        "processors": str(os.cpu_count()),
        "byteorder": sys.byteorder,
    }


def taken(path: Path) -> RunError:
    """Return the error for a run folder that is to be made, where there is something already."""
    return RunError(
        "HANSA-RUN-FOLDER",
        rule="A run never overwrites what exists.",
        found=f"{path} exists.",
        action=f"Choose another --out, or go on with it: hansa run --resume {path}",
    )
