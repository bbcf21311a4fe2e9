"""Operator API: populations, invitations and clients."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request

from hansa.core.errors import RefusedError
from hansa.server import operator_bodies as bodies
from hansa.server.leaving import leave_all, tell
from hansa.server.operator_access import allowed, refusals, services_of
from hansa.server.operator_tenant import Limit
from hansa.server.operator_types import Id, Word
from hansa.server.services import Services
from hansa.server.submissions import not_found
from hansa.server.tokens import digest_of, new_secret
from hansa.store.records import Client, ClientState, Invitation, Population, RoundKey, Token
from hansa.store.store import Rows

router = APIRouter()

ReadingPopulations = Annotated[Token, Depends(allowed("populations.read"))]
ChangingPopulations = Annotated[Token, Depends(allowed("populations.change"))]
ReadingClients = Annotated[Token, Depends(allowed("clients.read"))]
ChangingClients = Annotated[Token, Depends(allowed("clients.change"))]

_DAY: Final = 86400.0
_BEFORE: Final[dict[ClientState, frozenset[ClientState]]] = {
    "suspended": frozenset(("invited", "enrolled", "active", "suspended")),
    "active": frozenset(("enrolled", "active", "suspended")),
    "retired": frozenset(("invited", "enrolled", "active", "suspended", "retired")),
}
"""State that an operator sets -> those that it may follow."""


@router.get("/populations", operation_id="listPopulations", tags=["populations"], responses=refusals())
async def list_populations(request: Request, token: ReadingPopulations) -> bodies.Populations:
    """List the populations of the tenant."""
    async with services_of(request).store.reading() as rows:
        found = [await _population(rows, each) for each in await rows.populations.of(token.tenant)]
    return bodies.Populations(populations=found)


@router.post(
    "/populations", operation_id="createPopulation", tags=["populations"], status_code=201, responses=refusals(409)
)
async def create_population(
    request: Request, token: ChangingPopulations, wanted: bodies.PopulationRequest
) -> bodies.PopulationBody:
    """Make a population with the attributes that its clients may declare."""
    services = services_of(request)
    made = Population(
        id=f"population-{uuid.uuid4().hex[:16]}",
        tenant=token.tenant,
        name=wanted.name,
        admission=wanted.admission,
        schema=dict(wanted.attributes),
        minimum_version=wanted.minimum_version,
    )
    async with services.store.transaction() as rows:
        if await rows.populations.named(token.tenant, wanted.name) is not None:
            raise RefusedError(
                "HANSA-STORE-CONFLICT",
                rule="A population's name is its own within the tenant.",
                found=f"{wanted.name!r} is there.",
                action="Choose another name, or use that population.",
            )
        await rows.populations.add(made)
        detail = {"population": made.name, "by": token.name}
        await rows.events.add("population.created", tenant=token.tenant, at=services.clock.now(), detail=detail)
        return await _population(rows, made)


@router.get("/populations/{population}", operation_id="getPopulation", tags=["populations"], responses=refusals(404))
async def get_population(request: Request, token: ReadingPopulations, population: Word) -> bodies.PopulationBody:
    """Show one population, by its name."""
    async with services_of(request).store.reading() as rows:
        return await _population(rows, await named(rows, token, population))


@router.patch(
    "/populations/{population}", operation_id="changePopulation", tags=["populations"], responses=refusals(404)
)
async def change_population(
    request: Request, token: ChangingPopulations, population: Word, wanted: bodies.PopulationChange
) -> bodies.PopulationBody:
    """Change a population's attributes or minimum version. Clients declare anew as they check in."""
    services = services_of(request)
    async with services.store.transaction() as rows:
        found = await named(rows, token, population)
        given = wanted.model_fields_set
        changed = replace(
            found,
            schema=found.schema if wanted.attributes is None else dict(wanted.attributes),
            minimum_version=wanted.minimum_version if "minimum_version" in given else found.minimum_version,
        )
        await rows.populations.change(changed)
        detail = {"population": found.name, "changed": sorted(given), "by": token.name}
        await rows.events.add("population.changed", tenant=token.tenant, at=services.clock.now(), detail=detail)
        return await _population(rows, changed)


@router.post(
    "/populations/{population}/invitations",
    operation_id="invite",
    tags=["clients"],
    status_code=201,
    responses=refusals(404, 409),
)
async def invite(
    request: Request, token: ChangingClients, population: Word, wanted: bodies.InvitationRequest
) -> bodies.InvitationMade:
    """Invite a client by name, several without, or a known one whose device was lost. The secret is told this once."""
    if (wanted.name is not None) + (wanted.client is not None) + (wanted.uses != 1) > 1:
        raise RefusedError(
            "HANSA-REQUEST-INVALID",
            rule="An invitation is for a new client by name, for a known one by id, or for several.",
            found=f"It is given with uses = {wanted.uses}, and a name or client.",
            action="Leave two of them out.",
        )
    services = services_of(request)
    now = services.clock.now()
    secret = new_secret("invitation")
    async with services.store.transaction() as rows:
        found = await named(rows, token, population)
        ends = now + wanted.days * _DAY
        if wanted.client is not None and (await _owned(rows, token, wanted.client)).population != found.id:
            raise not_found(f"client {wanted.client!r} in this population")
        made = Invitation(
            uuid.uuid4().hex, found.id, digest_of(secret), wanted.uses, client=wanted.client, expires_at=ends
        )
        client = await rows.clients.invite(made, name=wanted.name, at=now)
        detail = {"population": found.name, "uses": wanted.uses, "invitation": made.id, "by": token.name}
        about = None if client is None else client.id
        await rows.events.add("client.invited", tenant=token.tenant, at=now, client=about, detail=detail)
    return bodies.InvitationMade(id=made.id, token=secret, uses=made.uses, expires_at=ends, client=about)


@router.get("/populations/{population}/clients", operation_id="listClients", tags=["clients"], responses=refusals(404))
async def list_clients(  # noqa: PLR0913, PLR0917 - what a page is
    request: Request,
    token: ReadingClients,
    population: Word,
    state: Annotated[ClientState | None, Query(description="only those in this state")] = None,
    after: Annotated[int, Query(description="only numbers above this one", ge=-1, le=2**53 - 1)] = -1,
    limit: Limit = 100,
) -> bodies.Clients:
    """List clients in the order of their numbers, a page at a time."""
    services = services_of(request)
    async with services.store.reading() as rows:
        found = await named(rows, token, population)
        page = await rows.clients.page(found.id, after=after, limit=limit, state=state)
    following = page[-1].number if len(page) == limit else None
    return bodies.Clients(clients=[_client(services, each) for each in page], next=following)


@router.get("/populations/{population}/counts", operation_id="countClients", tags=["clients"], responses=refusals(404))
async def count_clients(request: Request, token: ReadingClients, population: Word) -> bodies.Counts:
    """Count the clients by state and version."""
    async with services_of(request).store.reading() as rows:
        found = await named(rows, token, population)
        counts = await rows.clients.counts(found.id)
    return bodies.Counts(
        counts=[
            bodies.CountBody(state=state, version=version, clients=count)
            for (state, version), count in sorted(counts.items())
        ]
    )


@router.get("/clients/{client}", operation_id="getClient", tags=["clients"], responses=refusals(404))
async def get_client(request: Request, token: ReadingClients, client: Id) -> bodies.ClientBody:
    """Show one client."""
    services = services_of(request)
    async with services.store.reading() as rows:
        return _client(services, await _owned(rows, token, client))


@router.post("/clients/{client}/suspend", operation_id="suspendClient", tags=["clients"], responses=refusals(404, 409))
async def suspend_client(
    request: Request, token: ChangingClients, client: Id, reason: bodies.Reason | None = None
) -> bodies.ClientBody:
    """Suspend a client: no round waits for it or picks it, and its calls are refused, until it is resumed."""
    return await _set_state(request, token, client, "suspended", reason)


@router.post("/clients/{client}/resume", operation_id="resumeClient", tags=["clients"], responses=refusals(404, 409))
async def resume_client(
    request: Request, token: ChangingClients, client: Id, reason: bodies.Reason | None = None
) -> bodies.ClientBody:
    """Let a suspended client take part again."""
    return await _set_state(request, token, client, "active", reason)


@router.post("/clients/{client}/retire", operation_id="retireClient", tags=["clients"], responses=refusals(404, 409))
async def retire_client(
    request: Request, token: ChangingClients, client: Id, reason: bodies.Reason | None = None
) -> bodies.ClientBody:
    """Retire a client for ever. A lost device is retired, and enrols anew as another client."""
    return await _set_state(request, token, client, "retired", reason)


async def _set_state(
    request: Request, token: Token, client: str, state: ClientState, reason: bodies.Reason | None
) -> bodies.ClientBody:
    services = services_of(request)
    now = services.clock.now()
    left: list[RoundKey] = []
    async with services.store.transaction() as rows:
        found = await _owned(rows, token, client)
        enrolled = found.public_key is not None
        if found.state not in _BEFORE[state] or (state == "active" and not enrolled):
            raise RefusedError(
                "HANSA-STATE",
                rule="Clients go from invited, enrolled and active to suspended and back, and to retired for ever.",
                found=f"Client {client} is {found.state}{'' if enrolled else ' and never enrolled'}.",
                action="Invite it anew, if it is to take part.",
            )
        if found.state != state:
            why = "" if reason is None or not reason.why else f": {reason.why}"
            await rows.clients.set_state(client, state, now, f"by {token.name}{why}")
        if state != "active":
            left = await leave_all(rows, client, "lost", at=now)
    services.clients.drop(client)
    tell(services.board, client, left)
    return _client(services, replace(found, state=state))


async def named(rows: Rows, token: Token, name: str) -> Population:
    """Return a population of the caller's tenant. Raises RefusedError where there is none of that name."""
    found = await rows.populations.named(token.tenant, name)
    if found is None:
        raise not_found(f"population {name!r}")
    return found


async def _owned(rows: Rows, token: Token, client: str) -> Client:
    found = await rows.clients.get(client)
    if found is None or found.tenant != token.tenant:
        raise not_found(f"client {client!r}")
    return found


async def _population(rows: Rows, population: Population) -> bodies.PopulationBody:
    return bodies.PopulationBody(
        id=population.id,
        name=population.name,
        admission=population.admission,
        attributes=dict(population.schema),
        minimum_version=population.minimum_version,
        clients=await rows.clients.size(population.id),
    )


def _client(services: Services, client: Client) -> bodies.ClientBody:
    return bodies.ClientBody(
        id=client.id,
        number=client.number,
        name=client.name,
        state=client.state,
        version=client.version,
        consent=client.consent,
        attributes=dict(client.attributes),
        invited_at=client.invited_at,
        enrolled_at=client.enrolled_at,
        last_seen=services.board.callers.last(client.population, client.number),
    )
