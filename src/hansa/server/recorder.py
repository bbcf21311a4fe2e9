"""Reports become rows: those that arrive together in one transaction, each acknowledged after it is committed.

Where many come, they are gathered for an instant first: a transaction is most of what a report costs the database.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from hansa.core.errors import HansaError, RefusedError, StoreConflictError
from hansa.core.killpoints import reached
from hansa.server.lifecycle import TAKES_REPORTS
from hansa.server.measures import REPORT_BYTES, REPORTS
from hansa.server.services import Services
from hansa.store.failures import busy
from hansa.store.records import Assigned, Fate, Report, Round, RoundKey
from hansa.store.store import Rows
from hansa.wire.verdicts import ACCEPTED, LATE, Verdict

_AT_ONCE: Final = 256
_BUSY: Final = 20
_WITHIN: Final = 0.25
"""So many reports within so many seconds are many: those that come next are gathered."""
_GATHERED: Final = 0.05
"""Seconds for which reports are gathered: a transaction costs as much for ten as for one."""


class _Waiting(NamedTuple):
    """A report that is to be recorded, and who waits for its verdict."""

    report: Report
    in_time: bool
    answer: asyncio.Future[Verdict]


@dataclass
class Recorder:
    """Takes sealed reports and says what became of each, once that is on disk."""

    services: Services
    waiting: list[_Waiting] = field(default_factory=list)
    writing: asyncio.Task[None] | None = None
    came: deque[float] = field(default_factory=lambda: deque(maxlen=_BUSY))
    """When the last reports came, in the loop's time."""

    async def record(self, report: Report, *, in_time: bool = False) -> Verdict:
        """Record a report; return its verdict. Raises RefusedError for one that contradicts what was recorded.

        ``in_time``: something else than the round's deadline has said so: a secure sum, whose phase waits for it.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Verdict] = loop.create_future()
        self.came.append(loop.time())
        self.waiting.append(_Waiting(report, in_time, answer))
        if self.writing is None or self.writing.done():
            self.writing = asyncio.create_task(self._write_all())  # its own: callers come and go
        return await answer

    async def _write_all(self) -> None:
        while self.waiting:
            if len(self.came) == _BUSY and self.came[-1] - self.came[0] < _WITHIN:
                await asyncio.sleep(_GATHERED)
            batch, self.waiting = self.waiting[:_AT_ONCE], self.waiting[_AT_ONCE:]
            await self._write(batch)

    async def _write(self, batch: list[_Waiting]) -> None:
        try:
            verdicts = await self._commit(batch)
        except Exception as error:  # noqa: BLE001 - whoever waits learns it
            for each in batch:
                if not each.answer.done():
                    each.answer.set_exception(error)
            return
        reached("server.report.recorded")
        for (report, _, answer), verdict in zip(batch, verdicts, strict=True):
            REPORTS.labels(verdict.code if isinstance(verdict, HansaError) else verdict).inc()
            if verdict == ACCEPTED:
                REPORT_BYTES.inc(report.size)
                self.services.board.answered(report.round, report.client, reported=True)
            if answer.done():
                continue
            if isinstance(verdict, HansaError):
                answer.set_exception(verdict)
            else:
                answer.set_result(verdict)

    async def _commit(self, batch: list[_Waiting]) -> list[Verdict | HansaError]:
        """Write reports in one transaction; once more where another replica's stood in the way (a deadlock)."""
        for last_try in (False, True):
            try:
                async with self.services.store.transaction() as rows:
                    return await _verdicts(rows, batch)
            except StoreConflictError:
                if last_try:
                    raise
        raise AssertionError


async def _verdicts(rows: Rows, batch: list[_Waiting]) -> list[Verdict | HansaError]:
    """Write reports; return what became of each. Those of one round, which are most, take a few statements."""
    of: dict[RoundKey, list[_Waiting]] = {}
    for each in batch:
        of.setdefault(each.report.round, []).append(each)
    verdicts = {}
    for key in sorted(of, key=lambda each: each.name):
        for each, verdict in zip(of[key], await _of_round(rows, key, of[key]), strict=True):
            verdicts[id(each)] = verdict
    return [verdicts[id(each)] for each in batch]


async def _of_round(rows: Rows, key: RoundKey, batch: list[_Waiting]) -> list[Verdict | HansaError]:
    """Write reports of a round. Its row is locked: it cannot be frozen in between."""
    round_ = await rows.rounds.get(key, for_report=True)
    assigned = await rows.rounds.assignments(key, {each.report.client for each in batch})
    new: dict[str, Report] = {}
    fates: dict[str, Fate] = {}
    verdicts: list[Verdict | HansaError] = []
    for each in batch:
        report, part = each.report, assigned.get(each.report.client)
        if round_ is None or part is None:
            verdicts.append(unexpected())
            continue
        known = new.get(report.client)
        if known is None and part.fate in ("reported", "included"):
            known = await rows.reports.get(key, report.client)
        verdict = _verdict(each, round_, part, known)
        if verdict == ACCEPTED and known is None:
            new[report.client] = replace(report, position=part.position)
            fates[report.client] = "reported"
        elif verdict == LATE and part.fate == "lost":
            fates[report.client] = "late"
        verdicts.append(verdict)
    await rows.reports.add(list(new.values()))
    await rows.rounds.set_fates(key, fates)
    return verdicts


def _verdict(waiting: _Waiting, round_: Round, part: Assigned, known: Report | None) -> Verdict | HansaError:
    """Return what becomes of a report; ``known`` is the one that its client has made before."""
    report = waiting.report
    if known is not None or part.fate in ("reported", "included"):
        return ACCEPTED if known is not None and known.sha256 == report.sha256 else answered()
    deadline = part.notes.get("deadline") or round_.deadline
    late = not waiting.in_time and deadline is not None and report.received_at > deadline
    if late or round_.state not in TAKES_REPORTS or part.fate is not None:
        return LATE
    if not report.blob:
        return busy()  # the round is open, but this replica did not know that yet: nothing of it was kept
    return ACCEPTED


def unexpected() -> RefusedError:
    """Return what to say of a report that nobody asked for."""
    return RefusedError(
        "HANSA-REPORT-UNEXPECTED",
        rule="A client reports on its own assignments.",
        found="It has none in that round and attempt.",
        action="Check in, and report on what is assigned.",
    )


def answered() -> RefusedError:
    """Return what to say of a second, different report."""
    return RefusedError(
        "HANSA-REPORT-ANSWERED",
        rule="A client reports once for an assignment; repeating the same bytes is harmless.",
        found="It has reported another update.",
        action="Keep the first; check in for the next assignment.",
    )
