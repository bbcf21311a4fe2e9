"""Whether, after a federation was tortured, what it released is what its ledger has charged: no less, nothing twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hansa.core.clock import SystemClock
from hansa.core.errors import HansaError
from hansa.governance.chain import key_from_mapping
from hansa.governance.ledger import StoreLedger, all_rows
from hansa.store.store import Store
from hansa.testing.audit import Books


@dataclass(frozen=True)
class Accounts:
    """The ledger of a database: what the rows of its scopes say, the models that were released, and broken chains."""

    rows: tuple[Mapping[str, Any], ...]
    released: Mapping[str, Mapping[int, str]]
    """Run -> round -> digest of its model."""
    broken: tuple[str, ...]


async def read_accounts(url: str) -> Accounts:
    """Return the ledger of all tenants of a database, each scope verified."""
    store = await Store.open(url, migrate=False)
    rows_of, broken = list[Mapping[str, Any]](), list[str]()
    released: dict[str, dict[int, str]] = {}
    try:
        async with store.reading() as rows:
            tenants = await rows.tenants.all()
            scopes = [scope for tenant in tenants for scope in await rows.ledger.of(tenant.id)]
            for scope in scopes:
                rows_of += [json.loads(row.content) for row in await all_rows(rows, scope)]
            for tenant in tenants:
                for each in await rows.releases.of(tenant.id):
                    released.setdefault(each.run, {})[each.round] = each.sha256
        for scope in scopes:
            try:
                await StoreLedger(store, scope.tenant, SystemClock()).verify(scope.name)
            except HansaError as error:
                broken.append(f"the scope {scope.name}: {error}")
    finally:
        await store.close()
    return Accounts(tuple(rows_of), released, tuple(broken))


def ledger_problems(accounts: Accounts, books: Books) -> Iterator[str]:
    """Yield what is wrong with the charges of a private run that is at its end."""
    run, released = books.run.id, accounts.released.get(books.run.id, {})
    rows = [row for row in accounts.rows if row["kind"] != "limit" and row["key"]["run"] == run]
    whole = any(str(key_from_mapping(row["key"])) == run for row in rows)
    models = [row for row in rows if row["kind"] == ("row" if whole else "commit")]
    said = Counter((row["key"]["round"], row["released"]) for row in models)
    yield from (f"round {number} is committed {count} times" for (number, _), count in said.items() if count > 1)
    if said.keys() != set(released.items()):
        yield f"released are {sorted(released.items())}, committed {sorted(said)}"
    attempts = {(each.id.round, each.id.attempt) for each in books.closed("training")}
    if {(row["key"]["round"], row["key"]["attempt"]) for row in models} != attempts:
        yield f"attempts {sorted(attempts)} closed, and the ledger has others"
    if whole:
        yield from _of_whole(rows, models)
    else:
        yield from _of_rounds(rows, {(each.id.round, each.id.attempt): each.state for each in books.rounds})


def _of_whole(rows: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what is wrong with a run that is one release."""
    kinds = Counter(row["kind"] for row in rows if row["kind"] != "row")
    if kinds != Counter(["reserve", "commit"] if models else ["reserve", "void"]):
        yield f"the run is charged by {dict(kinds)}"
    wrong = [row["key"]["round"] for row in models if row["noise_row"] != row["key"]["round"] - 1]
    yield from (f"round {number} has noise of another row" for number in wrong)


def _of_rounds(rows: Sequence[Mapping[str, Any]], states: Mapping[tuple[int, int], str]) -> Iterator[str]:
    """Yield what is wrong with a run of which each attempt of a round is charged by itself."""
    held: dict[tuple[int, int], list[str]] = {}
    for row in rows:
        held.setdefault((row["key"]["round"], row["key"]["attempt"]), []).append(row["kind"])
    for attempt, state in states.items():
        wanted = ["reserve", "commit" if state == "closed" else "void"]
        if held.pop(attempt, None) != wanted:
            yield f"attempt {attempt} is {state}, and not charged by {wanted}"
    yield from (f"attempt {attempt} is charged and was never opened" for attempt in held)
