"""The server's own keys, by which clients know its assignments. The private halves are wrapped."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from sqlalchemy import bindparam, select, update

from hansa.core.errors import StoreConflictError
from hansa.store import tables
from hansa.store.connections import Connection, first
from hansa.store.dialects import insert_once
from hansa.store.records import SigningKey

_K: Final = tables.signing_keys.c
_ADD: Final = insert_once(tables.signing_keys, returning=_K.id)
_ALL: Final = select(
    _K.id, _K.public_key, _K.wrapped, _K.endorsed_by, _K.endorsement, _K.created_at, _K.retired_at
).order_by(_K.created_at, _K.id)
_CURRENT: Final = (
    _ALL.where(_K.retired_at.is_(None)).order_by(None).order_by(_K.created_at.desc(), _K.id.desc()).limit(1)
)
_RETIRE: Final = update(tables.signing_keys).where(_K.id == bindparam("which")).values(retired_at=bindparam("at"))


class SigningKeys:
    """The keys that this server signs with, one after another."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def add(self, key: SigningKey) -> None:
        """Keep a key; it is the current one from now on."""
        if not await self._on.rows(_ADD, asdict(key)):
            raise StoreConflictError(f"The signing key {key.id}")

    async def current(self) -> SigningKey | None:
        """Return the latest key that is not retired."""
        row = await first(self._on, _CURRENT)
        return None if row is None else SigningKey(*row)

    async def all(self) -> list[SigningKey]:
        """Return all keys, in the order in which they were made."""
        return [SigningKey(*row) for row in await self._on.rows(_ALL)]

    async def retire(self, key: str, at: float) -> None:
        """Take note that a key is used no more."""
        await self._on.run(_RETIRE, {"which": key, "at": at})
