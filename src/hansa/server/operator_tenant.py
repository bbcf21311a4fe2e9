"""Operator API: the caller, tokens, events and what a tenant uses."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated

from annotated_types import Ge, Le
from fastapi import APIRouter, Depends, Query, Request

from hansa.core.errors import RefusedError
from hansa.server import operator_bodies as bodies
from hansa.server import usage
from hansa.server.operator_access import Anybody, allowed, refusals, services_of
from hansa.server.operator_types import Id
from hansa.server.submissions import not_found
from hansa.server.tokens import ROLES, may, new_token
from hansa.store.records import Event, Token

router = APIRouter()

Managing = Annotated[Token, Depends(allowed("tokens.manage"))]
ReadingEvents = Annotated[Token, Depends(allowed("events.read"))]
ReadingUsage = Annotated[Token, Depends(allowed("usage.read"))]
After = Annotated[int, Query(description="only what comes after this number"), Ge(0), Le(2**53 - 1)]
Limit = Annotated[int, Query(description="at most so many"), Ge(1), Le(1000)]
Newest = Annotated[bool, Query(description="the newest, in their order, whatever `after` says")]

_DAY = 86400.0


@router.get("/me", operation_id="whoAmI", tags=["tokens"], responses=refusals())
async def who_am_i(request: Request, token: Anybody) -> bodies.Who:
    """Tell whose token this is and what it may do."""
    async with services_of(request).store.reading() as rows:
        tenant = await rows.tenants.get(token.tenant)
    if tenant is None:
        raise not_found("tenant")
    permissions = sorted(ROLES[token.role])
    return bodies.Who(
        tenant=tenant.name, name=token.name, role=token.role, permissions=permissions, expires_at=token.expires_at
    )


@router.get("/tokens", operation_id="listTokens", tags=["tokens"], responses=refusals())
async def list_tokens(request: Request, token: Managing) -> bodies.Tokens:
    """List the tokens of the tenant, without their secrets."""
    async with services_of(request).store.reading() as rows:
        found = await rows.tokens.of(token.tenant)
    return bodies.Tokens(tokens=[_token(each) for each in found])


@router.post("/tokens", operation_id="createToken", tags=["tokens"], status_code=201, responses=refusals())
async def create_token(request: Request, token: Managing, wanted: bodies.TokenRequest) -> bodies.TokenMade:
    """Make a token with a role. Its secret is told this once."""
    services = services_of(request)
    now = services.clock.now()
    days = services.settings.token_days if wanted.days is None else wanted.days
    made, secret = new_token(token.tenant, wanted.role, wanted.name, now + days * _DAY)
    async with services.store.transaction() as rows:
        await rows.tokens.add(made)
        detail = {"token": made.id, "role": made.role, "name": made.name, "by": token.name}
        await rows.events.add("token.created", tenant=token.tenant, at=now, detail=detail)
    return bodies.TokenMade(**_token(made).model_dump(), token=secret)


@router.delete("/tokens/{token_id}", operation_id="revokeToken", tags=["tokens"], responses=refusals(404, 409))
async def revoke_token(request: Request, token: Managing, token_id: Id) -> bodies.TokenBody:
    """Revoke a token: from now on it lets nobody in. The one that asks cannot revoke itself."""
    services = services_of(request)
    now = services.clock.now()
    if token_id == token.id:
        raise RefusedError(
            "HANSA-STATE",
            rule="A tenant keeps an owner: no token revokes itself.",
            found="This is the token of the call.",
            action="Make another owner's token, and revoke this one with it.",
        )
    async with services.store.transaction() as rows:
        found = next((each for each in await rows.tokens.of(token.tenant) if each.id == token_id), None)
        if found is None:
            raise not_found(f"token {token_id}")
        if found.revoked_at is None:
            await rows.tokens.revoke(token_id, now)
            detail = {"token": found.id, "name": found.name, "by": token.name}
            await rows.events.add("token.revoked", tenant=token.tenant, at=now, detail=detail)
    shown = _token(found).model_dump()
    return bodies.TokenBody(**{**shown, "revoked_at": found.revoked_at or now})


@router.get("/events", operation_id="listEvents", tags=["events"], responses=refusals())
async def list_events(
    request: Request, token: ReadingEvents, after: After = 0, limit: Limit = 100, *, newest: Newest = False
) -> bodies.Events:
    """List what happened in the tenant, the oldest first; ask again after ``next`` for more."""
    async with services_of(request).store.reading() as rows:
        if newest:
            found = await rows.events.newest(token.tenant, limit)
        else:
            found = await rows.events.after(token.tenant, after, limit)
    return bodies.Events(events=[event_body(each) for each in found], next=found[-1].number if found else after)


@router.get("/usage", operation_id="getUsage", tags=["usage"], responses=refusals())
async def get_usage(request: Request, token: ReadingUsage) -> bodies.Usage:
    """Tell what the tenant uses: clients, jobs, runs, and bytes of models."""
    return bodies.Usage(**asdict(await usage.of_tenant(services_of(request), token.tenant)))


def shown_to(token: Token, event: Event) -> Event:
    """Return an event without its client, unless the caller may read clients."""
    if may(token, "clients.read"):
        return event
    detail = {name: value for name, value in event.detail.items() if name not in ("name", "number")}
    return replace(event, client=None, detail=detail)


def event_body(event: Event) -> bodies.EventBody:
    """Return an event as the API shows it."""
    return bodies.EventBody(
        number=event.number,
        at=event.at,
        kind=event.kind,
        run=event.run,
        client=event.client,
        detail=dict(event.detail),
    )


def _token(token: Token) -> bodies.TokenBody:
    return bodies.TokenBody(
        id=token.id, name=token.name, role=token.role, expires_at=token.expires_at, revoked_at=token.revoked_at
    )
