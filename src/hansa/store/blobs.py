"""Blobs: bytes under a name, in a folder or in a bucket. What was put is durable, and is there whole or not at all.

A name is made of parts with slashes between: letters, digits, dots, hyphens and underscores.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from hansa.core.killpoints import reached
from hansa.store.failures import missing, of_disk
from hansa.store.files import make_folders, sync, sync_folder, write_all

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows, where a server is not run in production
    fcntl = None  # type: ignore[assignment]

_CHUNK: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}(/[A-Za-z0-9][A-Za-z0-9._-]{0,199}){1,7}")
_TOGETHER: Final = 3
"""Of names with five parts or more, so many at the end make one file name: no folder for each client of each round."""
_JOINT: Final = "~"
_INCOMING: Final = ".incoming"
Make = Callable[[], Iterable[bytes]]
"""Makes the bytes of a blob, in pieces that need not be joined."""


@dataclass(frozen=True)
class Listed:
    """A blob in a list: its name, size in bytes and when it was put, in Unix seconds."""

    name: str
    size: int
    at: float


class Blobs(Protocol):
    """Bytes under names."""

    async def put(self, name: str, chunks: AsyncIterable[bytes]) -> None:
        """Keep bytes under a name, in place of what was there; durable when this returns."""

    async def put_bytes(self, name: str, content: bytes) -> None:
        """Keep bytes that are at hand, as ``put``."""

    async def put_made(self, name: str, make: Make) -> None:
        """Keep bytes that are made in a thread, as ``put``; nothing is kept where ``make`` raises."""

    async def size(self, name: str) -> int:
        """Return the size of a blob in bytes. Raises StoreError where there is none."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Give the bytes of a blob from ``start`` to before ``stop``, in chunks. Raises StoreError as ``size``."""

    async def delete(self, name: str) -> None:
        """Remove a blob, if there is one."""

    async def names(self, prefix: str) -> list[str]:
        """Return the names that begin so, in order."""

    async def listed(self, prefix: str) -> list[Listed]:
        """Return the blobs whose names begin so, by name."""

    def path(self, name: str) -> Path | None:
        """Return the local file of a blob, where blobs are local files."""


def checked(name: str) -> str:
    """Return a name. Raises ValueError for one that no blob may have: it could lead out of the folder."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not a name for a blob")
    return name


class LocalBlobs:
    """Blobs as files of a folder. Several processes of one machine may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._incoming = _Incoming(self.folder / _INCOMING)

    async def put(self, name: str, chunks: AsyncIterable[bytes]) -> None:
        """Keep bytes under a name; on disk when this returns, with the name."""
        iterator = aiter(chunks)
        beginning = [chunk async for chunk in _some(iterator, 2)]
        if len(beginning) < 2:
            await self.put_bytes(name, b"".join(beginning))
            return
        target = self._file(checked(name))
        temporary = self._incoming.folder / secrets.token_hex(12)
        try:
            await self._write(temporary, beginning, iterator)
            await asyncio.to_thread(self._rename, temporary, target)
        except OSError as error:
            await asyncio.to_thread(temporary.unlink, missing_ok=True)
            raise of_disk(error) or error from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    async def put_bytes(self, name: str, content: bytes) -> None:
        """Keep bytes that are at hand: as ``put``, with one change of threads."""
        await asyncio.to_thread(self.put_now, name, [content])

    async def put_made(self, name: str, make: Make) -> None:
        """Keep bytes that are made in the thread that writes them."""
        await asyncio.to_thread(lambda: self.put_now(name, make()))

    def put_now(self, name: str, pieces: Iterable[bytes]) -> None:
        """Keep bytes that are at hand, piece after piece, in this thread."""
        target = self._file(checked(name))
        temporary = self._incoming.folder / secrets.token_hex(12)
        try:
            with temporary.open("wb", buffering=0) as file:
                for piece in pieces:
                    write_all(file.fileno(), piece)
                sync(file.fileno())
            self._rename(temporary, target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise of_disk(error) or error from error

    async def size(self, name: str) -> int:
        """Return the size of a blob in bytes."""
        try:
            return self._file(checked(name)).stat().st_size
        except FileNotFoundError:
            raise missing(f"blob {name}") from None

    async def read(self, name: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Give the bytes of a blob; nothing of the page cache is copied twice, and memory stays at one chunk."""
        try:
            file = self._file(checked(name)).open("rb", buffering=0)
        except FileNotFoundError:
            raise missing(f"blob {name}") from None
        with file:
            place, end = start, os.fstat(file.fileno()).st_size if stop is None else stop
            while place < end:
                chunk = await asyncio.to_thread(os.pread, file.fileno(), min(_CHUNK, end - place), place)
                if not chunk:
                    return
                place += len(chunk)
                yield chunk

    async def delete(self, name: str) -> None:
        """Remove a blob, and the folder that it leaves empty."""
        file = self._file(checked(name))
        await asyncio.to_thread(self._remove, file)

    async def names(self, prefix: str) -> list[str]:
        """Return the names that begin so, in order."""
        return await asyncio.to_thread(lambda: sorted(name for name, _ in self._found(prefix)))

    async def listed(self, prefix: str) -> list[Listed]:
        """Return the blobs whose names begin so, by name."""

        def look() -> Iterator[Listed]:
            for name, entry in self._found(prefix):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    yield Listed(name, status.st_size, status.st_mtime)

        return await asyncio.to_thread(lambda: sorted(look(), key=lambda each: each.name))

    def path(self, name: str) -> Path | None:
        """Return the file of a blob."""
        return self._file(checked(name))

    def close(self) -> None:
        """Let go of the folder of what is coming in."""
        self._incoming.close()

    async def _write(self, temporary: Path, beginning: list[bytes], chunks: AsyncIterator[bytes]) -> None:
        with temporary.open("wb", buffering=0) as file:
            for chunk in beginning:
                await asyncio.to_thread(write_all, file.fileno(), chunk)
            async for chunk in chunks:
                await asyncio.to_thread(write_all, file.fileno(), chunk)
            await asyncio.to_thread(sync, file.fileno())

    def _rename(self, temporary: Path, target: Path) -> None:
        reached("storage.blob-written")
        for last_try in (False, True):
            make_folders(target.parent, self.folder)
            try:
                temporary.replace(target)
                break
            except FileNotFoundError:  # its folder was empty, and somebody removed it in between
                if last_try:
                    raise
        reached("storage.blob-renamed")
        sync_folder(target.parent)

    def _remove(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        if file.parent.parent != self.folder:
            with contextlib.suppress(OSError):  # not empty, or gone
                file.parent.rmdir()

    def _file(self, name: str) -> Path:
        parts = name.split("/")
        if len(parts) > _TOGETHER + 1:
            parts = [*parts[:-_TOGETHER], _JOINT.join(parts[-_TOGETHER:])]
        return self.folder.joinpath(*parts)

    def _found(self, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        parts = prefix.split("/")[:-1]
        if any(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", part) is None for part in parts):
            raise ValueError(f"{prefix!r} is not the beginning of a blob's name")
        start = self.folder
        while parts and (start / parts[0]).is_dir():
            start /= parts.pop(0)
        above = "" if start == self.folder else f"{start.relative_to(self.folder).as_posix()}/"
        for path, entry in _files(start):
            name = above + path.replace(_JOINT, "/")
            if name.startswith(prefix):
                yield name, entry


async def _some(chunks: AsyncIterator[bytes], count: int) -> AsyncIterator[bytes]:
    """Give so many chunks, or fewer where there are no more."""
    for _ in range(count):
        try:
            yield await anext(chunks)
        except StopAsyncIteration:
            return


def _files(folder: Path | str, above: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Give the files of a folder and of those below, each with its path from there."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name != _INCOMING:
                yield from _files(entry.path, f"{above}{entry.name}/")
        else:
            yield above + entry.name, entry


class _Incoming:
    """The folder of files that have no name yet: one a process, locked while that lives, removed when it is dead."""

    def __init__(self, above: Path) -> None:
        above.mkdir(mode=0o700, exist_ok=True)
        with _lock(above / "lock"):
            for entry in sorted(above.iterdir()):
                if entry.is_dir() and (lock := _try_lock(entry / "lock")) is not None:
                    shutil.rmtree(entry, ignore_errors=True)
                    os.close(lock)
            self.folder = above / secrets.token_hex(8)
            self.folder.mkdir(mode=0o700)
            self._lock = _try_lock(self.folder / "lock")
        self._closing = threading.Lock()

    def close(self) -> None:
        """Remove the folder."""
        with self._closing:
            if self._lock is not None:
                shutil.rmtree(self.folder, ignore_errors=True)
                os.close(self._lock)
                self._lock = None


def _try_lock(path: Path) -> int | None:
    """Lock a file until its descriptor, which is returned, is closed; None where another process holds it."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    except FileNotFoundError:
        return None
    if fcntl is None:  # pragma: no cover - Windows
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock on a file."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
