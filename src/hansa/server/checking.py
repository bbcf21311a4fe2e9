"""Whether an update has the form that its round asks for; whoever sends another is named to the operator."""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

from hansa.algorithms.private_sums import released
from hansa.algorithms.prologue import statistics_layout
from hansa.algorithms.secure_sums import training_code
from hansa.evaluation.metrics import known
from hansa.server.board import Posted
from hansa.server.limits import limited_lanes, limited_statistics, norm_limits
from hansa.server.services import Services
from hansa.server.settings import ServerSettings
from hansa.store.records import Assigned, Client, Round, RoundKey
from hansa.wire.update_checks import UpdateCheck, other_digest

NAMED: Final = frozenset(
    {"HANSA-SECAGG-MESSAGE", "HANSA-SECAGG-REFUSED", "HANSA-SECAGG-ANSWERED", "HANSA-RING-INVALID"}
)
"""What no honest client sends to a secure sum."""


_LARGEST_SUM: Final = 2.0**64
"""Of losses or errors, which have the unit of the label."""


class Check(Protocol):
    """Checks the bytes of one update that came at once. Raises RefusedError."""

    def most_bytes(self) -> int | None:
        """Return how many bytes such an update has at most; None where that is not known."""

    def whole(self, content: bytes, sha256: str, *, found: str | None = None) -> None:
        """Check an update that is all there; ``found`` is its digest, where the caller has computed it."""


class MaskedCheck:
    """Checks that a masked vector is what was announced; what it holds, nobody can tell."""

    def most_bytes(self) -> None:
        """Return None: its length was looked at before."""

    def whole(self, content: bytes, sha256: str, *, found: str | None = None) -> None:
        """Check a vector that is all there."""
        if (found or hashlib.sha256(content).hexdigest()) != sha256:
            raise other_digest()


def checker(posted: Posted, settings: ServerSettings) -> UpdateCheck:
    """Return what checks an update of a round, piece by piece; limits of the settings hold where the plan has none."""
    context, kind = posted.context, posted.round.id.kind
    if kind == "evaluation":
        own = [metric for metric in context.metrics if metric.name in known()]  # others' metrics may sum anything
        most = {metric.name: metric.most if metric.resolution == 1 else _LARGEST_SUM for metric in own}
        return UpdateCheck(tallies=context.tally_widths, most=most)
    if kind == "statistics" and context.plan.features is not None:
        return UpdateCheck(limited_statistics(statistics_layout(context.plan.features), settings.largest_update_weight))
    if context.plan.privacy is not None:
        code = training_code(context.plan, context.state.layout)
        layout = limited_lanes(context.plan, released(context.state.layout), settings.largest_update_weight)
        return UpdateCheck(layout, encoded=context.encoded, code=code)
    layout = limited_lanes(context.plan, context.state.layout, settings.largest_update_weight)
    plain = all(transform.linear for transform in context.plan.transforms)
    largest = settings.largest_update_norm
    limits = norm_limits(context.plan, layout, largest) if plain else {}  # others are measured once decoded
    return UpdateCheck(layout, encoded=context.encoded, limits=limits)


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
