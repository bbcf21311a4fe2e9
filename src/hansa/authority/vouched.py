"""The keys that an authority vouches for: a file of one key a line, which is read again whenever it has changed."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass, field
from typing import Final

from hansa.core.errors import HansaError, RefusedError
from hansa.serving.own_files import OwnFiles, write
from hansa.serving.settings import KEY_BYTES, key_of

FILE: Final = "vouched.txt"
_LOCK: Final = "vouched.lock"
_COMMENT: Final = "#"
_SETTLED: Final = 2.0
"""Seconds after which a file that has changed again has another time: until then it is read each time."""


@dataclass
class Vouched:
    """An authority's list. A line is a key in base64, and ``#`` with a comment where there is one."""

    own: OwnFiles
    _seen: tuple[int, ...] = ()
    _keys: frozenset[bytes] = field(default=frozenset(), repr=False)

    def keys(self) -> frozenset[bytes]:
        """Return the keys of the file as it is now, 32 bytes each; none where there is no file.

        Raises HansaError where it cannot be read, or a line is no key: then the authority vouches for nobody.
        """
        try:
            status = (self.own.place / FILE).stat()
            seen = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
            if seen != self._seen:
                self._seen = ()
                self._keys = frozenset(_keys(self._lines()))
                self._seen = seen if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED else ()
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise unreadable(f"it cannot be read: {error.strerror or error}.") from None
        return self._keys

    def add(self, text: str, comment: str = "") -> bool:
        """Vouch for a key; return False where that was so. Raises HansaError: no key, or a list with problems."""
        key = _one(text)
        with self.own.turn(_LOCK):
            lines = self._lines()
            if key in _keys(lines):
                return False
            shown = " ".join(comment.split())
            self._write([*lines, f"{text.strip()}{f'  {_COMMENT} {shown}' if shown else ''}"])
        return True

    def remove(self, text: str) -> bool:
        """Vouch for a key no more; return False where that was so. Raises HansaError as :meth:`add` does."""
        key = _one(text)
        with self.own.turn(_LOCK):
            lines = self._lines()
            if key not in _keys(lines):
                return False
            self._write([line for line in lines if key_of(_text(line)) != key])
        return True

    def _lines(self) -> list[str]:
        try:
            return (self.own.place / FILE).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except UnicodeDecodeError:
            raise unreadable("it is no text.") from None
        except OSError as error:
            raise unreadable(f"it cannot be read: {error.strerror or error}.") from None

    def _write(self, lines: list[str]) -> None:
        try:
            write(self.own.place / FILE, "".join(f"{line}\n" for line in lines).encode(), 0o600)
        except OSError as error:
            raise unreadable(f"it cannot be written: {error.strerror or error}.") from None


def _text(line: str) -> str:
    return line.partition(_COMMENT)[0].strip()


def _keys(lines: list[str]) -> set[bytes]:
    """Return the keys of lines. Raises HansaError for a line that is none, or is there twice."""
    found: set[bytes] = set()
    for number, line in enumerate(lines, 1):
        if not (text := _text(line)):
            continue
        key = key_of(text)
        if len(key) != KEY_BYTES:
            raise unreadable(f"line {number} is no key as `hansa client key` prints it.")
        if key in found:
            raise unreadable(f"line {number} is a key that a line above holds.")
        found.add(key)
    return found


def _one(text: str) -> bytes:
    key = key_of(text.strip())
    if len(key) != KEY_BYTES or base64.b64encode(key).decode() != text.strip():
        raise RefusedError(
            "HANSA-AUTHORITY-KEY",
            rule="An authority vouches for keys of clients: 32 bytes in base64.",
            found=f"{text[:60]!r} is none.",
            action="Take what `hansa client key` prints at the site, and nothing that the server's operator passes on.",
        )
    return key


def unreadable(found: str) -> HansaError:
    """Return the error of a list that is not sound: nobody is vouched for until it is mended."""
    return HansaError(
        "HANSA-AUTHORITY-LIST",
        rule=f"The authority's {FILE} holds a key a line, each once, and comments behind {_COMMENT}.",
        found=f"As it is, {found}",
        action="Mend the file; until then the authority vouches for nobody.",
    )
