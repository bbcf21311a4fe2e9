"""Budgets: an owner sets what a scope may spend, and which populations spend from it. Each change is a row."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from hansa.core.privacy import Adjacency
from hansa.governance import refusals
from hansa.governance.chain import START, extended
from hansa.governance.pricing import spent_of
from hansa.privacy.running import ACCOUNTANT, nothing
from hansa.store.records import LedgerScope, Population
from hansa.store.store import Rows


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A budget to be set. ``unit``, ``adjacency`` and ``delta`` are needed for a new scope, and never change."""

    scope: str
    epsilon: float
    unit: str | None = None
    adjacency: str | None = None
    delta: float | None = None
    populations: Sequence[Population] = ()
    """Those that are to spend from it, beside those that do already."""


async def set_limit(rows: Rows, tenant: str, limit: Limit, *, actor: str, now: float) -> LedgerScope:
    """Make a scope, or change its limit; return it. Raises HansaError where it cannot be."""
    if not 0 < limit.epsilon < math.inf:
        raise refusals.invalid(f"Epsilon is {limit.epsilon:g}.")
    found = await rows.ledger.named(tenant, limit.scope, for_change=True)
    scope = _new(tenant, limit) if found is None else _same(found, limit)
    if found is None:
        await rows.ledger.add(scope)
    for population in limit.populations:
        if not await rows.ledger.join(scope, population.id):
            theirs = await rows.ledger.of_population(tenant, population.id)
            if theirs is None or theirs.id != scope.id:
                raise refusals.elsewhere(population.name)
    was_restored = scope.restored_at is not None
    names = await rows.ledger.populations(scope.id)
    parts = {"populations": names, **({"after_restore": True} if was_restored else {})}
    spent = await spent_of(rows, scope)
    wanted = replace(scope, epsilon_limit=limit.epsilon)
    after, row = extended(wanted, "limit", spent=spent, at=now, actor=actor, parts=parts)
    after = replace(after, restored_at=None, restored_row=row.number if was_restored else scope.restored_row)
    await rows.ledger.append(after, row, read=scope.rows)
    detail = {"scope": scope.name, "epsilon": limit.epsilon, "delta": scope.delta, "unit": scope.unit, "by": actor}
    await rows.events.add("ledger.limit", tenant=tenant, at=now, detail=detail)
    return after


def _new(tenant: str, limit: Limit) -> LedgerScope:
    for absent, value in (
        ("the privacy unit", (limit.unit or "").strip()),
        ("the adjacency", limit.adjacency),
        ("delta", limit.delta),
        ("a population", limit.populations),
    ):
        if not value:
            raise refusals.incomplete(limit.scope, absent)
    if limit.adjacency not in get_args(Adjacency):
        raise refusals.invalid(f"The adjacency is {limit.adjacency!r}; known are {', '.join(get_args(Adjacency))}.")
    if limit.delta is None or not 0 < limit.delta < 1:
        raise refusals.invalid(f"Delta is {limit.delta}.")
    return LedgerScope(
        id=f"scope-{secrets.token_hex(8)}",
        tenant=tenant,
        name=limit.scope,
        unit=str(limit.unit),
        adjacency=str(limit.adjacency),
        delta=limit.delta,
        epsilon_limit=limit.epsilon,
        rows=0,
        head=START,
        accountant=ACCOUNTANT,
        spent=nothing().text,
    )


def _same(found: LedgerScope, limit: Limit) -> LedgerScope:
    for what, held, asked in (
        ("privacy unit", found.unit, limit.unit),
        ("adjacency", found.adjacency, limit.adjacency),
        ("delta", found.delta, limit.delta),
    ):
        if asked is not None and asked != held:
            raise refusals.another(found.name, what, str(held), str(asked))
    return found
