"""The events that a scope is charged for, and the reference epsilon that is shown beside what is charged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import cast

from hansa.core.errors import HansaError
from hansa.core.privacy import Adjacency
from hansa.privacy.accounting import Composition, price
from hansa.privacy.event import Event
from hansa.privacy.event_json import event_from_mapping
from hansa.privacy.running import ACCOUNTANT, Running
from hansa.store.records import LedgerScope
from hansa.store.store import Rows


def adjacency_of(scope: LedgerScope) -> Adjacency:
    """Return the adjacency of a scope, as the accountant takes it."""
    return cast("Adjacency", scope.adjacency)


async def events_of(rows: Rows, scope: LedgerScope, *, committed: bool = False) -> list[tuple[Event, int]]:
    """Return the distinct events of a scope with their counts: all that are reserved and not void, or committed."""
    found = await rows.ledger.events(scope.id, committed=committed)
    return [(event_from_mapping(json.loads(event)), count) for event, count in found]


def reference_of(events: Sequence[tuple[Event, int]], scope: LedgerScope) -> float | None:
    """Return the reference epsilon of events in a scope; None where it is not defined.

    That is where samples of two kinds are mixed, which the charged epsilon composes and the reference does not, and
    where the extra ``dp`` is not installed: nothing that counts waits for it.
    """
    if not events:
        return 0.0
    try:
        cost = price(
            Composition.of(*events),
            delta=scope.delta,
            adjacency=adjacency_of(scope),
            unit=scope.unit,
            trusted_sampling=True,  # who answers for it is said in each release; others have no sampled event
        )
    except HansaError as error:
        if error.code not in ("HANSA-PRIVACY-INVALID", "HANSA-EXTRA-MISSING"):
            raise
        return None
    return cost.epsilon_reference


async def spent_of(rows: Rows, scope: LedgerScope) -> Running:
    """Return the running account of a scope: what was kept, or computed anew where other orders were tried."""
    if scope.accountant == ACCOUNTANT:
        return Running.from_text(scope.spent)
    events = await events_of(rows, scope)
    return await asyncio.to_thread(Running.of, events, adjacency_of(scope))


async def committed_of(rows: Rows, scope: LedgerScope) -> float:
    """Return the charged epsilon of what was committed, without what is only reserved."""
    events = await events_of(rows, scope, committed=True)
    return (await asyncio.to_thread(Running.of, events, adjacency_of(scope))).epsilon(scope.delta)
