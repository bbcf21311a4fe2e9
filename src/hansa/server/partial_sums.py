"""The sum of an open round's integers, made as updates come: a few that wait, and one sealed sum of all others.

Integers are added exactly, so a sum that is made in parts, in whatever order, is the one that is made at once. (Sums of
floats are not: their updates are kept until the round is closed, decision 40.)

A fold reads updates that were acknowledged, adds them to the sum, writes that under a new name, and says in one
transaction which sum counts now and which reports are in it. Only then are those updates and the sum before removed. So
whoever dies in between leaves the old sum with all updates, or the new one with updates that are removed later.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from hansa.algorithms.fixed_point import squared_norms
from hansa.algorithms.private_sums import released
from hansa.algorithms.ring_plan import RingCode
from hansa.algorithms.round_storage import folded_early
from hansa.algorithms.secure_sums import Groups, Opening, RingFold, training_code
from hansa.core.errors import HansaError, StoreConflictError
from hansa.core.killpoints import reached
from hansa.core.layout import COUNT
from hansa.core.nouns import Batch
from hansa.server.contexts import RunContext, whole
from hansa.server.reading import BrokenUpdateError, SealedUpdate
from hansa.server.rounds_at_rest import partial_binding, partial_name, round_name, round_prefix, sums_prefix
from hansa.server.services import Services
from hansa.store.blobs import Blobs
from hansa.store.records import Report, Round, RoundKey
from hansa.store.sealing import Binding, plain_size, seal, unseal
from hansa.wire.updates import decode_update

_NOTE: Final = "partial_sum"
"""The note of a round that says which partial sum counts."""


@dataclass(frozen=True)
class Partial:
    """The partial sum of a round: the how manieth it is, of how many reports, their digest, and the blob."""

    number: int = 0
    count: int = 0
    reports: str = ""
    blob: str = ""

    @classmethod
    def of(cls, round_: Round) -> Partial:
        """Return the one that counts; an empty one before there is any."""
        return cls(**round_.notes.get(_NOTE, {}))

    def binding(self, key: RoundKey) -> Binding:
        """Return what its sealed bytes are bound to."""
        return partial_binding(key, self.number, self.reports)

    def after(self, key: RoundKey, added: Sequence[Report]) -> Partial:
        """Return what names the sum with more reports in it, under a new name."""
        number = self.number + 1
        name = partial_name(key, number, secrets.token_hex(8))
        return Partial(number, self.count + len(added), _digest(self.reports, added), name)


async def fold(services: Services, context: RunContext, round_: Round, *, reported: int) -> bool:
    """Add updates of an open round to its sum where enough wait; return True where that was done.

    Raises BrokenUpdateError for one that cannot be counted, and StoreConflictError where another replica was first.
    """
    key, before, at_once = round_.id, Partial.of(round_), services.settings.fold_every
    if not folded_early(context.plan) or reported - before.count < at_once:
        return False
    async with services.store.reading() as rows:
        added = await rows.reports.waiting(key, at_once)
    if not added:
        return False
    sealing_key = await asyncio.to_thread(services.keys.unwrap, round_name(key), round_.key)
    code, after = _code(context), before.after(key, added)
    opening = Opening(code, Groups(after.count, 1), key.round, context.streams)
    summed = RingFold(opening)
    if before.count:
        summed = await _read(services.blobs, sealing_key, key, before, opening)
    await _add(summed, context, key, added, blobs=services.blobs, sealing_key=sealing_key)
    await services.blobs.put_made(after.blob, lambda: seal(sealing_key, after.binding(key), summed.pieces()))
    reached("coordinator.fold.written")
    try:
        async with services.store.transaction() as rows:
            await rows.rounds.change(replace(round_, notes={**round_.notes, _NOTE: asdict(after)}))
            await rows.reports.fold(key, [report.client for report in added], after.number)
    except StoreConflictError:
        await services.blobs.delete(after.blob)
        raise
    reached("coordinator.fold.committed")
    await _clear(services, key, after)
    return True


async def total(  # noqa: PLR0913 - a round, its reports, and what unseals them
    context: RunContext, round_: Round, reports: Sequence[Report], opening: Opening, *, blobs: Blobs, key: bytes
) -> RingFold:
    """Return the sum of a frozen round: the partial sum with the updates that are left.

    Raises BrokenUpdateError for an update that cannot be counted, and StoreError where the partial sum is not of the
    reports that are said to be in it.
    """
    summed, partial = RingFold(opening), Partial.of(round_)
    inside = [report for report in reports if 0 < report.folded <= partial.number]
    if inside:
        kept = replace(partial, count=len(inside), reports=_chained(inside))
        summed = await _read(blobs, key, round_.id, kept, opening)
    left = [report for report in reports if not 0 < report.folded <= partial.number]
    await _add(summed, context, round_.id, left, blobs=blobs, sealing_key=key)
    _require_each_once(summed, len(reports))
    return summed


async def _add(  # noqa: PLR0913 - a sum, what is added, and what unseals it
    summed: RingFold,
    context: RunContext,
    key: RoundKey,
    reports: Iterable[Report],
    *,
    blobs: Blobs,
    sealing_key: bytes,
) -> None:
    """Add the updates of some reports, one at a time, after those that are in a sum."""

    def add(content: bytes, report: Report, place: int) -> None:
        summed.add(_integers(context, content, report), place)

    first = sum(stop - start for start, stop in summed.taken)
    for place, report in enumerate(reports, first):
        content = await SealedUpdate(blobs, sealing_key, key, report).whole()
        await asyncio.to_thread(add, content, report, place)


def _integers(context: RunContext, content: bytes, report: Report) -> Batch:
    """Return one client's integers. Raises BrokenUpdateError where they are longer than the plan's noise is for."""
    code, batch = _code(context), decode_update(content, released(context.state.layout))
    if code.norm is None or squared_norms(code, batch.values)[0] > code.norm**2:
        raise BrokenUpdateError(report)
    return batch


def _code(context: RunContext) -> RingCode:
    """Return the integers of a plan with privacy: of their form nothing depends on the round's clip norm."""
    code = training_code(context.plan, context.state.layout)
    if code is None:
        raise LookupError("a plan with [privacy] sums integers")
    return code


async def _read(blobs: Blobs, sealing_key: bytes, key: RoundKey, partial: Partial, opening: Opening) -> RingFold:
    """Return a partial sum as a fold to go on with. Raises StoreError for one that was changed, or is of others."""
    sealed = await whole(blobs, partial.blob)
    own = replace(opening, groups=Groups(partial.count, 1))

    def opened() -> RingFold:
        content, place = bytearray(plain_size(len(sealed))), 0
        for record in unseal(sealing_key, partial.binding(key), [sealed]):
            content[place : place + len(record)] = record
            place += len(record)
        return replace(RingFold.from_bytes(own, content), opening=opening)

    return await asyncio.to_thread(opened)


async def _clear(services: Services, key: RoundKey, partial: Partial) -> None:
    """Remove what a committed sum stands for: the updates in it, the sums before it, and what others tried to make.

    A later sum, which another replica may be about to make, stays. What is missed here goes with the next sum, or with
    the round.
    """
    names = await services.blobs.names(round_prefix(key))
    sums = [name for name in names if name.startswith(sums_prefix(key))]
    senders = {name: name.split("/")[2] for name in names if name not in set(sums)}
    async with services.store.reading() as rows:
        folded = await rows.reports.folded(key, set(senders.values()))
    old = [name for name in sums if int(name.split("/")[3]) <= partial.number and name != partial.blob]
    for name in [*old, *(name for name, sender in senders.items() if sender in folded)]:
        await services.blobs.delete(name)


def _digest(before: str, reports: Iterable[Report]) -> str:
    """Return the digest of some reports after those of a digest."""
    ordered = sorted(reports, key=lambda report: report.position)
    told = "".join(f"{report.position} {report.client} {report.sha256}\n" for report in ordered)
    return hashlib.sha256(f"{before}\n{told}".encode()).hexdigest()


def _chained(reports: Iterable[Report]) -> str:
    """Return the digest of all reports in a partial sum, fold after fold."""
    folds: dict[int, list[Report]] = {}
    for report in reports:
        folds.setdefault(report.folded, []).append(report)
    digest = ""
    for number in sorted(folds):
        digest = _digest(digest, folds[number])
    return digest


def _require_each_once(summed: RingFold, reports: int) -> None:
    """Raise HansaError unless a sum, to which every update adds 1 in its count, is of so many of them."""
    column = summed.opening.code.layout.lane_index[COUNT.name]
    found = sum(int(part.lanes[column]) for part in summed.sums.values())
    if found != reports:
        raise HansaError(
            "HANSA-SUM-RANGE",
            rule="Every acknowledged update is in a round's sum once.",
            found=f"Of {reports} there are {found}.",
            action="This is a bug of Hansa: report it with the run's events. Nothing of this sum is used.",
        )
