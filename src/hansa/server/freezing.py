"""Fixing whose vectors are in a round's secure sums, in the transaction that holds the machine's record of it."""

from __future__ import annotations

from typing import Any, Final

from hansa.core.errors import StoreConflictError
from hansa.core.killpoints import reached
from hansa.server import private_rounds
from hansa.server.held_sums import Held, HeldRound
from hansa.server.lifecycle import TAKES_REPORTS, advance
from hansa.store.records import Assigned, Fate, Round
from hansa.store.store import Rows

_SETTLED: Final = "settled"
"""The note of a round that says which of its sums take no vector any more: groups, by number."""


async def settle(rows: Rows, round_: HeldRound, held: Held, now: float) -> bool:
    """Write down what a closed phase means for a sum's clients; return True where no report of the round is taken now.

    Frozen once: whoever has an acknowledged report is in the sum, and nobody else. When a sum of oneshot-seeds goes on
    without reports that a decryptor cannot open, these are refused.
    """
    if held.phase in ("EXCLUDE", "DECRYPT"):
        await _leave_out(rows, round_, held)
        return False
    reports_stop = round_.round.state in TAKES_REPORTS and (held.frozen or held.aborted)
    if not reports_stop or held.group in round_.round.notes.get(_SETTLED, ()):
        return False
    stored = await rows.rounds.get(round_.round.id)
    if stored is None or stored.state not in TAKES_REPORTS:
        raise StoreConflictError(f"The round {round_.round.id.name}")
    settled = sorted({*stored.notes.get(_SETTLED, ()), held.group})
    survivors = list(stored.notes.get("survivors", ()))
    last = len(settled) == len(round_.sums)
    if held.aborted and last and not survivors:
        return False  # no sum is left: the round is abandoned, and nothing is frozen
    reached("coordinator.round.freezing")
    assigned = [each for each in await rows.rounds.assigned(stored.id) if round_.of(each.position)[0] is held]
    if held.frozen:
        survivors += _numbers(held, assigned)
        await private_rounds.freeze(rows, stored, now)
    notes = {**stored.notes, "survivors": survivors, _SETTLED: settled}
    states = ("collecting", "aggregating") if stored.state == "opening" else ("aggregating",)
    frozen = advance(stored, *(states if last else ()), notes=notes)
    frozen = await rows.rounds.change(frozen)  # from here no report is recorded beside those that are read now
    await _set_lost(rows, frozen, held, assigned)
    if last:
        await _tell(rows, frozen, now)
    round_.round = frozen
    return last


def _numbers(held: Held, assigned: list[Assigned]) -> list[str]:
    inside = {held.first + client for client in held.vectors}
    return [str(each.number) for each in assigned if each.position in inside]


async def _set_lost(rows: Rows, stored: Round, held: Held, assigned: list[Assigned]) -> None:
    """Let those be lost whose vectors are in no sum. Raises StoreConflictError where another report was recorded."""
    positions = {each.position for each in assigned}
    reported = {each.position for each in await rows.reports.of(stored.id)} & positions
    inside = {held.first + client for client in held.vectors} if held.frozen else set()
    if held.frozen and reported != inside:
        raise StoreConflictError(f"The reports of {stored.id.name}")
    out = (None,) if held.frozen else (None, "reported")
    lost: dict[str, Fate] = {each.client: "lost" for each in assigned if each.fate in out}
    await rows.rounds.set_fates(stored.id, lost)


async def _leave_out(rows: Rows, round_: HeldRound, held: Held) -> None:
    """Refuse reports that a decryptor cannot open: the sum goes on without them."""
    if held.server is None:
        return
    reporters: tuple[int, ...] = getattr(held.server, "reporters", ())
    out = {held.first + client for client in set(reporters) - set(held.server.survivors)}
    clients = [client for client, position in round_.positions.items() if position in out]
    if clients:
        refused: dict[str, Fate] = dict.fromkeys(clients, "refused")
        await rows.rounds.set_fates(round_.round.id, refused)


async def _tell(rows: Rows, stored: Round, now: float) -> None:
    key, assigned = stored.id, await rows.rounds.assigned(stored.id)
    lost = sum(each.fate == "lost" for each in assigned)
    counts: dict[str, Any] = {"reported": len(stored.notes["survivors"]), "lost": lost}
    detail = {"kind": key.kind, "round": key.round, "attempt": key.attempt, **counts}
    await rows.events.add("round.aggregating", tenant=str(stored.notes["tenant"]), at=now, run=key.run, detail=detail)
