"""Sealed updates read in order, piece by piece: memory is a few records, whatever the size of an update."""

from __future__ import annotations

import asyncio
import hashlib
import io
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from hansa.core.errors import StoreError
from hansa.core.layout import Floats, Int64s
from hansa.secagg.known import MessageHash
from hansa.server.rounds_at_rest import binding, part_name
from hansa.store.blobs import Blobs
from hansa.store.records import Report, RoundKey
from hansa.store.sealing import HEADER, RECORD, SealedRecords, sealed_records
from hansa.wire.update_checks import Span, spans_of

UNREADABLE: Final = frozenset({"HANSA-KEY-MISSING", "HANSA-NOT-FOUND", "HANSA-SEAL-BROKEN"})
"""Sealed updates that nobody can read any more: the round is given up, the model stays as it is."""
_SMALL: Final = 1 << 16
"""Bytes that are unsealed at once: to change threads would take longer."""


class BrokenUpdateError(StoreError):
    """An acknowledged update that cannot be counted: its round is abandoned, and its client is suspended."""

    def __init__(self, report: Report) -> None:
        super().__init__(
            "HANSA-REPORT-INVALID",
            rule="What was acknowledged is counted.",
            found="An update is not the bytes that were acknowledged, or too large once it is decoded.",
            action="See the run's events for whose it is.",
        )
        self.report = report


@dataclass
class SealedUpdate:
    """The bytes of one client's update, in order, from its parts. Raises BrokenUpdateError for other bytes."""

    blobs: Blobs
    key: bytes
    round: RoundKey
    report: Report
    digest: Any = field(default_factory=hashlib.sha256)
    _rest: memoryview = field(default_factory=lambda: memoryview(b""))
    _arrived: int = 0
    _parts: int = 0
    _records: SealedRecords | None = None
    _record: int = 0

    async def whole(self) -> bytes:
        """Return all of it."""
        content = await self.exact(self.report.size)
        self.finish()
        return content

    async def exact(self, count: int) -> bytes:
        """Return the next so many bytes. In memory they are there once, beside a few records."""
        if count > self.report.size - self._arrived + len(self._rest):
            raise BrokenUpdateError(self.report)  # what lies behind was left over by an earlier try
        taken = io.BytesIO()  # its value is its buffer, which is not copied
        if count:
            taken.seek(count - 1)
            taken.write(b"\0")
            taken.seek(0)
        while taken.tell() < count:
            if not self._rest:
                self._rest = memoryview(await self._next())
                self._arrived += len(self._rest)
            part = self._rest[: count - taken.tell()]
            taken.write(part)
            self._rest = self._rest[len(part) :]
        return taken.getvalue()

    def finish(self) -> None:
        """Check, when all was read, that it is what was acknowledged."""
        if self._rest or self._arrived != self.report.size or self.digest.hexdigest() != self.report.sha256:
            raise BrokenUpdateError(self.report)

    async def _next(self) -> bytes:
        """Return the next record."""
        name = part_name(self.round, self.report.client, self.report.sha256, self._parts)
        if self._records is None:
            size, bound = await self.blobs.size(name), self._binding()
            start = await self._read(name, 0, min(size, HEADER + RECORD + 16))
            records, sealed = sealed_records(self.key, bound, start[:HEADER], size), start[HEADER:]
        else:
            records = self._records
            sealed = await self._read(name, *records.span(self._record))
        small = len(sealed) < _SMALL
        number = self._record
        piece = (
            self._opened(records, number, sealed)
            if small
            else await asyncio.to_thread(self._opened, records, number, sealed)
        )
        self._records, self._record = records, number + 1
        if self._record == records.count:
            self._records, self._record, self._parts = None, 0, self._parts + 1
        return piece

    def _opened(self, records: SealedRecords, number: int, sealed: bytes) -> bytes:
        piece = records.unseal(number, sealed)
        self.digest.update(piece)
        return piece

    def _binding(self) -> Any:
        return binding(self.round, self.report.client, self.report.sha256, self._parts)

    async def _read(self, name: str, start: int, stop: int) -> bytes:
        return b"".join([chunk async for chunk in self.blobs.read(name, start, stop)])


async def whole_message(blobs: Blobs, key: bytes, round_: RoundKey, report: Report) -> tuple[bytes, bytes]:
    """Return the masked vector's message that a client sent, and its :func:`~hansa.secagg.known.content_of`."""
    hashed = MessageHash()
    message = await SealedUpdate(blobs, key, round_, report, hashed).whole()
    return message, hashed.content


@dataclass
class UpdateColumns:
    """The numbers of an update whose values are float32 [d], read column after column, and its lanes."""

    update: SealedUpdate
    lanes: Int64s = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _after: list[Span] = field(default_factory=list)

    async def begin(self) -> None:
        """Read what lies before the values."""
        length = int.from_bytes(await self.update.exact(8), "little")
        spans = spans_of(await self.update.exact(length))
        names = [span.name for span in spans]
        place = names.index("values") if "values" in names else len(names)
        self._after = spans[place + 1 :]
        await self._pass(spans[:place])

    async def columns(self, count: int) -> Floats:
        """Return the next so many of the values. Raises BrokenUpdateError where one is not finite."""
        values = np.frombuffer(await self.update.exact(4 * count), dtype="<f4")
        if not np.isfinite(values).all():
            raise BrokenUpdateError(self.update.report)
        return values

    async def end(self) -> Int64s:
        """Read what lies behind the values; return the lanes, int64 [lanes]."""
        await self._pass(self._after)
        self.update.finish()
        return self.lanes

    async def _pass(self, spans: list[Span]) -> None:
        for span in spans:
            content = await self.update.exact(span.end - span.begin)
            if span.name == "lanes":
                self.lanes = np.frombuffer(content, dtype="<i8")
