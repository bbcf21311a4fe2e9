"""How clients get in: invited and redeeming a token, or by a certificate; each has one number for ever."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from sqlalchemy import bindparam, select, update

from hansa.core.errors import RefusedError, StoreConflictError
from hansa.store import tables
from hansa.store.connections import Connection, first
from hansa.store.dialects import insert_once
from hansa.store.events import Pending
from hansa.store.populations import next_numbers, profile_of
from hansa.store.records import Client, ClientState, Invitation

_C: Final = tables.clients.c
_F: Final = tables.profiles.c
_I: Final = tables.invitations.c
CLIENTS: Final = select(
    _C.id,
    _C.tenant,
    _C.population,
    _C.number,
    _C.name,
    _C.state,
    _C.public_key,
    _C.profile,
    _F.attributes,
    _F.version,
    _F.consent,
    _C.invited_at,
    _C.enrolled_at,
).join(tables.profiles, _C.profile == _F.id)
"""Clients as records."""
BY_ID: Final = CLIENTS.where(_C.id == bindparam("id"))
_LOCKED: Final = BY_ID.with_for_update(of=tables.clients)
_BY_NAME: Final = CLIENTS.where(_C.population == bindparam("population"), _C.name == bindparam("name"))
_BY_KEY: Final = CLIENTS.where(_C.population == bindparam("population"), _C.public_key == bindparam("public_key"))
_ENROLLED_BY: Final = select(_C.invitation).where(_C.id == bindparam("id"))
_ADD: Final = insert_once(tables.clients, returning=_C.id)
_ENROL: Final = (
    update(tables.clients)
    .where(_C.id == bindparam("which"))
    .values(
        state=bindparam("becomes"),
        public_key=bindparam("public_key"),
        profile=bindparam("profile"),
        invitation=bindparam("invitation"),
        enrolled_at=bindparam("at"),
    )
)
_ADD_INVITATION: Final = insert_once(tables.invitations, returning=_I.id)
_INVITATION: Final = (
    select(_I.id, _I.population, _I.digest, _I.uses, _I.used, _I.client, _I.expires_at)
    .where(_I.digest == bindparam("digest"))
    .with_for_update()
)
_IS_INVITED: Final = select(_I.id).where(_I.digest == bindparam("digest"))
_USE: Final = update(tables.invitations).where(_I.id == bindparam("which")).values(used=_I.used + 1)
_BARRED: Final = frozenset({"suspended", "retired"})


@dataclass(frozen=True)
class Newcomer:
    """What a client tells when it enrols."""

    name: str | None
    public_key: bytes | None
    attributes: Mapping[str, Any]
    version: str
    consent: bool
    state: ClientState = "enrolled"


class Enrolments:
    """The ways into a population."""

    def __init__(self, connection: Connection, pending: Pending) -> None:
        self._on = connection
        self._pending = pending

    async def invite(self, invitation: Invitation, *, name: str | None, at: float) -> Client | None:
        """Keep an invitation; with a name, return the client that is invited, which has its number from now on.

        A name that was invited and has not come yet keeps its number. One that is enrolled is taken: to let a lost
        device enrol again, name its client in the invitation. Raises RefusedError for a name that is taken, and
        ValueError for a name to be used more than once.
        """
        client: Client | None = None
        if name is not None:
            if invitation.uses != 1 or invitation.client is not None:
                raise ValueError("an invitation with a name is for one client, to be used once")
            client = await self._invited(invitation.population, name, at)
            invitation = replace(invitation, client=client.id)
        elif invitation.client is not None:
            client = await self._one(BY_ID, id=invitation.client)
            if client is None or client.population != invitation.population:
                raise LookupError("an invitation is for a client of its population")
        if not await self._on.rows(_ADD_INVITATION, asdict(invitation)):
            raise StoreConflictError("An invitation")
        return client

    async def is_invited(self, digest: str) -> bool:
        """Return whether there is an invitation with a digest of its token, used up and expired or not."""
        return await first(self._on, _IS_INVITED, {"digest": digest}) is not None

    async def redeem(  # noqa: PLR0913 - what a client tells
        self,
        digest: str,
        *,
        public_key: bytes,
        attributes: Mapping[str, Any],
        version: str,
        consent: bool,
        at: float,
    ) -> Client:
        """Let a client in by its token; the same key again gets the same client. Raises RefusedError otherwise."""
        row = await first(self._on, _INVITATION, {"digest": digest})
        if row is None:
            raise _refused()
        invitation = Invitation(*row)
        known = await self._one(_BY_KEY, population=invitation.population, public_key=public_key)
        if known is not None and await self._enrolled_by(known.id) == invitation.id:
            return known
        if invitation.used >= invitation.uses or (invitation.expires_at is not None and at >= invitation.expires_at):
            raise _refused()
        if known is not None and (known.state in _BARRED or invitation.client not in (None, known.id)):
            raise _refused()
        if known is not None and invitation.client is None:
            return known  # it is in already, by another token, which is all that this one would do
        newcomer = Newcomer(None, public_key, attributes, version, consent)
        await self._on.run(_USE, {"which": invitation.id})
        if invitation.client is None:
            return await self._add(invitation.population, newcomer, invitation.id, at)
        return await self._take_place(invitation.client, newcomer, invitation.id, at)

    async def enrol(  # noqa: PLR0913 - what a client tells
        self,
        population: str,
        *,
        name: str,
        public_key: bytes,
        attributes: Mapping[str, Any],
        version: str,
        consent: bool,
        at: float,
    ) -> Client:
        """Let a client in by the name on its certificate; the same key again gets the same client.

        Raises RefusedError where the name has another key, or the key another name.
        """
        newcomer = Newcomer(name, public_key, attributes, version, consent)
        known = await self._one(_BY_NAME, population=population, name=name)
        same = await self._one(_BY_KEY, population=population, public_key=public_key)
        if known is None and same is None:
            return await self._add(population, newcomer, None, at)
        if known is not None and same is not None and known.id == same.id:
            return known
        if known is None or same is not None or known.state != "invited":
            raise RefusedError(
                "HANSA-ENROL-CERTIFICATE",
                rule="A name on a certificate enrols once, with one key.",
                found="The name is enrolled with another key, or the key under another name.",
                action="Ask the operator for an invitation that names this client.",
            )
        return await self._take_place(known.id, newcomer, None, at)

    async def add_many(self, population: str, newcomers: Sequence[Newcomer], *, at: float) -> None:
        """Add many clients at once, for benchmarks and migrations from elsewhere; no events are told."""
        number, tenant = await next_numbers(self._on, population, len(newcomers))
        profiles: dict[str, int] = {}
        rows = []
        for place, each in enumerate(newcomers, start=number):
            key = repr((each.attributes, each.version, each.consent))
            if key not in profiles:
                profiles[key] = await self._profile(population, each)
            id_ = secrets.token_hex(12)
            name = each.name or f"client-{place}"
            key_and_profile = (each.public_key, profiles[key])
            rows.append((id_, tenant, population, place, name, each.state, *key_and_profile, None, at, at, None))
        await self._on.load(tables.clients, rows)

    async def _profile(self, population: str, of: Newcomer) -> int:
        return await profile_of(self._on, population, of.attributes, of.version, consent=of.consent)

    async def _invited(self, population: str, name: str, at: float) -> Client:
        known = await self._one(_BY_NAME, population=population, name=name)
        if known is not None and known.state != "invited":
            raise RefusedError(
                "HANSA-STORE-CONFLICT",
                rule="A client's name is its own within its population.",
                found=f"There is a client {name!r} already: {known.id}, which is {known.state}.",
                action=f"Choose another name, or, if its device was lost, let it enrol again: --again {known.id}",
            )
        return known or await self._add(
            population, Newcomer(name, None, {}, "", consent=False, state="invited"), None, at
        )

    async def _add(self, population: str, newcomer: Newcomer, invitation: str | None, at: float) -> Client:
        """Add a client with the next number. Raises StoreConflictError where its name or key came in between."""
        number, tenant = await next_numbers(self._on, population)
        id_ = secrets.token_hex(12)
        invited = newcomer.state == "invited"
        values = {
            "id": id_,
            "tenant": tenant,
            "population": population,
            "number": number,
            "name": newcomer.name or f"client-{number}",
            "state": newcomer.state,
            "public_key": newcomer.public_key,
            "profile": await self._profile(population, newcomer),
            "invitation": invitation,
            "invited_at": at,
            "enrolled_at": None if invited else at,
            "declared_at": None,
        }
        added = await self._on.rows(_ADD, values)
        if not added and newcomer.name is None:
            added = await self._on.rows(_ADD, {**values, "name": f"client-{number}-{id_}"})
        client = await self._one(BY_ID, id=id_)
        if not added or client is None:
            raise StoreConflictError(f"The client {newcomer.name or number}")
        if not invited:
            self._told(client, at)
        return client

    async def _take_place(self, client: str, newcomer: Newcomer, invitation: str | None, at: float) -> Client:
        """Let somebody in as a client that is known: invited before, or enrolled again with another key.

        A suspended one stays suspended: its old key is gone at once, and the new one waits until it is resumed.
        """
        known = await self._one(_LOCKED, id=client)
        if known is None or known.state == "retired":
            raise _refused()
        values = {
            "which": client,
            "becomes": "suspended" if known.state == "suspended" else "enrolled",
            "public_key": newcomer.public_key,
            "profile": await self._profile(known.population, newcomer),
            "invitation": invitation,
            "at": at,
        }
        await self._on.run(_ENROL, values)
        self._pending.clients[client] = None
        enrolled = await self._one(BY_ID, id=client)
        if enrolled is None:
            raise LookupError("a client was changed and is not there")
        self._told(enrolled, at)
        return enrolled

    def _told(self, client: Client, at: float) -> None:
        detail = {"number": client.number}
        self._pending.tell("client.enrolled", tenant=client.tenant, at=at, client=client.id, detail=detail)

    async def _enrolled_by(self, client: str) -> str | None:
        row = await first(self._on, _ENROLLED_BY, {"id": client})
        return None if row is None else row[0]

    async def _one(self, statement: Any, **values: Any) -> Client | None:
        row = await first(self._on, statement, values)
        return None if row is None else Client(*row)


def _refused() -> RefusedError:
    return RefusedError(
        "HANSA-ENROL-TOKEN",
        rule="An invitation lets in as many clients as it was made for, until it expires.",
        found="This one is unknown, used up or expired.",
        action="Ask the operator for another.",
    )
