"""What the operator pages show, read from the store of the caller's tenant."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request

from hansa.reporting.charts import Chart
from hansa.reporting.figures import Figures, metric_text, metric_title, seconds_text
from hansa.reporting.report import curves
from hansa.server.operator_bodies import RoundBody
from hansa.server.operator_runs import owned, round_body
from hansa.server.operator_tenant import shown_to
from hansa.server.submissions import not_found
from hansa.store.records import Client, ClientState, Event, Job, Population, Round, Run, Token
from hansa.store.store import Rows

if TYPE_CHECKING:
    from hansa.server.services import Services

_LISTED: Final = 200
_DRAWN: Final = 20_000
"""The most rounds whose numbers are drawn."""
_FUNNELS: Final = 25
_EVENTS: Final = 30
_LATELY: Final = 3600.0
_REFRESH: Final = 5
"""Seconds after which the page of a run that goes on is loaded anew."""


@dataclass(frozen=True)
class Line:
    """One run in a list."""

    id: str
    name: str
    population: str
    state: str
    round: int
    rounds: int
    started: str
    took: str
    why: str

    @property
    def share(self) -> float:
        """Return how much of its rounds is done, in per cent."""
        return round(100 * self.round / max(1, self.rounds), 1)


@dataclass(frozen=True)
class Funnel:
    """One attempt of a round: how many at each step, and what share of those who were picked."""

    body: RoundBody
    opened: str
    took: str

    @property
    def steps(self) -> list[tuple[str, int, float]]:
        """Return (name, clients, per cent of the picked) for each step."""
        fates, picked = self.body.funnel.fates, self.body.funnel.picked
        reported = fates.get("reported", 0) + fates.get("included", 0)
        named = (("picked", picked), ("reported", reported), ("included", self.body.funnel.included))
        return [(name, count, round(100 * count / max(1, picked), 1)) for name, count in named]

    @property
    def others(self) -> str:
        """Return what became of the others, as words."""
        fates = self.body.funnel.fates
        words = {"late": "late", "lost": "lost", "declined": "declined", "refused": "refused", "open": "not yet heard"}
        return ", ".join(f"{fates[fate]} {words[fate]}" for fate in words if fates.get(fate))


async def runs(services: Services, token: Token, _request: Request) -> tuple[str, dict[str, Any]]:
    """Return the page of all runs."""
    now = services.clock.now()
    async with services.store.reading() as rows:
        names = {each.id: each.name for each in await rows.populations.of(token.tenant)}
        found = await rows.runs.of(token.tenant, state=None, limit=_LISTED)
        lines = [_line(run, await _job(rows, run), names.get(run.population, "?"), now) for run in found]
    states = Counter(line.state for line in lines)
    return "runs.html", {"title": "Runs", "runs": lines, "states": states, "most": _LISTED}


async def run(services: Services, token: Token, request: Request) -> tuple[str, dict[str, Any]]:
    """Return the page of one run: its curves, its rounds with who took part, what happened."""
    now = services.clock.now()
    async with services.store.reading() as rows:
        found = await owned(rows, token, request.path_params["run"])
        job = await _job(rows, found)
        population = await rows.populations.get(found.population)
        rounds = await rows.rounds.of(found.id, _DRAWN)
        funnels = [_funnel(await round_body(rows, each), now) for each in rounds[:_FUNNELS]]
        events = sorted(await rows.events.of_run(found.id, _EVENTS), key=lambda event: -event.number)
    line = _line(found, job, population.name if population else "?", now)
    return "run.html", {
        "title": job.name,
        "run": line,
        "facts": _facts(found, job, line),
        "curves": _curves(job, rounds),
        "results": _results(rounds),
        "funnels": funnels,
        "rounds": len(rounds),
        "events": [(_when(event.at), event.kind, _detail(shown_to(token, event))) for event in events],
        "refresh": _REFRESH if found.state == "running" else None,
    }


@dataclass(frozen=True)
class Crowd:
    """The clients of one population: how many, in which states and versions, and who they are."""

    name: str
    admission: str
    total: int
    versions: list[str]
    table: list[tuple[ClientState, list[int]]]
    """State -> how many of each version."""
    lately: int
    """How many have called this replica in the last hour."""
    listed: list[tuple[Client, str, str]]
    """The first clients, with when they last called this replica and how long ago; empty: not since its start."""


async def clients(services: Services, token: Token, _request: Request) -> tuple[str, dict[str, Any]]:
    """Return the page of clients, for each population."""
    async with services.store.reading() as rows:
        found = [await _crowd(services, rows, each) for each in await rows.populations.of(token.tenant)]
    return "clients.html", {"title": "Clients", "populations": found, "most": _LISTED}


async def _crowd(services: Services, rows: Rows, population: Population) -> Crowd:
    now, callers = services.clock.now(), services.board.callers
    counts = await rows.clients.counts(population.id)
    versions = sorted({version for _, version in counts})
    states = [state for state in _STATES if any(counts.get((state, version)) for version in versions)]
    listed = []
    for client in await rows.clients.page(population.id, limit=_LISTED):
        seen = callers.last(population.id, client.number)
        told = ("", "") if seen is None else (_when(seen), seconds_text(max(0.0, now - seen)))
        listed.append((client, *told))
    return Crowd(
        name=population.name,
        admission=population.admission,
        total=sum(counts.values()),
        versions=versions,
        table=[(state, [counts.get((state, version), 0) for version in versions]) for state in states],
        lately=len(callers.recent(population.id, now - _LATELY)),
        listed=listed,
    )


_STATES: Final[tuple[ClientState, ...]] = ("invited", "enrolled", "active", "suspended", "retired")


async def _job(rows: Rows, run: Run) -> Job:
    found = await rows.jobs.get(run.job)
    if found is None:
        raise not_found(f"run {run.id!r}")
    return found


def _line(run: Run, job: Job, population: str, now: float) -> Line:
    return Line(
        id=run.id,
        name=job.name,
        population=population,
        state=run.state,
        round=run.round,
        rounds=int(job.plan["rounds"]),
        started=_when(run.started_at),
        took=seconds_text((run.ended_at or now) - run.started_at),
        why=run.why or "",
    )


def _facts(run: Run, job: Job, line: Line) -> list[tuple[str, str]]:
    facts = [
        ("Population", line.population),
        ("Eligible", job.eligibility or "every client that consents"),
        ("Started", line.started),
        ("Took so far" if run.ended_at is None else "Took", line.took),
        ("Priority", str(run.priority)),
        ("Submitted by", job.submitted_by),
        ("Model", str(job.plan.get("model", {}).get("factory", ""))),
    ]
    return [*facts, ("Because", line.why)] if line.why else facts


def _curves(job: Job, rounds: list[Round]) -> list[list[Chart]]:
    """Return the charts of a run's closed rounds, as the report of a simulation draws them."""
    events = [each.report for each in rounds if each.state == "closed" and each.report is not None]
    ordered = sorted(events, key=lambda event: event.get("round", 0))
    return curves(Figures({}, tuple(ordered), job.plan))


def _results(rounds: list[Round]) -> list[tuple[str, str]]:
    """Return the metrics of the newest evaluation, over all examples of those who took part."""
    newest = next((each for each in rounds if each.id.kind == "evaluation" and each.state == "closed"), None)
    if newest is None or newest.report is None:
        return []
    federated = newest.report.get("federated") or {}
    return [(metric_title(name), metric_text(row.get("overall"))) for name, row in federated.items()]


def _funnel(body: RoundBody, now: float) -> Funnel:
    return Funnel(body, _when(body.opened_at), seconds_text(max(0.0, (body.closed_at or now) - body.opened_at)))


def _detail(event: Event) -> str:
    told = {**({"client": event.client} if event.client else {}), **event.detail}
    return ", ".join(f"{key} {value}" for key, value in told.items() if value not in ("", None))


def _when(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
