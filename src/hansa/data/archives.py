"""Arrays from an .npz archive: read, or mapped from disk where they are large. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal

import numpy as np

from hansa.core.errors import DataError
from hansa.core.layout import Array
from hansa.core.settings import cache_folder
from hansa.data.recognition import recognised
from hansa.data.refusals import malformed, reading

MemoryMap = Literal["auto", "always", "never"]

LARGE: Final = 256 * 2**20
"""Bytes above which "auto" maps an array."""
_BLOCK: Final = 1 << 22
_REORDERED: Final = 1 << 26
"""Bytes that are brought into C order at once; the more, the fewer times the disk is read."""
_LOCAL_HEADER: Final = 30
"""Bytes of a member's own header before its name and extra field (APPNOTE.TXT of the ZIP format, 4.3.7)."""
_HEADER_STEP: Final = 64
"""Headers of .npy files are padded to a multiple of it: they differ by so much where one is longer."""
_BROKEN: Final = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Archive:
    """The arrays of one .npz file, read when they are asked for."""

    path: Path
    names: tuple[str, ...]
    memory_map: MemoryMap

    def array(self, name: str) -> Array:
        """Return one array in C order; a large one is mapped: in place, or from the cache where it lies otherwise."""
        with opened(self.path) as archive:
            member = archive.getinfo(f"{name}.npy")
            self._refuse_objects(archive, name)
            if not self._maps(member.file_size):
                with archive.open(member) as stream:
                    read = np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
                return np.ascontiguousarray(read) if read.ndim > 1 else read
            with archive.open(member) as stream:
                fortran = _header(stream)[1]
            if member.compress_type == zipfile.ZIP_STORED and not fortran:
                return plain(_mapped(self.path, member))
            return plain(_load(_unpacked(self.path, archive, member, fortran=fortran)))

    def _refuse_objects(self, archive: zipfile.ZipFile, name: str) -> None:
        """Raise DataError for an array of Python objects, which only unpickling could read."""
        with archive.open(f"{name}.npy") as stream:
            if _header(stream)[2].hasobject:
                raise malformed(
                    self.path,
                    f"array {name!r} holds Python objects; object arrays are never read",
                    action=f"Write text with {name}={name}.astype(str), and numbers with {name}={name}.astype(float).",
                )

    def _maps(self, size: int) -> bool:
        return self.memory_map == "always" or (self.memory_map == "auto" and size > LARGE)


def open_archive(path: Path, memory_map: MemoryMap = "auto") -> Archive:
    """Return the archive in a file. Raises DataError where it is missing or not an .npz archive."""
    with opened(path) as archive:
        names = tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
    if not names:
        raise malformed(path, "the archive holds no arrays", action="Write it with numpy.savez.")
    return Archive(path, names, memory_map)


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive, and turn what may be wrong with it into a DataError."""
    with reading(path):
        try:
            with zipfile.ZipFile(path) as archive:
                yield archive
        except _BROKEN as error:
            raise _unsound(path, error) from error


def _unsound(path: Path, error: Exception) -> DataError:
    """Return the error for a file that is not a sound archive: what it is, where that is known."""
    kind = None if zipfile.is_zipfile(path) else recognised(path)
    if kind is not None:
        return malformed(path, f"{kind[0]}, not a sound .npz archive", action=kind[1])
    action = 'Write it again with numpy.savez; for a table as text set source = "csv".'
    return malformed(path, f"it is not a sound .npz archive of plain arrays ({error})", action=action)


def plain(mapped: Array) -> Array:
    """Return a mapped array without the bookkeeping of numpy.memmap, which costs time at each gather."""
    return mapped.view(np.ndarray) if mapped.ndim else np.array(mapped)


def is_mapped(array: Array) -> bool:
    """Return True for an array whose numbers lie in a file."""
    return _mapping(array) is not None


def let_go(array: Array) -> None:
    """Let the process's memory go that holds pages of a mapped array; they are read again where they are needed."""
    mapping = _mapping(array)
    if mapping is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


def _mapping(array: Array) -> mmap.mmap | None:
    base: object = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    return base


def _mapped(path: Path, member: zipfile.ZipInfo) -> Array:
    """Map an uncompressed member where it lies in the archive."""
    with path.open("rb") as file:
        file.seek(_start(file, member))
        shape, fortran, dtype = _header(file)
        offset = file.tell()
    if dtype.hasobject:
        raise ValueError("object arrays cannot be read")
    order: Literal["F", "C"] = "F" if fortran else "C"
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {version} of the .npy format is for named fields")


def _load(path: Path) -> Array:
    return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _unpacked(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, *, fortran: bool) -> Path:
    """Return a member as a file of the cache, in C order and keyed by its content; written once, atomically."""
    folder = cache_folder() / "arrays"
    target = folder / f"{_content_key(path, member)}{'.c' if fortran else ''}.npy"
    if target.is_file() and abs(target.stat().st_size - member.file_size) <= (_HEADER_STEP if fortran else 0):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not fortran:
            with _appearing(target) as file:
                _copy_member(archive, member, file)
        elif member.compress_type == zipfile.ZIP_STORED:
            with _appearing(target) as file:
                _write_in_c_order(_mapped(path, member), file)
        else:
            _unpack_in_c_order(archive, member, target)
    except OSError as error:
        raise _cache_error(folder, error) from error
    return target


def _unpack_in_c_order(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Unpack a compressed member beside ``target``, and write it there in C order."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".unpacking-") as unpacked:
        _copy_member(archive, member, unpacked)
        unpacked.flush()
        with _appearing(target) as file:
            _write_in_c_order(_load(Path(unpacked.name)), file)


@contextmanager
def _appearing(target: Path) -> Iterator[IO[bytes]]:
    """Open a file that is called ``target`` once it is whole and on the disk, and never before."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".unpacking-", delete=False) as file:
        temporary = Path(file.name)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _copy_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: IO[bytes]) -> None:
    with archive.open(member) as stream:
        while block := stream.read(_BLOCK):
            file.write(block)


def _write_in_c_order(mapped: Array, file: IO[bytes]) -> None:
    """Write a mapped array as .npy in C order, so many rows at once: each is strewn over the whole of it."""
    header = {"descr": np.lib.format.dtype_to_descr(mapped.dtype), "fortran_order": False, "shape": mapped.shape}
    np.lib.format.write_array_header_1_0(file, header)
    step = max(1, _REORDERED * len(mapped) // max(1, mapped.nbytes))
    for start in range(0, len(mapped), step):
        file.write(mapped[start : start + step].tobytes())


def _content_key(path: Path, member: zipfile.ZipInfo) -> str:
    """Return the SHA-256 of a member's compressed bytes, read without unpacking them."""
    digest = hashlib.sha256(f"{member.filename} {member.compress_type} {member.file_size}\n".encode())
    with path.open("rb") as file:
        file.seek(_start(file, member))
        left = member.compress_size
        while left > 0 and (block := file.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Return where a member's content begins: behind its own header, whose length only that header knows."""
    file.seek(member.header_offset)
    local = file.read(_LOCAL_HEADER)
    lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    return member.header_offset + _LOCAL_HEADER + lengths


def _cache_error(folder: Path, error: OSError) -> DataError:
    return DataError(
        "HANSA-DATA-MISSING",
        rule="Large arrays that are compressed, or in Fortran order, are written once into the cache as they are read.",
        found=f"{folder} cannot be written: {error.strerror or error}.",
        action='Set HANSA_CACHE to a folder with space, or data.memory_map = "never".',
    )
