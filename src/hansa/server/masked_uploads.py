"""Masked vectors: they come as updates do, and go into the secure sum of their round, which records them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from hansa.core.errors import RefusedError
from hansa.core.killpoints import reached
from hansa.server.board import Posted
from hansa.server.checking import NAMED, name_sender
from hansa.server.lifecycle import TAKES_REPORTS
from hansa.server.reading import BrokenUpdateError, whole_message
from hansa.server.recorder import Recorder, unexpected
from hansa.server.room import Room
from hansa.server.rounds_at_rest import round_name, update_prefix
from hansa.server.secure_tasks import require_length
from hansa.server.services import Services
from hansa.store.records import Client, Report
from hansa.wire.update_checks import other_digest
from hansa.wire.verdicts import LATE, Verdict


@dataclass(frozen=True)
class MaskedUploads:
    """Gives masked vectors that are sealed in the blob store to their rounds' sums."""

    services: Services
    recorder: Recorder
    room: Room
    """For vectors that came in parts: each is put together in memory, and added there."""

    async def require_length(self, posted: Posted, client: Client, total: int) -> None:
        """Raise RefusedError for a masked vector of another length than the sum's, and name the client."""
        try:
            require_length(posted.context, posted.round, total)
        except RefusedError as error:
            await name_sender(self.services, posted.round.id, client, error.code)
            raise

    async def take(
        self, posted: Posted, client: Client, sha256: str, whole: tuple[bytes, bytes] | None, total: int
    ) -> Verdict:
        """Give a vector to its sum. Raises RefusedError.

        ``whole`` is what came, and its :func:`~hansa.secagg.known.content_of`; None where it came in parts.
        """
        if whole is not None:
            return await self._add(posted, client, sha256, whole, total)
        async with self.room.of(total):
            return await self._add(posted, client, sha256, None, total)

    async def _add(
        self, posted: Posted, client: Client, sha256: str, whole: tuple[bytes, bytes] | None, total: int
    ) -> Verdict:
        services, key = self.services, posted.round.id
        report = Report(key, client.id, 0, sha256, total, update_prefix(key, client.id), services.clock.now())
        try:
            if whole is None:
                sealing_key = await asyncio.to_thread(services.keys.unwrap, round_name(key), posted.round.key)
                whole = await whole_message(services.blobs, sealing_key, key, report)
            reached("server.report.sealed")
            verdict = await services.sums.take_masked(
                posted.context, key, client, whole, lambda: self.recorder.record(report, in_time=True),
                services.clock.now(),
            )  # fmt: skip
        except BrokenUpdateError:
            await self._remove(report)
            raise other_digest() from None
        except RefusedError as error:
            if error.code == "HANSA-SECAGG-UNEXPECTED":
                return await self._of_no_use(report)
            await self._remove(report)
            if error.code in NAMED:
                await name_sender(services, key, client, error.code)
            raise
        if verdict == LATE:
            await self._remove(report)
        return verdict

    async def _of_no_use(self, report: Report) -> Verdict:
        """Answer a masked vector that the sum has, goes on without, or has not asked this client for."""
        async with self.services.store.reading() as rows:
            round_ = await rows.rounds.get(report.round)
            fate = await rows.rounds.fate(report.round, report.client)
        if fate is None and round_ is not None and round_.state in TAKES_REPORTS:
            await self._remove(report)
            raise unexpected()
        verdict = await self.recorder.record(replace(report, blob=""))
        if verdict == LATE:
            await self._remove(report)
        return verdict

    async def _remove(self, report: Report) -> None:
        for name in await self.services.blobs.names(f"{report.blob}{report.sha256}/"):
            await self.services.blobs.delete(name)
