"""Walks an exported chain: every hash, every link, and the account computed anew from the events.

It needs the rows and nothing else: no database, no server. The same code verifies a file and a server's rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hansa.core.errors import HansaError
from hansa.governance.chain import START, hash_of, key_from_mapping
from hansa.privacy.event import Event
from hansa.privacy.event_json import event_from_mapping
from hansa.privacy.running import ACCOUNTANT, Running, nothing

_CLOSE: Final = 1e-9
"""Two machines may differ by this share in a logarithm."""
_OF_SCOPE: Final = ("tenant", "scope", "scope_name", "unit", "adjacency", "delta")


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A chain that stands: its scope's name, rows, head, and the charged epsilon computed from its events.

    ``repriced`` counts rows whose charged epsilon is of another accountant than this version's, and was not compared.
    """

    scope: str
    rows: int
    head: str
    charged: float
    spent: Running
    repriced: int = 0


@dataclass
class _Walk:
    """What the rows so far say."""

    first: Mapping[str, Any] | None = None
    number: int = 0
    head: str = START
    spent: Running = field(default_factory=nothing)
    limit: float = 0.0
    repriced: int = 0
    held: dict[str, tuple[Event, set[str]]] = field(default_factory=dict)
    noise: set[tuple[str, int]] = field(default_factory=set)
    known: bool = False


def verify(
    rows: Iterable[Mapping[str, Any]], *, count: int | None = None, head: str | None = None, known: str | None = None
) -> Verified:
    """Return what a chain of ``{"hash": ..., "row": {...}}`` says, in its order.

    ``count`` and ``head`` are what the end must be; ``known`` is the hash of a row that must be in it, as told by an
    earlier export. Raises HansaError HANSA-LEDGER-CHANGED that names the first row which does not stand.
    """
    walk = _Walk(known=known is None)
    for each in rows:
        why = next(_problems(walk, each), None)
        if why is not None:
            raise changed(f"Row {walk.number + 1}: {why}")
        walk.number += 1
        walk.head = str(each["hash"])
        walk.known = walk.known or walk.head == known
    if count is not None and walk.number != count:
        raise changed(f"Row {min(walk.number, count) + 1}: {walk.number} rows are there, of {count}.")
    if head is not None and walk.head != head:
        raise changed(f"Row {walk.number}: its hash is not the head of the chain.")
    if not walk.known:
        raise changed(f"None of its {walk.number} rows has the hash {known}, which an earlier export had.")
    of = walk.first or {}
    return Verified(
        scope=str(of.get("scope_name", "")),
        rows=walk.number,
        head=walk.head,
        charged=walk.spent.epsilon(of["delta"]) if walk.first else 0.0,
        spent=walk.spent,
        repriced=walk.repriced,
    )


def _problems(walk: _Walk, each: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the next row, and take it up."""
    try:
        row, said = each["row"], each["hash"]
        if hash_of(row) != said:
            yield "its content has another hash: it was changed."
        if row["previous"] != walk.head or row["number"] != walk.number + 1:
            yield f"it is row {row['number']}, and does not follow the row before: one was removed, added or moved."
        walk.first = walk.first or row
        if any(row[name] != walk.first[name] for name in _OF_SCOPE):
            yield "it is of another scope, unit, adjacency or delta."
        yield from _account_problems(walk, row)
    except HansaError as error:
        yield str(error)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield f"it cannot be read ({type(error).__name__})."


def _account_problems(walk: _Walk, row: Mapping[str, Any]) -> Iterator[str]:
    kind, adjacency = row["kind"], row["adjacency"]
    if kind == "limit":
        walk.limit = row["epsilon_limit"]
    elif kind == "reserve":
        key, event = str(key_from_mapping(row["key"])), event_from_mapping(row["release"]["event"])
        if key in walk.held:
            yield f"{key} was reserved before."
        walk.held[key] = (event, set())
        walk.spent = walk.spent.plus(event, adjacency)
    else:
        yield from _later_problems(walk, row)
    if row["epsilon_limit"] != walk.limit:
        yield "its limit is not the one that was set last."
    if row["accountant"]["name"] != ACCOUNTANT:
        walk.repriced += 1
        return
    charged = walk.spent.epsilon(row["delta"])
    if not math.isclose(row["epsilon_charged"], charged, rel_tol=_CLOSE, abs_tol=_CLOSE):
        yield f"it says that epsilon {row['epsilon_charged']:.6f} is charged; its events cost {charged:.6f}."
    if kind == "reserve" and charged > walk.limit * (1 + _CLOSE):
        yield f"it overdraws the limit of {walk.limit:g}: {charged:.6f} is charged."


def _later_problems(walk: _Walk, row: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a row about a reservation that was made before."""
    kind, key = row["kind"], key_from_mapping(row["key"])
    if kind == "row":
        noise = (key.run, row["noise_row"])
        if noise in walk.noise:
            yield f"row {noise[1]} of the noise of {key.run} was released before."
        if "commit" not in walk.held.get(key.run, (None, set()))[1]:
            yield f"{key.run} was not charged for its noise."
        walk.noise.add(noise)
        return
    if str(key) not in walk.held:
        yield f"{key} was never reserved."
    event, kinds = walk.held[str(key)]
    before = {
        "freeze": ("freeze", "commit", "void"),
        "commit": ("commit", "void"),
        "void": ("freeze", "commit", "void"),
    }
    late = next((each for each in before[kind] if each in kinds), None)
    if late is not None:
        yield f"a {kind} after a {late}."
    kinds.add(kind)
    if kind == "void":
        walk.spent = walk.spent.plus(event, row["adjacency"], -1)


def changed(found: str) -> HansaError:
    """Return the error of a chain that does not stand."""
    return HansaError(
        "HANSA-LEDGER-CHANGED",
        rule="Each row of a ledger has the hash of the row before, and says what its events cost.",
        found=found,
        action="Compare with an earlier export: rows before this one stand; trust no number after it.",
    )
