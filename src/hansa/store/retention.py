"""Removing what nothing refers to any more, and what was kept long enough.

What a crash leaves behind is found here: uploads that were never completed, updates of rounds that are over, models
that no row names, keys that were not destroyed. Whatever is younger than the grace period stays, for it may belong to
something that is about to be committed; so who refers to a blob anew puts it anew.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hansa.store.blobs import Blobs, Listed
from hansa.store.keys import HeldKey, KeyProvider
from hansa.store.store import Store

_ROUND: Final = re.compile(r".+-(statistics|training|evaluation)-\d+-\d+")
_NOISE: Final = re.compile(r"(.+)-noise")
"""The name of the key of a run's correlated noise."""
_BY_DIGEST: Final = ("models/", "slots/", "jobs/")
_CHANGES: Final = 100_000
"""Changes of clients that stay in the feed."""
_CALLS: Final = 14_400.0
"""Seconds after which nobody asks who called: longer than the window of any population."""


@dataclass(frozen=True)
class Swept:
    """How much was removed."""

    updates: int = 0
    """Blobs of updates whose round is over."""
    orphans: int = 0
    """Models, slots and job descriptors that no row names."""
    bytes: int = 0
    keys: int = 0
    events: int = 0


async def sweep(  # noqa: PLR0913 - three places, and how long what is kept
    store: Store,
    blobs: Blobs,
    keys: KeyProvider,
    *,
    now: float,
    grace: float = 3600.0,
    keep_models: float | None = None,
    keep_events: float | None = None,
) -> Swept:
    """Remove what is left over; return how much.

    ``keep_models``: seconds after the end of its run in which a model goes that is neither the run's last nor in use;
    ``keep_events``: seconds after which events go; None: never.
    """
    updates = await blobs.listed("updates/")
    others = [each for prefix in _BY_DIGEST for each in await blobs.listed(prefix)]
    held = await asyncio.to_thread(keys.held)
    async with store.reading() as rows:  # after the lists: what was committed before they were made is seen
        opened = frozenset(round_.id.name for round_ in await rows.rounds.all_open())
        going_on = frozenset(run.id for run in await rows.runs.going_on())
        referred = await rows.references.digests(ended=0.0 if keep_models is None else now - keep_models)
    before = now - grace
    finished = [each for each in updates if each.at < before and _is_over(each.name.split("/"), opened)]
    orphans = [each for each in others if each.at < before and each.name.rpartition("/")[2] not in referred]
    orphans += [each for each in await blobs.listed("uploads/") if each.at < before]  # models that were not submitted
    for each in finished:
        await blobs.delete(each.name)
    orphans = [each for each in orphans if await _removed(blobs, each)]
    destroyed = await asyncio.to_thread(_destroy, keys, held, opened | going_on, before)
    async with store.transaction() as rows:
        events = 0 if keep_events is None else await rows.events.forget(now - keep_events)
        await rows.clients.forget_changes(_CHANGES)
        await rows.recent_callers.forget(now - _CALLS)
    return Swept(len(finished), len(orphans), _bytes(finished) + _bytes(orphans), destroyed, events)


async def _removed(blobs: Blobs, orphan: Listed) -> bool:
    """Remove a blob unless it was put anew since it was listed: somebody refers to it now, or is about to."""
    found = [each for each in await blobs.listed(orphan.name) if each.name == orphan.name]
    if found and found[0].at == orphan.at:
        await blobs.delete(orphan.name)
        return True
    return False


def _is_over(parts: Sequence[str], opened: frozenset[str]) -> bool:
    """Return True for a name of which one part names a round, and that is not open."""
    rounds = [part for part in parts if _ROUND.fullmatch(part)]
    return bool(rounds) and not opened.intersection(rounds)


def _destroy(keys: KeyProvider, held: Sequence[HeldKey], used: frozenset[str], before: float) -> int:
    """Destroy the keys of rounds that are not open, and of the noise of runs that have ended."""
    over = [each.id for each in held if each.at < before and _is_over([each.id], used)]
    noise = [(each, _NOISE.fullmatch(each.id)) for each in held if each.at < before]
    over += [each.id for each, named in noise if named is not None and named.group(1) not in used]
    for key_id in over:
        keys.destroy(key_id)
    return len(over)


def _bytes(blobs: Sequence[Listed]) -> int:
    return sum(each.size for each in blobs)
