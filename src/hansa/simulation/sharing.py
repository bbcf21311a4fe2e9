"""Objects shared with other processes of this machine through files that every one of them maps.

An array is written once, whatever the number of readers; one that is mapped from a file already is not written at all,
only named. The files are this run's own, in a folder that nobody else may enter: nothing that a user brings is read.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import shutil
import struct
import tempfile
import weakref
from pathlib import Path
from typing import Any, Final

import numpy as np

from hansa.core.layout import Array

_ALIGN: Final = 64
_HEADER: Final = struct.Struct("<QQ")
"""Bytes of the pickle, number of buffers; then the pickle, each buffer's length, and the buffers, aligned."""
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it, for this user alone


class Folder:
    """A folder of shared files, removed with its contents when it is closed."""

    def __init__(self, room: int) -> None:
        """Make a folder in memory, if that has more than twice the room (in bytes), or where temporary files go."""
        self.path = Path(tempfile.mkdtemp(prefix="hansa-shared-", dir=_MEMORY if _has_room(room) else None))
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder."""
        self._remove()


def _has_room(room: int) -> bool:
    return _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 * room


def share(content: Any, folder: Path) -> Path:
    """Write an object to a new file in a folder, and return its path."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=5, buffer_callback=buffers.append).dump(content)
    raw = [buffer.raw() for buffer in buffers]
    number, name = tempfile.mkstemp(dir=folder)
    with os.fdopen(number, "wb") as file:
        file.write(_HEADER.pack(pickled.tell(), len(raw)))
        file.write(pickled.getvalue())
        file.write(np.array([len(part) for part in raw], dtype=np.uint64).tobytes())
        for part in raw:
            file.write(bytes(-file.tell() % _ALIGN))
            file.write(part)
    return Path(name)


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
        return _map, (str(root.filename), content.dtype, offset, content.shape)


def _mapped_root(array: Array) -> np.memmap[Any, Any] | None:
    """Return the whole mapping that an array lies in, or None."""
    root: np.memmap[Any, Any] | None = None
    base: object = array
    while isinstance(base, np.ndarray):
        root = base if isinstance(base, np.memmap) else root
        base = base.base
    return root


def _map(name: str, dtype: Any, offset: int, shape: tuple[int, ...]) -> Array:
    return np.memmap(name, dtype=dtype, mode="r", offset=offset, shape=shape)
