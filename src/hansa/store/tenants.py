"""Tenants, and the tokens of their operators."""

from __future__ import annotations

import secrets
from dataclasses import asdict
from typing import Final

from sqlalchemy import bindparam, select, update

from hansa.core.errors import StoreConflictError
from hansa.store import tables
from hansa.store.connections import Connection, first
from hansa.store.dialects import insert_once
from hansa.store.records import Tenant, Token

_T: Final = tables.tenants.c
_ADD: Final = insert_once(tables.tenants, returning=_T.id)
_ALL: Final = select(_T.id, _T.name).order_by(_T.name)
_BY_ID: Final = _ALL.where(_T.id == bindparam("id"))
_BY_NAME: Final = _ALL.where(_T.name == bindparam("name"))

_K: Final = tables.tokens.c
_ADD_TOKEN: Final = insert_once(tables.tokens, returning=_K.id)
_TOKENS: Final = select(_K.id, _K.tenant, _K.role, _K.name, _K.digest, _K.expires_at, _K.revoked_at)
_TOKEN_BY_DIGEST: Final = _TOKENS.where(_K.digest == bindparam("digest"))
_TOKENS_OF: Final = _TOKENS.where(_K.tenant == bindparam("tenant")).order_by(_K.name, _K.id)
_REVOKE: Final = (
    update(tables.tokens).where(_K.id == bindparam("token"), _K.revoked_at.is_(None)).values(revoked_at=bindparam("at"))
)


class Tenants:
    """The organisations on this server."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def add(self, name: str) -> Tenant:
        """Make a tenant. Raises StoreConflictError where there is one of that name."""
        tenant = Tenant(secrets.token_hex(8), name)
        if not await self._on.rows(_ADD, asdict(tenant)):
            raise StoreConflictError(f"The tenant {name!r}")
        return tenant

    async def get(self, tenant: str) -> Tenant | None:
        """Return a tenant by its id."""
        row = await first(self._on, _BY_ID, {"id": tenant})
        return None if row is None else Tenant(*row)

    async def named(self, name: str) -> Tenant | None:
        """Return a tenant by its name."""
        row = await first(self._on, _BY_NAME, {"name": name})
        return None if row is None else Tenant(*row)

    async def all(self) -> list[Tenant]:
        """Return all tenants, by name. For the server itself: no tenant may see the list."""
        return [Tenant(*row) for row in await self._on.rows(_ALL)]


class Tokens:
    """The tokens of the operator API."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def add(self, token: Token) -> None:
        """Keep a token. Raises StoreConflictError for a digest that is kept already."""
        if not await self._on.rows(_ADD_TOKEN, asdict(token)):
            raise StoreConflictError(f"The token {token.id}")

    async def by_digest(self, digest: str) -> Token | None:
        """Return a token, valid or not, by the digest of its secret."""
        row = await first(self._on, _TOKEN_BY_DIGEST, {"digest": digest})
        return None if row is None else Token(*row)

    async def revoke(self, token: str, at: float) -> None:
        """Make a token invalid from a moment on; one that was revoked earlier stays so."""
        await self._on.run(_REVOKE, {"token": token, "at": at})

    async def of(self, tenant: str) -> list[Token]:
        """Return a tenant's tokens, by name."""
        return [Token(*row) for row in await self._on.rows(_TOKENS_OF, {"tenant": tenant})]
