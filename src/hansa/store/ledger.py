"""The rows of the privacy ledger: scopes, which one at a time may change, and chains that only grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from sqlalchemy import ColumnElement, bindparam, exists, func, insert, select, update

from hansa.core.errors import StoreConflictError
from hansa.store import tables
from hansa.store.connections import Connection, first
from hansa.store.dialects import insert_once
from hansa.store.records import LedgerRow, LedgerScope

_S: Final = tables.ledger_scopes.c
_ALL: Final = select(
    _S.id,
    _S.tenant,
    _S.name,
    _S.unit,
    _S.adjacency,
    _S.delta,
    _S.epsilon_limit,
    _S.rows,
    _S.head,
    _S.accountant,
    _S.spent,
    _S.restored_at,
    _S.restored_row,
)
_OF: Final = _ALL.where(_S.tenant == bindparam("tenant")).order_by(_S.name)
_BY_ID: Final = _ALL.where(_S.id == bindparam("id")).with_for_update()
_NAMED: Final = _ALL.where(_S.tenant == bindparam("tenant"), _S.name == bindparam("name"))
_ADD: Final = insert_once(tables.ledger_scopes, returning=_S.id)
_CHANGE: Final = (
    update(tables.ledger_scopes)
    .where(_S.id == bindparam("which"), _S.rows == bindparam("read"))
    .values(
        epsilon_limit=bindparam("epsilon_limit"),
        rows=bindparam("count"),
        head=bindparam("head"),
        accountant=bindparam("accountant"),
        spent=bindparam("spent"),
        restored_at=bindparam("restored_at"),
        restored_row=bindparam("restored_row"),
    )
)
_RESTORED: Final = update(tables.ledger_scopes).values(restored_at=bindparam("at"))

_P: Final = tables.ledger_populations.c
_JOIN: Final = insert_once(tables.ledger_populations, returning=_P.population)
_OF_POPULATION: Final = _ALL.join(tables.ledger_populations, _P.scope == _S.id).where(
    _P.population == bindparam("population"), _S.tenant == bindparam("tenant")
)
_POPULATIONS: Final = (
    select(tables.populations.c.name)
    .join(tables.ledger_populations, _P.population == tables.populations.c.id)
    .where(_P.scope == bindparam("scope"))
    .order_by(tables.populations.c.name)
)

_R: Final = tables.ledger_rows.c
_ROWS: Final = select(_R.scope, _R.number, _R.kind, _R.key, _R.run, _R.noise_row, _R.event, _R.content, _R.hash)
_APPEND: Final = insert(tables.ledger_rows)
_OF_KEY: Final = _ROWS.where(_R.key == bindparam("of_key"), _R.kind != "row").order_by(_R.number)
_ROW_OF_NOISE: Final = _ROWS.where(_R.run == bindparam("of_run"), _R.noise_row == bindparam("of_row"))
_ANY_NOISE: Final = _ROWS.where(_R.run == bindparam("of_run"), _R.noise_row.is_not(None)).limit(1)
_AFTER: Final = (
    _ROWS.where(_R.scope == bindparam("of_scope"), _R.number > bindparam("after"))
    .order_by(_R.number)
    .limit(bindparam("count"))
)


def _ended(kind: str) -> ColumnElement[bool]:
    ends = tables.ledger_rows.alias(kind)
    return exists().where(ends.c.key == _R.key, ends.c.kind == kind)


_EVENTS: Final = (
    select(_R.event, func.count())
    .where(_R.scope == bindparam("of_scope"), _R.kind == "reserve", ~_ended("void"))
    .group_by(_R.event)
    .order_by(_R.event)
)
_COMMITTED: Final = _EVENTS.where(_ended("commit"))


class LedgerRows:
    """The scopes and chains of all tenants."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def add(self, scope: LedgerScope) -> None:
        """Make a scope. Raises StoreConflictError where its tenant has one of that name."""
        if not await self._on.rows(_ADD, asdict(scope)):
            raise StoreConflictError(f"The scope {scope.name!r}")

    async def of(self, tenant: str) -> list[LedgerScope]:
        """Return a tenant's scopes, by name."""
        return [LedgerScope(*row) for row in await self._on.rows(_OF, {"tenant": tenant})]

    async def named(self, tenant: str, name: str, *, for_change: bool = False) -> LedgerScope | None:
        """Return a tenant's scope by its name; ``for_change``: others wait till this transaction ends."""
        statement = _NAMED.with_for_update() if for_change else _NAMED
        row = await first(self._on, statement, {"tenant": tenant, "name": name})
        return None if row is None else LedgerScope(*row)

    async def locked(self, scope: str) -> LedgerScope:
        """Return a scope by its id; others wait till this transaction ends."""
        row = await first(self._on, _BY_ID, {"id": scope})
        if row is None:
            raise LookupError("a row of the ledger has a scope")
        return LedgerScope(*row)

    async def of_population(self, tenant: str, population: str, *, for_change: bool = False) -> LedgerScope | None:
        """Return the scope that a population spends from, or None where it has none."""
        statement = _OF_POPULATION.with_for_update(of=tables.ledger_scopes) if for_change else _OF_POPULATION
        row = await first(self._on, statement, {"tenant": tenant, "population": population})
        return None if row is None else LedgerScope(*row)

    async def join(self, scope: LedgerScope, population: str) -> bool:
        """Let a population of the tenant spend from a scope; return False where it has a scope already."""
        values = {"population": population, "tenant": scope.tenant, "scope": scope.id}
        return bool(await self._on.rows(_JOIN, values))

    async def populations(self, scope: str) -> list[str]:
        """Return the names of the populations that spend from a scope."""
        return [row[0] for row in await self._on.rows(_POPULATIONS, {"scope": scope})]

    async def append(self, scope: LedgerScope, row: LedgerRow, *, read: int) -> None:
        """Append a row, and write the scope as it is with it; ``read`` is how many rows it had before.

        Raises StoreConflictError where somebody else has appended one, or a unique constraint is in the way.
        """
        values = {
            "which": scope.id,
            "read": read,
            "epsilon_limit": scope.epsilon_limit,
            "count": scope.rows,
            "head": scope.head,
            "accountant": scope.accountant,
            "spent": scope.spent,
            "restored_at": scope.restored_at,
            "restored_row": scope.restored_row,
        }
        if not await self._on.run(_CHANGE, values):
            raise StoreConflictError(f"The scope {scope.name!r}")
        await self._on.run(_APPEND, asdict(row))

    async def of_key(self, key: str) -> list[LedgerRow]:
        """Return the rows of one reservation, in order: at most one of each kind."""
        return [LedgerRow(*row) for row in await self._on.rows(_OF_KEY, {"of_key": key})]

    async def of_noise(self, run: str, noise_row: int | None = None) -> LedgerRow | None:
        """Return the row that released a run's row of correlated noise, or any such row; None where there is none."""
        if noise_row is None:
            row = await first(self._on, _ANY_NOISE, {"of_run": run})
        else:
            row = await first(self._on, _ROW_OF_NOISE, {"of_run": run, "of_row": noise_row})
        return None if row is None else LedgerRow(*row)

    async def after(self, scope: str, number: int, limit: int) -> list[LedgerRow]:
        """Return the rows of a chain after a number, in order."""
        values = {"of_scope": scope, "after": number, "count": limit}
        return [LedgerRow(*row) for row in await self._on.rows(_AFTER, values)]

    async def events(self, scope: str, *, committed: bool = False) -> Sequence[tuple[str, int]]:
        """Return the distinct events that a scope is charged for, as JSON, each with how often."""
        rows = await self._on.rows(_COMMITTED if committed else _EVENTS, {"of_scope": scope}, long=True)
        return [(row[0], int(row[1])) for row in rows]

    async def restored(self, at: float) -> None:
        """Let no scope spend until its limit is set anew. For the server itself, after a restore."""
        await self._on.run(_RESTORED, {"at": at})
