"""A server's own records, beside the messages that it keeps as they came: that a task began, that a phase closed."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

from hansa.core.errors import RefusedError
from hansa.secagg.encoding import Buffer, Reader, from_bitmap, prefixed, to_bitmap
from hansa.secagg.messages import MAGIC
from hansa.secagg.refusals import malformed
from hansa.secagg.task import Task

DAMAGE: Final = (RefusedError, LookupError, ValueError)
"""What comes of taking in records of which some are missing or damaged."""

_RECORD: Final = b"HSS1"
_STARTED: Final = 0
_CLOSED: Final = 1


class Closing(NamedTuple):
    """A phase that closed: with whom, with what sum or reason, and whether the task goes on or ended well."""

    phase: int
    good: bool
    members: tuple[int, ...]
    payload: bytes


def started(task: Task) -> bytes:
    """Return the record that a task began."""
    return _RECORD + bytes((_STARTED, 0, 1)) + prefixed(task.content, b"")


def closed(task: Task, phase: IntEnum, members: Iterable[int], payload: bytes, *, good: bool = True) -> bytes:
    """Return the record that a phase closed."""
    return _RECORD + bytes((_CLOSED, phase, good)) + prefixed(to_bitmap(members, task.roster_size), payload)


def is_message(record: Buffer) -> bool:
    """Say whether a record is a message, as it came."""
    return bytes(record[:4]) == MAGIC


def read(record: Buffer, task: Task) -> Closing | None:
    """Return the closing that a record tells of; None for the beginning of the task. RefusedError: neither."""
    reader = Reader(record)
    if reader.fixed(4) != _RECORD:
        raise malformed("A record is not one of this version.")
    tag, phase, good = reader.fixed(3)
    first, payload = reader.blob(), reader.blob()
    reader.end()
    if tag == _STARTED:
        if first != task.content:
            raise malformed("The records are of another task.")
        return None
    return Closing(phase, bool(good), from_bitmap(first, task.roster_size), payload)


def closes_phase(record: Buffer) -> bool:
    """Say whether a record tells that a phase closed."""
    return bytes(record[:4]) == _RECORD and record[4] == _CLOSED
