"""Keys that are neither in the database nor beside the blobs: who takes those reads no update.

A round has a key, which seals its updates. The database keeps it wrapped; what unwraps it lies with the provider, and
is destroyed when the round closes. From then on nobody can read those updates, whatever backup they have.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hansa.core.errors import StoreError
from hansa.core.killpoints import reached
from hansa.store.failures import of_disk
from hansa.store.files import sync, sync_folder, write_all, write_new

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_KEY: Final = 32
_NONCE: Final = 12
_SUFFIX: Final = ".kek"
_TEMPORARY: Final = ".new"
_LEFT: Final = 3600.0


@dataclass(frozen=True)
class HeldKey:
    """A key that the provider holds, and since when, in Unix seconds."""

    id: str
    at: float


class KeyProvider(Protocol):
    """Makes keys, unwraps them, and destroys them. Its calls may wait for a disk or a network: run them in a thread."""

    def create(self, key_id: str) -> tuple[bytes, bytes]:
        """Make a key of 32 bytes; return it, and the form in which it may be kept elsewhere.

        An id may be used again after a failure: the last key that was made is as good as the others.
        """

    def unwrap(self, key_id: str, wrapped: bytes) -> bytes:
        """Return a key from its wrapped form. Raises StoreError HANSA-KEY-MISSING for one that was destroyed."""

    def destroy(self, key_id: str) -> None:
        """Make a key's wrapped form worthless, for ever. A key that is not there is destroyed already."""

    def held(self) -> list[HeldKey]:
        """Return the keys that are not destroyed."""


def checked(key_id: str) -> str:
    """Return an id. Raises ValueError for one that no key may have: it could name another file or path."""
    if _ID.fullmatch(key_id) is None:
        raise ValueError(f"{key_id!r} is not a name for a key")
    return key_id


class LocalKeys:
    """A file with a key-encrypting key for each id, in a folder that only the server's user may enter.

    The folder must not be part of the backup of the database or of the blobs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        for left in self.folder.glob("*" + _TEMPORARY):  # by a process that was killed
            with contextlib.suppress(FileNotFoundError):
                if left.stat().st_mtime < time.time() - _LEFT:
                    left.unlink()

    def create(self, key_id: str) -> tuple[bytes, bytes]:
        """Make a key, on disk when this returns; where there is a wrapping key of that id, it wraps the new one."""
        kek, key, nonce = self._wrapping_key(key_id), os.urandom(_KEY), os.urandom(_NONCE)
        reached("storage.key-created")
        return key, nonce + AESGCM(kek).encrypt(nonce, key, key_id.encode())

    def unwrap(self, key_id: str, wrapped: bytes) -> bytes:
        """Return a key from its wrapped form."""
        path = self._file(key_id)
        try:
            return AESGCM(path.read_bytes()).decrypt(wrapped[:_NONCE], wrapped[_NONCE:], key_id.encode())
        except (FileNotFoundError, InvalidTag, ValueError):
            raise key_missing(key_id) from None

    def destroy(self, key_id: str) -> None:
        """Overwrite a wrapping key, and remove it; gone from disk when this returns."""
        path = self._file(key_id)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_WRONLY)
            try:
                write_all(descriptor, os.urandom(_KEY))
                sync(descriptor)
            finally:
                os.close(descriptor)
            path.unlink()
        sync_folder(self.folder)
        reached("storage.key-destroyed")

    def held(self) -> list[HeldKey]:
        """Return the keys that are not destroyed."""
        found = []
        for path in sorted(self.folder.glob("*" + _SUFFIX)):
            with contextlib.suppress(FileNotFoundError):
                found.append(HeldKey(path.name.removesuffix(_SUFFIX), path.stat().st_mtime))
        return found

    def _wrapping_key(self, key_id: str) -> bytes:
        """Return the wrapping key of an id, made where there is none. It has its name when it is whole."""
        path, kek = self._file(key_id), os.urandom(_KEY)
        temporary = self.folder / f"{secrets.token_hex(8)}{_TEMPORARY}"
        try:
            write_new(temporary, kek)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            sync_folder(self.folder)
            return path.read_bytes()
        except OSError as error:
            raise of_disk(error) or error from error
        finally:
            temporary.unlink(missing_ok=True)

    def _file(self, key_id: str) -> Path:
        return self.folder / (checked(key_id) + _SUFFIX)


def key_missing(key_id: str) -> StoreError:
    """Return the error that a key cannot be unwrapped."""
    return StoreError(
        "HANSA-KEY-MISSING",
        rule="What unwraps a key lies with the key provider until the key is destroyed.",
        found=f"The provider has none for {key_id}, or another.",
        action="Check the provider's settings; what was sealed with a destroyed key cannot be read again.",
    )
