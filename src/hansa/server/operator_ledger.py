"""Operator API: the privacy ledger. Budgets are read by whoever audits, and set by owners."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import MaxLen
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from hansa.core.privacy import Adjacency
from hansa.governance.account import Account
from hansa.governance.exports import exported
from hansa.governance.limits import Limit, set_limit
from hansa.governance.pricing import committed_of
from hansa.server.operator_access import allowed, refusals, services_of
from hansa.server.operator_clients import named
from hansa.server.operator_tenant import After
from hansa.server.operator_tenant import Limit as Page
from hansa.server.operator_types import Name, Word
from hansa.server.submissions import not_found
from hansa.store.records import LedgerScope, Token
from hansa.store.store import Rows

router = APIRouter()

Reading = Annotated[Token, Depends(allowed("ledger.read"))]
Limiting = Annotated[Token, Depends(allowed("ledger.limit"))]


class LimitRequest(BaseModel):
    """A budget; the unit, adjacency and delta of a scope are set once, with its first limit."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    epsilon: float = Field(gt=0, le=1e6, allow_inf_nan=False, examples=[8.0])
    delta: float | None = Field(default=None, gt=0, lt=1, allow_inf_nan=False, examples=[1e-5])
    unit: Name | None = Field(default=None, examples=["client"])
    adjacency: Adjacency | None = None
    populations: Annotated[list[Word], MaxLen(100)] = Field(
        default=[], description="those that spend from it, beside those that do already", examples=[["hospitals"]]
    )


class ScopeBody(BaseModel):
    """A budget and what is spent of it. ``epsilon_charged`` counts; ``epsilon_reference`` is for comparison only."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    unit: str
    adjacency: str
    delta: float
    populations: list[str]
    epsilon_limit: float
    epsilon_charged: float = Field(description="of all reservations that are not void, committed or not")
    epsilon_committed: float = Field(description="of committed ones alone")
    epsilon_reference: float | None = Field(description="no guarantee; null where it is not defined")
    remaining: float
    rows: int
    head: str = Field(description="the hash of the last row")
    accountant: str
    restored: bool = Field(description="spends nothing until its limit is set anew")


class Scopes(BaseModel):
    """The scopes of a tenant."""

    scopes: list[ScopeBody]


class RowBody(BaseModel):
    """A row of a chain, and the SHA-256 of its canonical JSON (RFC 8785)."""

    hash: str
    row: dict[str, Any]


class LedgerRows(BaseModel):
    """A page of a chain; the next begins after ``next``, now or later."""

    rows: list[RowBody]
    next: int


@router.get("/ledger", operation_id="listScopes", tags=["ledger"], responses=refusals())
async def list_scopes(request: Request, token: Reading) -> Scopes:
    """List the budgets of the tenant, with what is spent of each."""
    services = services_of(request)
    async with services.store.reading() as rows:
        found = [await _scope(rows, each, services.clock.now()) for each in await rows.ledger.of(token.tenant)]
    return Scopes(scopes=found)


@router.get("/ledger/{scope}", operation_id="getScope", tags=["ledger"], responses=refusals(404))
async def get_scope(request: Request, token: Reading, scope: Word) -> ScopeBody:
    """Show one budget, by its scope's name."""
    services = services_of(request)
    async with services.store.reading() as rows:
        return await _scope(rows, await _named(rows, token, scope), services.clock.now())


@router.put("/ledger/{scope}", operation_id="setLimit", tags=["ledger"], responses=refusals(404, 409))
async def set_scope_limit(request: Request, token: Limiting, scope: Word, wanted: LimitRequest) -> ScopeBody:
    """Set what a scope may spend. It is made where it is new; the change is a row of its chain."""
    services = services_of(request)
    now, actor = services.clock.now(), f"{token.name} ({token.id})"
    async with services.store.transaction() as rows:
        limit = Limit(
            scope=scope,
            epsilon=wanted.epsilon,
            unit=wanted.unit,
            adjacency=wanted.adjacency,
            delta=wanted.delta,
            populations=[await named(rows, token, each) for each in wanted.populations],
        )
        return await _scope(rows, await set_limit(rows, token.tenant, limit, actor=actor, now=now), now)


@router.get("/ledger/{scope}/rows", operation_id="listLedgerRows", tags=["ledger"], responses=refusals(404))
async def list_rows(request: Request, token: Reading, scope: Word, after: After = 0, limit: Page = 100) -> LedgerRows:
    """List the rows of a scope's chain in order, each with its hash: what `hansa ledger export` writes."""
    async with services_of(request).store.reading() as rows:
        found = await rows.ledger.after((await _named(rows, token, scope)).id, after, limit)
    return LedgerRows(rows=[RowBody(**exported(each)) for each in found], next=found[-1].number if found else after)


async def _named(rows: Rows, token: Token, scope: str) -> LedgerScope:
    found = await rows.ledger.named(token.tenant, scope)
    if found is None:
        raise not_found(f"scope {scope}")
    return found


async def _scope(rows: Rows, scope: LedgerScope, now: float) -> ScopeBody:
    balance = await Account(rows, scope.tenant, now).balance_of(scope)
    return ScopeBody(
        id=scope.id,
        name=scope.name,
        unit=scope.unit,
        adjacency=scope.adjacency,
        delta=scope.delta,
        populations=await rows.ledger.populations(scope.id),
        epsilon_limit=scope.epsilon_limit,
        epsilon_charged=balance.charged,
        epsilon_committed=await committed_of(rows, scope),
        epsilon_reference=balance.reference,
        remaining=balance.remaining,
        rows=scope.rows,
        head=scope.head,
        accountant=scope.accountant,
        restored=scope.restored_at is not None,
    )
