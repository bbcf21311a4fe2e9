"""What a replica learns of the others: rounds that they opened or closed, clients that changed, keys that were made."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from hansa.core.errors import HansaError
from hansa.server.lifecycle import TAKES_REPORTS
from hansa.server.opening import posted
from hansa.server.services import Services
from hansa.server.shared_callers import SharedCallers
from hansa.store.records import RoundKey
from hansa.store.retention import sweep

_LOG: Final = structlog.get_logger("hansa.server")
_SECONDS: Final = 1.0
_SWEEP_EVERY: Final = 3600.0
_FIRST_SWEEP: Final = 600.0
"""Seconds from the start to the first sweep: what was written before a server died, and no row names yet, is old by
then if it was away for long, and is named by a row once the coordinator has gone on from there."""
_DAY: Final = 86400.0


@dataclass
class Follower:
    """Reads the store once a second, tells others now and then who called, and cleans the store up once an hour."""

    services: Services
    swept_at: float = 0.0
    callers: SharedCallers = field(init=False)

    def __post_init__(self) -> None:
        self.callers = SharedCallers(self.services)

    async def start(self) -> None:
        """Put up what was open when this replica last died."""
        self.swept_at = self.services.clock.now() - _SWEEP_EVERY + _FIRST_SWEEP
        await self.look()

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until told to stop; those who called last are not forgotten then."""
        while not stop.is_set():
            try:
                await self.look()
                await self.callers.share()
                await self._sweep()
            except HansaError as error:
                _LOG.error("could not follow", code=error.code)
            except Exception as error:  # noqa: BLE001 - the next look reads everything anew
                _LOG.error("could not follow", error=type(error).__name__)
            with suppress(TimeoutError):
                async with asyncio.timeout(_SECONDS):
                    await stop.wait()
        with suppress(HansaError):
            await self.callers.share(at_once=True)

    async def _sweep(self) -> None:
        """Once an hour, remove what nothing refers to any more."""
        services, now = self.services, self.services.clock.now()
        if now - self.swept_at < _SWEEP_EVERY:
            return
        self.swept_at = now
        keep = _DAY * services.settings.retention_days
        swept = await sweep(services.store, services.blobs, services.keys, now=now, keep_models=keep)
        _LOG.info("swept", updates=swept.updates, orphans=swept.orphans, bytes=swept.bytes, keys=swept.keys)

    async def look(self) -> None:
        """Bring clients, keys and the board up to date."""
        await self.services.clients.follow()
        await self.services.signer.refresh()
        await follow_rounds(self.services)


async def follow_rounds(services: Services) -> None:
    """Bring the board up to date: another replica may have opened or closed a round."""
    shown = tuple(services.board.rounds)  # one that is put up from now on may be younger than what is read
    async with services.store.reading() as rows:
        open_rounds = await rows.rounds.all_open()
    for key in set(shown).intersection(services.board.stale([round_.id for round_ in open_rounds])):
        services.board.take_down(key)
    for round_ in open_rounds:
        if round_.state in TAKES_REPORTS and services.board.is_behind(round_):
            await _post(services, round_.id)


async def _post(services: Services, key: RoundKey) -> None:
    async with services.store.reading() as rows:
        run = await rows.runs.get(key.run)
    if run is None:
        return
    shown = services.board.rounds.get(key)
    context = await services.contexts.of(run) if shown is None else shown.posted.context
    async with services.store.reading() as rows:
        round_ = await rows.rounds.get(key)
        assigned = await rows.rounds.assigned(key)
    if round_ is not None and round_.state in TAKES_REPORTS:
        reported = sum(each.fate == "reported" for each in assigned)
        services.board.post(posted(services, context, round_), assigned, reported=reported)
