"""Exports of the ledger: JSON lines that a third party can verify without Hansa, and what they say job by job.

Each scope begins with a line that describes it and says how to verify; a line for each row follows, in order.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hansa.core.ledger import ReservationState, SpendKey
from hansa.governance.chain import FORMAT, content_of, key_from_mapping
from hansa.governance.verification import Verified, changed, verify
from hansa.privacy.event import ORDERS, Event
from hansa.privacy.event_json import event_from_mapping
from hansa.privacy.running import ACCOUNTANT, Running, nothing
from hansa.store.records import LedgerRow

_HOW: Final = (
    "hash is the SHA-256 of the canonical JSON (RFC 8785) of row; row.previous is the hash of the row before, 64 zeros "
    "for the first; the last hash is head. epsilon_charged is min over orders a of R(a) + log(1 - 1/a) - log(delta a) "
    "/ (a - 1), with R(a) the sum of the Renyi divergences of the events of all reserve rows without a void row. "
    "`hansa ledger verify --file` does all of it."
)
_STATES: Final[Mapping[str, ReservationState]] = {"freeze": "frozen", "commit": "committed", "void": "void"}


def exported(row: LedgerRow) -> dict[str, Any]:
    """Return a row as exports hold it: what it says, and its hash."""
    return {"hash": row.hash, "row": content_of(row)}


def lines_of(scope: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of one scope: ``scope`` is as the operator API tells it, ``rows`` are all that it counts."""
    description = {
        "hansa_ledger": FORMAT,
        "scope": dict(scope),
        "rows": scope["rows"],
        "head": scope["head"],
        "accountant": ACCOUNTANT,
        "orders": ORDERS.tolist(),
        "how": _HOW,
    }
    yield json.dumps(description, allow_nan=False)
    for row in rows:
        yield json.dumps(dict(row), allow_nan=False)


def verify_lines(lines: Iterable[str], *, known: str | None = None) -> list[Verified]:
    """Return what each scope of an export says, all verified.

    ``known`` is the hash of a row that one of the scopes must have. Raises HansaError HANSA-LEDGER-CHANGED.
    """
    scopes: list[tuple[dict[str, Any], list[Mapping[str, Any]]]] = []
    for number, line in enumerate(lines, 1):
        try:
            told = json.loads(line)
            if "hansa_ledger" in told:
                scopes.append((told, []))
            else:
                scopes[-1][1].append({"hash": told["hash"], "row": told["row"]})
        except (ValueError, KeyError, TypeError, IndexError):
            raise changed(f"Line {number} of the export cannot be read.") from None
    if not scopes:
        raise changed("The export is empty.")
    wanted = [known if any(row["hash"] == known for row in rows) else None for _, rows in scopes]
    if known is not None and not any(wanted):
        wanted = [known] * len(scopes)
    return [
        verify_scope(told.get("scope"), rows, known=each) for (told, rows), each in zip(scopes, wanted, strict=True)
    ]


def verify_scope(scope: Any, rows: Iterable[Mapping[str, Any]], *, known: str | None = None) -> Verified:
    """Return what a chain says, compared with what is told of its scope: rows, head, and what is charged."""
    try:
        count, head, told = int(scope["rows"]), str(scope["head"]), float(scope["epsilon_charged"])
    except (KeyError, TypeError, ValueError):
        raise changed("The description of the scope cannot be read.") from None
    verified = verify(rows, count=count, head=head, known=known)
    same = scope.get("accountant") != ACCOUNTANT or math.isclose(told, verified.charged, rel_tol=1e-9, abs_tol=1e-9)
    if not same:
        raise changed(f"Row {count}: {told:.6f} is said to be charged; the events cost {verified.charged:.6f}.")
    return verified


@dataclass(frozen=True, kw_only=True)
class Spent:
    """One reservation: what it costs by itself, and its scope with it: charged epsilon at the scope's delta.

    ``noise_rows`` counts the released rows of a run of correlated noise, which cost nothing more.
    """

    key: SpendKey
    job: str
    state: ReservationState
    event: Event
    mechanism: str
    alone: float
    charged: float
    cohort: int | None
    at: float
    noise_rows: int = 0


@dataclass(frozen=True, kw_only=True)
class RunSpent:
    """What one run cost by itself, after each of its rows that changed it: (row, epsilon).

    Costs of several runs do not add up to that of all.
    """

    run: str
    job: str
    states: Mapping[ReservationState, int]
    course: Sequence[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What a scope spent: each reservation in order, each run, and what is charged after each row."""

    spent: Sequence[Spent]
    runs: Sequence[RunSpent]
    course: Sequence[tuple[int, float]]


def statement_of(rows: Iterable[Mapping[str, Any]]) -> Statement:
    """Return what the rows of a chain say, run by run and round by round."""
    spent: dict[str, Spent] = {}
    runs: dict[str, tuple[Running, list[tuple[int, float]]]] = {}
    course: list[tuple[int, float]] = []
    for row in (each["row"] for each in rows):
        course.append((row["number"], row["epsilon_charged"]))
        if row["kind"] == "limit":
            continue
        key = key_from_mapping(row["key"])
        if row["kind"] == "row":
            spent[key.run] = replace(spent[key.run], noise_rows=spent[key.run].noise_rows + 1)
        elif row["kind"] == "reserve":
            spent[str(key)] = _reserved(key, row)
        else:
            before = spent[str(key)]
            spent[str(key)] = replace(
                before, state=_STATES[row["kind"]], cohort=row.get("cohort_actual", before.cohort)
            )
        if row["kind"] in ("reserve", "void"):
            account, points = runs.get(key.run, (nothing(), []))
            account = account.plus(spent[str(key)].event, row["adjacency"], 1 if row["kind"] == "reserve" else -1)
            points.append((row["number"], account.epsilon(row["delta"])))
            runs[key.run] = (account, points)
    return Statement(
        spent=tuple(spent.values()),
        runs=tuple(_run(run, points, spent.values()) for run, (_, points) in runs.items()),
        course=tuple(course),
    )


def _reserved(key: SpendKey, row: Mapping[str, Any]) -> Spent:
    event = event_from_mapping(row["release"]["event"])
    return Spent(
        key=key,
        job=row["job"],
        state="reserved",
        event=event,
        mechanism=row["release"]["mechanism"],
        alone=nothing().plus(event, row["adjacency"]).epsilon(row["delta"]),
        charged=row["epsilon_charged"],
        cohort=None,
        at=row["at"],
    )


def _run(run: str, points: Sequence[tuple[int, float]], spent: Iterable[Spent]) -> RunSpent:
    own = [each for each in spent if each.key.run == run]
    states = Counter(each.state for each in own)
    return RunSpent(run=run, job=own[0].job, states=states, course=tuple(points))
