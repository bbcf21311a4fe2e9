"""Rounds and who is assigned to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import and_, bindparam, func, insert, select, update

from hansa.core.errors import StoreConflictError
from hansa.store import tables
from hansa.store.connections import AnyRow, Connection, first
from hansa.store.dialects import among, insert_once
from hansa.store.records import Assigned, Fate, Kind, Round, RoundKey

_R: Final = tables.rounds.c
_A: Final = tables.assigned.c
_ADD: Final = insert_once(tables.rounds, returning=_R.run)
_ASSIGN: Final = insert(tables.assigned)
_CHANGED: Final = ("state", "model", "deadline", "key", "notes", "closed_at", "report")
_COLUMNS: Final = (
    _R.run,
    _R.kind,
    _R.round,
    _R.attempt,
    _R.state,
    _R.version,
    _R.model,
    _R.cohort_size,
    _R.population,
    _R.opened_at,
    _R.deadline,
    _R.key,
    _R.notes,
    _R.closed_at,
    _R.report,
)
_ALL: Final = select(*_COLUMNS)
_OPEN: Final = _R.state.not_in(["closed", "abandoned"])
_THIS: Final = and_(
    _R.run == bindparam("of_run"),
    _R.kind == bindparam("of_kind"),
    _R.round == bindparam("of_round"),
    _R.attempt == bindparam("of_attempt"),
)
_BY_ID: Final = _ALL.where(_THIS)
_SHARED: Final = _BY_ID.with_for_update(read=True)
_OPEN_OF: Final = _ALL.where(_R.run == bindparam("run"), _OPEN).order_by(_R.opened_at, _R.attempt)
_ALL_OPEN: Final = _ALL.where(_OPEN).order_by(_R.opened_at, _R.run, _R.attempt)
_OF: Final = _ALL.where(_R.run == bindparam("run")).order_by(_R.opened_at.desc(), _R.attempt.desc())
_OF_LIMITED: Final = _OF.limit(bindparam("count"))
_LAST: Final = (
    _ALL.where(_R.run == bindparam("run"), _R.kind == bindparam("kind"), _R.round == bindparam("round"))
    .order_by(_R.attempt.desc())
    .limit(1)
)
_CHANGE: Final = (
    update(tables.rounds)
    .where(_THIS, _R.version == bindparam("read"))
    .values(version=_R.version + 1, **{name: bindparam(name) for name in _CHANGED})
)

_THESE: Final = and_(
    _A.run == bindparam("of_run"),
    _A.kind == bindparam("of_kind"),
    _A.round == bindparam("of_round"),
    _A.attempt == bindparam("of_attempt"),
)
_ASSIGNED_TO: Final = select(_A.client, _A.number, _A.position, _A.fate, _A.notes).where(_THESE)
_ASSIGNED: Final = _ASSIGNED_TO.order_by(_A.position)
_ASSIGNMENT: Final = _ASSIGNED_TO.where(_A.client == bindparam("of_client"))
_LOCKED_ASSIGNMENTS: Final = _ASSIGNED_TO.where(among(_A.client, "of_clients")).order_by(_A.client).with_for_update()
_COUNT_FATES: Final = select(_A.fate, func.count()).where(_THESE).group_by(_A.fate)
_LOCKED_ASSIGNMENT: Final = _ASSIGNMENT.with_for_update()
_SET_FATE: Final = (
    update(tables.assigned).where(_THESE, _A.client == bindparam("of_client")).values(fate=bindparam("fate"))
)
_SET_FATES: Final = update(tables.assigned).where(_THESE, among(_A.client, "of_clients")).values(fate=bindparam("fate"))
_OPEN_ASSIGNMENTS: Final = (
    select(*_COLUMNS, _A.client, _A.number, _A.position, _A.fate, _A.notes)
    .join(
        tables.assigned,
        and_(_A.run == _R.run, _A.kind == _R.kind, _A.round == _R.round, _A.attempt == _R.attempt),
    )
    .where(_R.state.in_(["opening", "collecting"]))
    .order_by(_R.opened_at, _R.run, _R.kind, _R.round, _R.attempt, _A.position)
)
_OPEN_PARTS: Final = (
    select(_A.run, _A.kind, _A.round, _A.attempt)
    .join(tables.rounds, and_(_A.run == _R.run, _A.kind == _R.kind, _A.round == _R.round, _A.attempt == _R.attempt))
    .where(_R.state.in_(["opening", "collecting"]), _A.client == bindparam("client"), _A.fate.is_(None))
    .order_by(_A.run, _A.kind, _A.round, _A.attempt)
)


def key_values(key: RoundKey) -> dict[str, Any]:
    """Return a key as the parameters that name a round."""
    return {"of_run": key.run, "of_kind": key.kind, "of_round": key.round, "of_attempt": key.attempt}


def _round(row: AnyRow) -> Round:
    return Round(RoundKey(*row[:4]), *row[4:15])


class Rounds:
    """The rounds of all runs."""

    def __init__(self, connection: Connection) -> None:
        self._on = connection

    async def add(self, round_: Round, assigned: Sequence[Assigned]) -> None:
        """Keep a round and its cohort. Raises StoreConflictError where that attempt is there already."""
        key = {"run": round_.id.run, "kind": round_.id.kind, "round": round_.id.round, "attempt": round_.id.attempt}
        if not await self._on.rows(_ADD, {**key, **_values(round_)}):
            raise StoreConflictError(f"Attempt {round_.id.attempt} of {round_.id.kind} round {round_.id.round}")
        await self.assign(round_.id, assigned)

    async def assign(self, to: RoundKey, assigned: Sequence[Assigned]) -> None:
        """Assign more clients to a round: each once, or the database refuses."""
        key = {"run": to.run, "kind": to.kind, "round": to.round, "attempt": to.attempt}
        rows = [
            {
                **key,
                "client": each.client,
                "number": each.number,
                "position": each.position,
                "fate": each.fate,
                "notes": dict(each.notes),
            }
            for each in assigned
        ]
        await self._on.run_many(_ASSIGN, rows)

    async def get(self, key: RoundKey, *, for_report: bool = False) -> Round | None:
        """Return a round; ``for_report``: it is not changed before this transaction ends, others may read it so too."""
        row = await first(self._on, _SHARED if for_report else _BY_ID, key_values(key))
        return None if row is None else _round(row)

    async def open_of(self, run: str) -> list[Round]:
        """Return a run's rounds that are neither closed nor abandoned, in the order in which they were opened."""
        return [_round(row) for row in await self._on.rows(_OPEN_OF, {"run": run})]

    async def all_open(self) -> list[Round]:
        """Return the rounds of all runs that are neither closed nor abandoned. For the server itself."""
        return [_round(row) for row in await self._on.rows(_ALL_OPEN)]

    async def of(self, run: str, limit: int | None = None) -> list[Round]:
        """Return a run's rounds, the latest first."""
        if limit is None:
            return [_round(row) for row in await self._on.rows(_OF, {"run": run})]
        return [_round(row) for row in await self._on.rows(_OF_LIMITED, {"run": run, "count": limit})]

    async def change(self, round_: Round) -> Round:
        """Write a round anew; return it. Raises StoreConflictError if it was changed since it was read."""
        values = _values(round_)
        wanted = {name: values[name] for name in _CHANGED}
        if await self._on.run(_CHANGE, {**wanted, **key_values(round_.id), "read": round_.version}) != 1:
            raise StoreConflictError(f"Attempt {round_.id.attempt} of {round_.id.kind} round {round_.id.round}")
        return replace(round_, version=round_.version + 1)

    async def last_attempt(self, run: str, kind: Kind, round_: int) -> Round | None:
        """Return the last attempt of a round."""
        row = await first(self._on, _LAST, {"run": run, "kind": kind, "round": round_})
        return None if row is None else _round(row)

    async def assigned(self, key: RoundKey) -> list[Assigned]:
        """Return who is assigned to a round, in order of position."""
        return [Assigned(key, *row) for row in await self._on.rows(_ASSIGNED, key_values(key))]

    async def assignment(self, key: RoundKey, client: str, *, for_change: bool = False) -> Assigned | None:
        """Return one client's part in a round; ``for_change``: nobody else decides about it meanwhile."""
        chosen = _LOCKED_ASSIGNMENT if for_change else _ASSIGNMENT
        row = await first(self._on, chosen, {**key_values(key), "of_client": client})
        return None if row is None else Assigned(key, *row)

    async def assignments(self, key: RoundKey, clients: Collection[str]) -> dict[str, Assigned]:
        """Return the parts in a round of those clients that have one; nobody else decides about them meanwhile."""
        found = await self._on.rows(_LOCKED_ASSIGNMENTS, {**key_values(key), "of_clients": sorted(clients)})
        return {row[0]: Assigned(key, *row) for row in found}

    async def count_fates(self, key: RoundKey) -> dict[Fate | None, int]:
        """Return how many clients of a round came to which end; None: to none yet."""
        return {fate: count for fate, count in await self._on.rows(_COUNT_FATES, key_values(key))}  # noqa: C416 - rows

    async def fate(self, key: RoundKey, client: str) -> Fate | None:
        """Return what became of a client's part in a round; None also where it had none."""
        assignment = await self.assignment(key, client)
        return None if assignment is None else assignment.fate

    async def set_fates(self, key: RoundKey, fates: Mapping[str, Fate]) -> None:
        """Write what became of some clients' parts in a round."""
        of: dict[Fate, list[str]] = {}
        for client, fate in fates.items():
            of.setdefault(fate, []).append(client)
        for fate, clients in of.items():
            values = {**key_values(key), "fate": fate}
            if len(clients) == 1:
                await self._on.run(_SET_FATE, {**values, "of_client": clients[0]})
            else:
                await self._on.run(_SET_FATES, {**values, "of_clients": sorted(clients)})

    async def open_parts(self, client: str) -> list[RoundKey]:
        """Return the rounds that still wait for a client's report."""
        return [RoundKey(*row) for row in await self._on.rows(_OPEN_PARTS, {"client": client})]

    async def open_assignments(self) -> list[tuple[Round, Assigned]]:
        """Return who is assigned to the rounds that take reports, of all runs. For the server itself."""
        found = []
        known: dict[RoundKey, Round] = {}
        for row in await self._on.rows(_OPEN_ASSIGNMENTS):
            key = RoundKey(*row[:4])
            round_ = known.get(key) or known.setdefault(key, _round(row))
            found.append((round_, Assigned(round_.id, *row[15:])))
        return found


def _values(round_: Round) -> dict[str, Any]:
    """Return the columns of a round, its key apart."""
    return {
        "state": round_.state,
        "version": round_.version,
        "model": round_.model,
        "cohort_size": round_.cohort_size,
        "population": round_.population,
        "opened_at": round_.opened_at,
        "deadline": round_.deadline,
        "key": round_.key,
        "notes": dict(round_.notes),
        "closed_at": round_.closed_at,
        "report": None if round_.report is None else dict(round_.report),
    }
