"""Whether, after a federation was tortured, every acknowledged report is counted once, or its round abandoned.

Everything is read from what the processes left on disk: the server's database, and the agents' own folders.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from hansa.algorithms.fold import collector
from hansa.algorithms.rounds import client_update, close_round, receive
from hansa.core.layout import Int64s
from hansa.core.nouns import Assignment, ServerState
from hansa.simulation.preparation import Prepared, federated_scaling
from hansa.store.records import Assigned, Event, Report, Round, RoundKey, Run
from hansa.store.store import Store
from hansa.training.kernels import PLAIN, use
from hansa.wire.models import model_bytes, sha256

_MANY: Final = 1_000_000


@dataclass(frozen=True)
class Books:
    """One run as the database has it: its rounds from the first, and for each who was asked and who reported."""

    run: Run
    rounds: tuple[Round, ...]
    assigned: Mapping[RoundKey, tuple[Assigned, ...]]
    reports: Mapping[RoundKey, tuple[Report, ...]]
    events: tuple[Event, ...]

    def closed(self, kind: str) -> list[Round]:
        """Return the closed rounds of a kind, in their order."""
        return sorted(
            (each for each in self.rounds if each.id.kind == kind and each.state == "closed"),
            key=lambda each: each.id.round,
        )

    def counted(self, key: RoundKey) -> list[Assigned]:
        """Return who is included in a round, in the order of the cohort."""
        return [each for each in self.assigned[key] if each.fate == "included"]


async def read_books(url: str) -> dict[str, Books]:
    """Return the books of all runs of a database: run -> books."""
    store = await Store.open(url, migrate=False)
    try:
        async with store.reading() as rows:
            runs = [run for each in await rows.tenants.all() for run in await rows.runs.of(each.id, limit=_MANY)]
            books = {}
            for run in runs:
                rounds = (await rows.rounds.of(run.id))[::-1]
                assigned = {each.id: tuple(await rows.rounds.assigned(each.id)) for each in rounds}
                reports = {each.id: tuple(await rows.reports.of(each.id)) for each in rounds}
                events = sorted(await rows.events.of_run(run.id, _MANY), key=lambda event: event.number)
                books[run.id] = Books(run, tuple(rounds), assigned, reports, tuple(events))
            return books
    finally:
        await store.close()


def problems(books: Books) -> Iterator[str]:
    """Yield what is wrong with a finished run by itself."""
    if books.run.state != "finished":
        yield f"the run is {books.run.state}: {books.run.why}"
    twice = Counter((each.id.kind, each.id.round) for each in books.rounds if each.state == "closed")
    yield from (f"{kind} round {number} closed {count} times" for (kind, number), count in twice.items() if count > 1)
    trained = [each.id.round for each in books.closed("training")]
    if trained != list(range(1, books.run.round + 1)):
        yield f"the model took {books.run.round} steps, and these rounds are closed: {trained}"
    told = Counter(
        (event.kind, event.detail["kind"], event.detail["round"], event.detail["attempt"])
        for event in books.events
        if event.kind.startswith("round.") and event.kind != "round.waiting"  # no step of a round
    )
    yield from (f"told {count} times: {what}" for what, count in told.items() if count > 1)
    for round_ in books.rounds:
        yield from _problems_of(books, round_, told)


def _problems_of(books: Books, round_: Round, told: Mapping[tuple[Any, ...], int]) -> Iterator[str]:
    key, name = round_.id, f"{round_.id.kind} {round_.id.round}/{round_.id.attempt}"
    if round_.state not in ("closed", "abandoned"):
        yield f"{name} is still {round_.state}"
    ends = [end for end in ("closed", "abandoned") if told.get((f"round.{end}", key.kind, key.round, key.attempt))]
    if ends != [round_.state]:
        yield f"{name} is {round_.state}, and events tell: {ends}"
    included = [each.client for each in books.counted(key)]
    reported = [each.client for each in books.reports[key]]
    if round_.state == "closed":
        if included != reported:
            yield f"{name} counted {included}, and acknowledged {reported}"
        if round_.report is not None and round_.report.get("cohort", len(included)) != len(included):
            yield f"{name} folded {round_.report['cohort']} updates, and counted {len(included)}"
    elif included:
        yield f"{name} is abandoned, and counted {included}"
    lost = [each for each in books.assigned[key] if each.fate is None]
    if lost:
        yield f"{name} has {len(lost)} assignments without a fate"


def client_problems(state: Path, books: Mapping[str, Books]) -> Iterator[str]:
    """Yield where what an agent was told is not what became of its reports."""
    identity, path = json.loads((state / "identity.json").read_text(encoding="utf-8")), state / "reports.json"
    client, name = identity["client"], identity["name"]
    for each in json.loads(path.read_text(encoding="utf-8")) if path.exists() else ():
        of, outcome = each["id"], each["outcome"]
        if of["run"] not in books:
            continue
        book, key = books[of["run"]], RoundKey(of["run"], of["kind"], of["round"], of["attempt"])
        state_of = next((round_.state for round_ in book.rounds if round_.id == key), "missing")
        report = next((report for report in book.reports.get(key, ()) if report.client == client), None)
        fate = next((one.fate for one in book.assigned.get(key, ()) if one.client == client), None)
        where = f"{name}, {of['kind']} {of['round']}/{of['attempt']}, told {outcome}: {state_of}, {fate}"
        if outcome in ("open", "included") and (report is None or report.sha256 != each["sha256"]):
            yield f"{where}, and other bytes or none were recorded"
        counted = state_of == "closed" and fate == "included"
        if (outcome == "included" and not counted) or (outcome == "open" and not counted and state_of != "abandoned"):
            yield f"{where}, and it is not counted"
        if outcome in ("late", "refused", "not-included") and counted:
            yield f"{where}, and it is counted"


def recomputed(prepared: Prepared, books: Books) -> str:
    """Return the digest of the model that follows from the rounds' cohorts; for plans that keep nothing on clients."""
    plan, state = prepared.plan, prepared.first
    with use(PLAIN):
        for round_ in books.closed("statistics"):
            state = replace(state, features=federated_scaling(prepared, _numbers(books.counted(round_.id))))
        for round_ in books.closed("training"):
            state = _step(prepared, state, _numbers(books.counted(round_.id)), round_.population)
    return sha256(model_bytes(plan, state))


def _step(prepared: Prepared, state: ServerState, numbers: Int64s, population: int) -> ServerState:
    plan = prepared.plan
    folded = collector(plan.aggregator, state.layout, len(numbers), None)
    for position, number in enumerate(numbers):
        alone = np.array([number], dtype=np.int64)
        asked = Assignment(state.round + 1, state.layout, state.model, alone, population, state.features)
        batch, _ = client_update(plan, asked, prepared.clients(alone, state.features), {}, prepared.streams)
        folded.add(receive(plan, asked, batch, prepared.streams), position)
    closed, _ = close_round(plan, state, folded.finish(plan.aggregator, population))
    return closed


def _numbers(counted: Sequence[Assigned]) -> Int64s:
    return np.array([each.number for each in counted], dtype=np.int64)
