"""The folder of one run: what it was (plan, environment), what happened (metrics), what came out (model, report)."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import sys
from collections.abc import Mapping, Sequence
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
            raise RunError(
                "HANSA-RUN-FOLDER",
                rule="A run never overwrites what exists.",
                found=f"{path} exists.",
                action=f"Choose another --out, or go on with it: hansa run --resume {path}",
            ) from None
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

    def write(self, name: str, content: str | bytes) -> None:
        """Write one file whole: to a new file, renamed into place."""
        data = content.encode() if isinstance(content, str) else content
        temporary = self.path / f".{name}.new"
        temporary.write_bytes(data)
        temporary.replace(self.path / name)

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
            content: dict[str, Any] = json.loads(self.read(name))
        except ValueError as error:
            raise RunError(
                "HANSA-RUN-CHANGED",
                rule=f"{name} of a run folder is JSON.",
                found=f"In {self.path} it is not: {error}.",
                action="Restore the file, or run the plan again.",
            ) from error
        return content

    def append_events(self, events: Sequence[Mapping[str, Any]]) -> int:
        """Append events to metrics.jsonl, bring them to disk, and return the file's length in bytes."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(event, allow_nan=False) + "\n" for event in events)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def cut_events(self, length: int) -> None:
        """Cut metrics.jsonl back to what a checkpoint counted."""
        path = self.path / METRICS
        path.touch()
        os.truncate(path, length)

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
        "processors": str(os.cpu_count()),
        "byteorder": sys.byteorder,
    }
