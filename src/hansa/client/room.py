"""How much disk a client's folder takes: asked before a model, a report, rows or a secure sum are written to it.

All files of the folder count. Models and jobs that are kept to spare a fetch give way, the oldest first. Small books
beside them (names and outcomes of reports, counts, the site's own records) count too, and are written in any case.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hansa.client.policy import refused

_FETCHED = ("models", "jobs")


@dataclass(frozen=True)
class Room:
    """The room of a folder: ``most`` bytes, or no limit."""

    path: Path
    most: int | None

    def objections(self, size: int, keeping: Collection[Path] = ()) -> list[str]:
        """Return why so many bytes more do not fit, even where all but some fetched files give way."""
        if self.most is None:
            return []
        stays = self._used() - sum(_size(each) for each in self._fetched(keeping))
        if stays + size <= self.most:
            return []
        return [f"{size} bytes more do not fit beside the {stays} in the client's folder: disk_mb allows {self.most}"]

    def make(self, size: int, keeping: Collection[Path] = ()) -> None:
        """Let go of fetched files, except some, until so many bytes more fit. Raises RefusedError where they do not."""
        reasons = self.objections(size, keeping)
        if reasons:
            raise refused(reasons)
        for each in self._fetched(keeping):
            if self.most is None or self._used() + size <= self.most:
                return
            each.unlink(missing_ok=True)

    def _used(self) -> int:
        return sum(_size(each) for each in self.path.rglob("*") if each.is_file())

    def _fetched(self, keeping: Collection[Path]) -> list[Path]:
        """Return the fetched files that may go, oldest first."""
        found = [each for name in _FETCHED for each in (self.path / name).iterdir() if each not in keeping]
        return sorted(found, key=lambda each: each.stat().st_mtime_ns)


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
