"""What is written when a round changes, each within a transaction of the caller's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hansa.server import lifecycle, private_rounds
from hansa.server.leaving import leave_all
from hansa.server.rounds_at_rest import round_name
from hansa.store.records import Fate, Report, Round, RoundKey
from hansa.store.store import Rows


async def freeze(rows: Rows, round_: Round, now: float) -> None:
    """Fix the survivors, once: whoever has an acknowledged report now. Who reports later is late."""
    states = ("collecting", "aggregating") if round_.state == "opening" else ("aggregating",)
    frozen = await rows.rounds.change(lifecycle.advance(round_, *states))
    assigned = await rows.rounds.assigned(round_.id)
    survivors = [str(each.number) for each in assigned if each.fate == "reported"]
    lost: dict[str, Fate] = {each.client: "lost" for each in assigned if each.fate is None}
    await rows.rounds.change(replace(frozen, notes={**frozen.notes, "survivors": survivors}))
    await rows.rounds.set_fates(round_.id, lost)
    await tell(rows, round_, "round.aggregating", at=now, reported=len(survivors), lost=len(lost))


async def abandon(rows: Rows, round_: Round, why: str, now: float) -> None:
    """Give up a round: no report of it is counted any more, and what it would have cost is given back."""
    await rows.rounds.change(lifecycle.advance(round_, "abandoned", closed_at=now, report={"why": why}))
    assigned = await rows.rounds.assigned(round_.id)
    await rows.rounds.set_fates(round_.id, {each.client: "lost" for each in assigned if each.fate is None})
    await private_rounds.give_back(rows, round_, why, now)


async def leave_others(rows: Rows, round_: Round, included: Sequence[Report]) -> None:
    """Let those be lost whose vectors went into a sum that was given up, beside others that were not."""
    inside = {report.client for report in included}
    assigned = await rows.rounds.assigned(round_.id)
    left = [each.client for each in assigned if each.fate == "reported" and each.client not in inside]
    lost: dict[str, Fate] = dict.fromkeys(left, "lost")
    await rows.rounds.set_fates(round_.id, lost)


async def suspend(rows: Rows, key: RoundKey, client: str, now: float) -> list[RoundKey]:
    """Take out a client whose update could not be counted; return the rounds that wait for it no more."""
    await rows.clients.set_state(client, "suspended", at=now, why=f"its update broke {round_name(key)}")
    return await leave_all(rows, client, "lost", at=now)


async def tell(rows: Rows, round_: Round, kind: str, *, at: float, client: str | None = None, **detail: Any) -> None:
    """Add an event of a round, and of one of its clients where it is about that."""
    of, tenant = round_.id, str(round_.notes["tenant"])
    told = {"kind": of.kind, "round": of.round, "attempt": of.attempt, **detail}
    await rows.events.add(kind, tenant=tenant, at=at, run=of.run, client=client, detail=told)


def counts(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many were picked, reported and counted, of a round's report."""
    return {key: event[key] for key in ("cohort", "reported", "selected") if key in event}
