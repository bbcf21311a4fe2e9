"""Populations, and the profiles of their clients: the distinct (attributes, version, consent)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import bindparam, select, update

from hansa.core.errors import StoreConflictError
from hansa.store import json_text, tables
from hansa.store.connections import Connection, first
from hansa.store.dialects import insert_once
from hansa.store.records import Population

_P: Final = tables.populations.c
_ADD: Final = insert_once(tables.populations, returning=_P.id)
_ALL: Final = select(_P.id, _P.tenant, _P.name, _P.admission, _P.schema, _P.minimum_version)
_BY_ID: Final = _ALL.where(_P.id == bindparam("id"))
_BY_NAME: Final = _ALL.where(_P.tenant == bindparam("tenant"), _P.name == bindparam("name"))
_OF: Final = _ALL.where(_P.tenant == bindparam("tenant")).order_by(_P.name)
_CHANGE: Final = (
    update(tables.populations)
    .where(_P.id == bindparam("which"), _P.tenant == bindparam("whose"))
    .values(
        name=bindparam("name"),
        admission=bindparam("admission"),
        schema=bindparam("schema"),
        minimum_version=bindparam("minimum_version"),
    )
)
_NEXT: Final = (
    update(tables.populations)
    .where(_P.id == bindparam("which"))
    .values(numbers=_P.numbers + bindparam("more"))
    .returning(_P.numbers, _P.tenant)
)
_SIZE: Final = select(_P.numbers).where(_P.id == bindparam("id"))

_F: Final = tables.profiles.c
_ADD_PROFILE: Final = insert_once(tables.profiles, returning=_F.id)
_PROFILE: Final = select(_F.id).where(_F.population == bindparam("population"), _F.digest == bindparam("digest"))
_PROFILES: Final = select(_F.id, _F.attributes, _F.version, _F.consent).where(_F.population == bindparam("population"))


class Populations:
    """The populations of all tenants."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def add(self, population: Population) -> None:
        """Make a population. Raises StoreConflictError where its tenant has one of that name."""
        if not await self._on.rows(_ADD, {**asdict(population), "schema": dict(population.schema), "numbers": 0}):
            raise StoreConflictError(f"The population {population.name!r}")

    async def get(self, population: str) -> Population | None:
        """Return a population by its id."""
        row = await first(self._on, _BY_ID, {"id": population})
        return None if row is None else Population(*row)

    async def named(self, tenant: str, name: str) -> Population | None:
        """Return a tenant's population by its name."""
        row = await first(self._on, _BY_NAME, {"tenant": tenant, "name": name})
        return None if row is None else Population(*row)

    async def of(self, tenant: str) -> list[Population]:
        """Return a tenant's populations, by name."""
        return [Population(*row) for row in await self._on.rows(_OF, {"tenant": tenant})]

    async def change(self, population: Population) -> None:
        """Write a population anew."""
        values = {
            "which": population.id,
            "whose": population.tenant,
            "name": population.name,
            "admission": population.admission,
            "schema": dict(population.schema),
            "minimum_version": population.minimum_version,
        }
        if not await self._on.run(_CHANGE, values):
            raise StoreConflictError(f"The population {population.name!r}")


async def next_numbers(connection: Connection, population: str, count: int = 1) -> tuple[int, str]:
    """Give the next numbers of a population: return the first of them, and the tenant. Others wait till the commit."""
    row = await first(connection, _NEXT, {"which": population, "more": count})
    if row is None:
        raise LookupError(f"there is no population {population}")
    return row[0] - count, row[1]


async def size_of(connection: Connection, population: str) -> int:
    """Return how many numbers a population has given."""
    row = await first(connection, _SIZE, {"id": population})
    return 0 if row is None else int(row[0])


async def profile_of(
    connection: Connection, population: str, attributes: Mapping[str, Any], version: str, *, consent: bool
) -> int:
    """Return the profile with these values, made where it is new."""
    told = {"attributes": dict(attributes), "version": version, "consent": consent}
    key = {"population": population, "digest": json_text.digest(told)}
    row = await first(connection, _PROFILE, key)
    if row is None:
        row = await first(connection, _ADD_PROFILE, {**key, **told}) or await first(connection, _PROFILE, key)
    if row is None:
        raise LookupError(f"a profile of {population} was made and is not there")
    return int(row[0])


async def profiles_of(connection: Connection, population: str) -> dict[int, dict[str, Any]]:
    """Return the profiles of a population: id -> attributes, version, consent."""
    rows = await connection.rows(_PROFILES, {"population": population})
    return {row[0]: {"attributes": row[1], "version": row[2], "consent": row[3]} for row in rows}
