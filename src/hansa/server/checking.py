"""Whether an update has the form that its round asks for; whoever sends another is named to the operator."""

from __future__ import annotations

from typing import Final

from hansa.algorithms.prologue import statistics_layout
from hansa.server.board import Posted
from hansa.server.services import Services
from hansa.store.records import Assigned, Client, Round, RoundKey
from hansa.wire.update_checks import UpdateCheck

NAMED: Final = frozenset(
    {"HANSA-SECAGG-MESSAGE", "HANSA-SECAGG-REFUSED", "HANSA-SECAGG-ANSWERED", "HANSA-RING-INVALID"}
)
"""What no honest client sends to a secure sum."""


def checker(posted: Posted) -> UpdateCheck:
    """Return what checks an update of a round, piece by piece."""
    context, kind = posted.context, posted.round.id.kind
    if kind == "evaluation":
        return UpdateCheck(tallies=context.tally_widths)
    if kind == "statistics" and context.plan.features is not None:
        return UpdateCheck(statistics_layout(context.plan.features))
    return UpdateCheck(context.state.layout, encoded=posted.encoded)


def is_asked(round_: Round, assigned: Assigned) -> bool:
    """Return True while something is waited for from a client: a report, or its part in unmasking after that."""
    return assigned.fate is None or (assigned.fate == "reported" and round_.state == "aggregating")


async def name_sender(services: Services, key: RoundKey, client: Client, code: str) -> None:
    """Take note that what a client sent was refused: it is not waited for, and the operator sees its name."""
    now = services.clock.now()
    async with services.store.transaction() as rows:
        round_ = await rows.rounds.get(key, for_report=True)
        assigned = await rows.rounds.assignment(key, client.id, for_change=True)
        if round_ is None or assigned is None or not is_asked(round_, assigned):
            return
        await rows.rounds.set_fates(key, {client.id: "refused"})
        detail = {"kind": key.kind, "round": key.round, "attempt": key.attempt, "code": code, "name": client.name}
        await rows.events.add(
            "report.refused", tenant=client.tenant, at=now, run=key.run, client=client.id, detail=detail
        )
    services.board.answered(key, client.id, reported=False)
