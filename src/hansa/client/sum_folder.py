"""What a client keeps on disk of the one secure sum that it takes part in, and which sums it ever took part in."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from hansa.client.records import Id
from hansa.client.state import StateFolder, sync_folder
from hansa.core.errors import RefusedError

SUM: Final = "sum"
HEAD: Final = "head.json"
SPENT: Final = "spent-sums"
_LENGTH: Final = 8
_HASH: Final = 32


@dataclass(frozen=True)
class Begun:
    """A sum that was begun: for which assignment, as it was announced, and what a site demands of it."""

    id: Id
    announcement: bytes
    server_key: bytes
    """The server's key that signed the assignment, which the client has believed."""
    plan_sha256: str
    model_sha256: str
    ring: tuple[tuple[str, int, int], ...]
    """Name, length and bits of each segment, as the client's own plan has them."""
    section: Mapping[str, Any]
    """The plan's table ``[secure_aggregation]``: what the server must keep to, whatever it announces."""


class SumFolder:
    """The folder ``sum`` within a client's own. Records are appended, and on disk when that returns.

    Raises RunError where the folder cannot be used.
    """

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._path = state.path / SUM

    def begun(self) -> Begun | None:
        """Return the sum that the client takes part in, if there is one."""
        read = self._state.read_json(f"{SUM}/{HEAD}")
        if read is None:
            return None
        read |= {name: base64.b64decode(read[name]) for name in ("announcement", "server_key")}
        read |= {"id": Id(**read["id"]), "ring": tuple(tuple(each) for each in read["ring"])}
        return Begun(**read)

    def begin(self, begun: Begun, vector: bytes) -> None:
        """Keep a sum and the packed vector that the client gives to it."""
        with self._state.using():
            shutil.rmtree(self._path, ignore_errors=True)
            self._path.mkdir(mode=0o700)
            self._state.write_bytes(f"{SUM}/vector", vector)
            told = asdict(begun)
            told |= {name: base64.b64encode(told[name]).decode() for name in ("announcement", "server_key")}
            self._state.write_json(f"{SUM}/{HEAD}", told)

    def vector(self) -> bytes:
        """Return the packed vector."""
        with self._state.using():
            return (self._path / "vector").read_bytes()

    def records(self) -> list[bytes]:
        """Return the records that are whole, in order."""
        with self._state.using():
            path = self._path / "records"
            content = path.read_bytes() if path.exists() else b""
            found, start = [], 0
            while start + _LENGTH <= len(content):
                end = start + _LENGTH + int.from_bytes(content[start : start + _LENGTH], "big")
                if end > len(content):
                    break
                found.append(content[start + _LENGTH : end])
                start = end
            if start < len(content):  # the process was killed as it wrote: nothing that follows from it has left
                os.truncate(path, start)
            return found

    def append(self, records: Iterable[bytes]) -> None:
        """Append records. Raises RefusedError, with nothing written, where the policy's disk has no room for them."""
        framed = [len(record).to_bytes(_LENGTH, "big") + record for record in records]
        self._state.room.make(sum(map(len, framed)))
        with self._state.using():
            path = self._path / "records"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.writelines(framed)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self._path)

    def end(self) -> None:
        """Note the sum's task as spent, and its round if the client has helped to unmask; forget all else of it."""
        with self._state.using():
            begun = self.begun()
            if begun is not None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                descriptor = os.open(self._state.path / SPENT, flags, 0o600)
                with os.fdopen(descriptor, "ab") as file:
                    file.truncate(file.tell() // _HASH * _HASH)  # a full disk may have cut the last name short
                    file.write(b"".join(spent_by(begun.announcement, self.records())))
                    file.flush()
                    os.fsync(file.fileno())
            (self._path / HEAD).unlink(missing_ok=True)
            sync_folder(self._path)
            shutil.rmtree(self._path, ignore_errors=True)

    def spent(self) -> frozenset[bytes]:
        """Return the tasks that this client ever took part in, and the rounds that it helped to unmask, as hashes."""
        with self._state.using():
            path = self._state.path / SPENT
            content = path.read_bytes() if path.exists() else b""
            return frozenset(content[start : start + _HASH] for start in range(0, len(content), _HASH))


def spent_by(announcement: bytes, records: Sequence[bytes]) -> list[bytes]:
    """Return what a client's part in a sum uses up: 32 bytes for its task, and for its round once that is unmasked."""
    from hansa.secagg.messages import Announcement, Quorum, header_of  # noqa: PLC0415 - a client at rest is small
    from hansa.secagg.records import is_message  # noqa: PLC0415 - likewise
    from hansa.secagg.task import read_task  # noqa: PLC0415 - likewise

    try:
        header = header_of(announcement)
        task = read_task(Announcement.decode(announcement, header.task).descriptor)
    except RefusedError:
        return []  # it was refused before anything was sent
    answered = {header_of(each).kind for each in records[1:] if is_message(each)}
    return [task.hash, *([task.report_id] if Quorum.kind in answered else [])]
