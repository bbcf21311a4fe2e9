"""Objects shared with other processes of this machine through files that every one of them maps.

An array is written once, whatever the number of readers; one that is mapped from a file already is not written at all,
only named. The files are this run's own, in a folder that nobody else may enter: nothing that a user brings is read.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import pickle
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from hansa.algorithms.plan import Plan
from hansa.core.errors import RunError
from hansa.core.layout import Array
from hansa.core.own_folder import LOCK, OwnFolder
from hansa.core.schema import to_mapping
from hansa.simulation.memory import free_memory

_ALIGN: Final = 64
_HEADER: Final = struct.Struct("<QQ")
"""Bytes of the pickle, number of buffers; then the pickle, each buffer's length, and the buffers, aligned."""
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it, for this user alone
_PREFIX: Final = "hansa-shared-"


class Folder:
    """A folder of shared files, removed with its contents when it is closed."""

    def __init__(self, room: int) -> None:
        """Make a folder in memory, if that has more than twice the room (in bytes), or where temporary files go."""
        self._folder = OwnFolder(_PREFIX, _MEMORY if _has_room(room) else None)

    @property
    def path(self) -> Path:
        """Return where it is."""
        return self._folder.path

    def keep_only(self, *paths: Path) -> None:
        """Remove what is in the folder beside some files: what workers left that died."""
        for path in self.path.iterdir():
            if path not in paths and path.name != LOCK:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder."""
        self._folder.close()


def _has_room(room: int) -> bool:
    if not (_MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)):
        return False
    # Its size is only a limit: what is written there takes memory that programs need.
    return min(shutil.disk_usage(_MEMORY).free, free_memory()) > 2 * room


@dataclass(frozen=True)
class Packed:
    """An object as it will be written: a pickle, and its arrays where they are in memory."""

    pickled: bytes
    buffers: tuple[memoryview, ...]

    @classmethod
    def of(cls, content: Any) -> Packed:
        """Return an object, packed; no array is copied."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = io.BytesIO()
        _Pickler(pickled, protocol=5, buffer_callback=buffers.append).dump(content)
        return cls(pickled.getvalue(), tuple(buffer.raw() for buffer in buffers))

    @property
    def size(self) -> int:
        """Return about how many bytes it takes."""
        return len(self.pickled) + sum(len(part) + _ALIGN for part in self.buffers)

    def write(self, folder: Path) -> Path:
        """Write it to a new file in a folder, and return its path. Raises RunError where there is no room."""
        try:
            number, name = tempfile.mkstemp(dir=folder)
            with os.fdopen(number, "wb") as file:
                file.write(_HEADER.pack(len(self.pickled), len(self.buffers)))
                file.write(self.pickled)
                file.write(np.array([len(part) for part in self.buffers], dtype=np.uint64).tobytes())
                for part in self.buffers:
                    file.write(bytes(-file.tell() % _ALIGN))
                    file.write(part)
        except OSError as error:
            raise _no_room(folder, error) from error
        return Path(name)


def share(content: Any, folder: Path) -> Path:
    """Write an object to a new file in a folder, and return its path. Raises RunError where there is no room."""
    return Packed.of(content).write(folder)


def _no_room(folder: Path, error: OSError) -> RunError:
    return RunError(
        "HANSA-RUN-STORAGE",
        rule="Worker processes share data and updates through files.",
        found=f"{folder} could not be written: {'it is full' if error.errno == errno.ENOSPC else error}.",
        action="Make room there, or use fewer --workers or a smaller --chunk. The last closed round is kept.",
    )


def shared(path: Path) -> Any:
    """Return an object that was shared; its arrays are views of the mapped file, and cannot be written to."""
    with path.open("rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    length, count = _HEADER.unpack_from(whole)
    place = _HEADER.size + length
    sizes = np.frombuffer(whole, dtype=np.uint64, count=count, offset=place).tolist()
    place += 8 * count
    buffers = []
    for size in sizes:
        place += -place % _ALIGN
        buffers.append(whole[place : place + size])
        place += size
    return pickle.loads(whole[_HEADER.size : _HEADER.size + length], buffers=buffers)  # noqa: S301 - this run's own file


class _Pickler(pickle.Pickler):
    """Names the file of an array that is mapped from one, instead of writing the array."""

    def reducer_override(self, content: Any) -> Any:
        """Return how to map the array again, or NotImplemented for everything else."""
        if not isinstance(content, np.ndarray) or not content.flags.c_contiguous or content.dtype.hasobject:
            return NotImplemented
        root = _mapped_root(content)
        if root is None or root.filename is None:
            return NotImplemented
        offset = root.offset + content.ctypes.data - root.ctypes.data
        name = str(root.filename)
        return _map, (name, _version(name), content.dtype, offset, content.shape)


def _mapped_root(array: Array) -> np.memmap[Any, Any] | None:
    """Return the whole mapping that an array lies in, or None."""
    root: np.memmap[Any, Any] | None = None
    base: object = array
    while isinstance(base, np.ndarray):
        root = base if isinstance(base, np.memmap) else root
        base = base.base
    return root


def _version(name: str) -> tuple[int, int, int]:
    """Return what changes when a file is written to, or replaced by another."""
    about = Path(name).stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


def _map(name: str, version: tuple[int, int, int], dtype: Any, offset: int, shape: tuple[int, ...]) -> Array:
    """Map an array again. Raises RunError where its file is not the one that was shared."""
    if _version(name) != version:
        raise RunError(
            "HANSA-RUN-CHANGED",
            rule="Data that are mapped from a file stay as they are while a run reads them.",
            found=f"{name} was changed or replaced.",
            action="Restore the file, and go on with --resume or run the plan again.",
        )
    return np.memmap(name, dtype=dtype, mode="r", offset=offset, shape=shape)


_SCRIPT: Final = "__main__"


def of_the_script(plan: Plan) -> dict[str, Any]:
    """Return what a plan names of the program that runs, a script or a notebook, which no other process can import."""
    prefix = f"{_SCRIPT}:"
    named = {text.removeprefix(prefix) for text in _texts(to_mapping(plan)) if text.startswith(prefix)}
    known = vars(sys.modules[_SCRIPT])
    return {name: known[name] for name in named if name in known}


def put_into_script(own: Mapping[str, Any]) -> None:
    """Make known, in another process, what a plan names of the program that runs."""
    vars(sys.modules[_SCRIPT]).update(own)


def _texts(table: Any) -> Iterator[str]:
    if isinstance(table, str):
        yield table
    elif isinstance(table, Mapping):
        for content in table.values():
            yield from _texts(content)
    elif isinstance(table, list | tuple):
        for content in table:
            yield from _texts(content)
