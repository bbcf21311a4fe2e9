"""A campaign of chaos: a federation whose processes are killed at named instants, one after another, and the audit.

Four hospitals' agents and a server, or several on PostgreSQL, and decryptors or an authority where a plan names some:
whoever comes to its kill point of :mod:`hansa.core.killpoints` is killed and started again, on a bad network if wanted,
until every point had its turn.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from hansa.algorithms.plan import Plan
from hansa.algorithms.samplers import Full
from hansa.cli.operator_client import Operator
from hansa.core.errors import HansaError
from hansa.core.secure_aggregation import SecureAggregation
from hansa.core.settings import UPLOAD_PART
from hansa.simulation.preparation import prepare
from hansa.simulation.run import run as simulate
from hansa.testing.audit import Books, client_problems, problems, read_books, recomputed
from hansa.testing.chaos_plans import FULL
from hansa.testing.draw_audit import draw_problems
from hansa.testing.hooks import SEEDED, hooks
from hansa.testing.hospitals import POPULATION, Hospitals, as_simulated, submit
from hansa.testing.ledger_audit import ledger_problems, read_accounts
from hansa.testing.network import Network
from hansa.testing.services import NOUNS, LocalServices, Noun, hospitals_with, server_key
from hansa.testing.victims import ENROLMENT, Rivals, Tally, Victim

_RUN: Final = 150.0
"""Seconds that a run may take to its end once nobody is killed any more: rounds that failed often rest for long."""


@dataclass(frozen=True)
class Campaign:
    """What is tortured, and how: points that are shared out among the replicas, the agents and the services."""

    server: Sequence[str]
    clients: Sequence[str]
    plans: Sequence[Plan] = (FULL,)
    services: Sequence[str] = ()
    """Each of a decryptor or an authority, as its first word says."""
    database: str = ""
    replicas: int = 1
    seed: int = 0
    passes: int = 3
    """Passes of a point, at most, until it kills."""
    outage: float = 0.0
    """Seconds, at most, that an agent is away, every other time that it was killed. If any, agents are restless."""
    seconds: float = math.inf
    """After so many, nobody is killed any more."""
    bad_network: bool = True
    part: int = 6000
    """Bytes of one part of an upload: fewer than some of the plans' updates have."""

    def replica_names(self) -> list[str]:
        """Return the replicas' names."""
        return ["server", *(f"server-{number}" for number in range(2, self.replicas + 1))]

    def nouns(self) -> dict[str, Noun]:
        """Return who runs what beside the server: operator -> noun."""
        sections = [plan.secure_aggregation for plan in self.plans if plan.secure_aggregation is not None]
        found: dict[str, Noun] = {each.operator: "decryptor" for section in sections for each in section.decryptors}
        return found | {section.authority.operator: "authority" for section in sections if section.authority}

    def demands(self) -> dict[str, str]:
        """Return what sites demand of secure sums that they do not demand otherwise: less, for a small graph."""
        sections = [plan.secure_aggregation for plan in self.plans if plan.secure_aggregation is not None]
        return {"server": "curious"} if any(_is_small(each) for each in sections) else {}


@dataclass(frozen=True)
class Result:
    """What came out of a campaign."""

    tally: Tally
    runs: int
    abandoned: int
    problems: tuple[str, ...]
    seconds: float


def torture(campaign: Campaign, folder: Path) -> Result:
    """Run a campaign in an empty folder; return what came out."""
    began, tally = time.monotonic(), Tally()
    settings: dict[str, Any] = {"max_attempts": 1000, "lease_seconds": 2, "fold_every": 1}
    if campaign.database:
        settings["database"] = campaign.database
    with (
        hospitals_with(folder, campaign.nouns(), **settings) as (federation, services),
        Network(federation.local.port, campaign.seed) as network,
    ):
        federation.demands = {**federation.demands, **campaign.demands()}
        campaign = replace(campaign, plans=[services.named_in(plan) for plan in campaign.plans])
        submitted = _suffer(campaign, federation, services, network, tally)
        states = [federation.local.state(name) for name in federation.sites]
    url = campaign.database or f"sqlite+aiosqlite:///{folder / 'server' / 'hansa.sqlite'}"
    books = asyncio.run(read_books(url))
    found = [*tally.surprises, *(f"{run}: {problem}" for run in submitted for problem in problems(books[run]))]
    found += [problem for state in states for problem in client_problems(state, books)]
    found += _charges(submitted, books, url)
    found += [problem for each in services.of("authority") for problem in draw_problems(each.own.place, books)]
    found += list(_other_models(campaign, submitted, books, folder))
    abandoned = sum(each.state == "abandoned" for run in submitted for each in books[run].rounds)
    return Result(tally, len(submitted), abandoned, tuple(found), time.monotonic() - began)


def _suffer(
    campaign: Campaign, federation: Hospitals, services: LocalServices, network: Network, tally: Tally
) -> dict[str, Plan]:
    """Start everything, kill what is to be killed while runs go on; return the runs, all at their end."""
    local, names = federation.local, campaign.replica_names()
    for name in names:
        local.start_server(name)
    federation.invite()
    if services.nouns:
        services.write(server_key(local), local.peers(federation.sites).values())
    _give_budget(campaign.plans, federation)
    for name in names:  # the first start was to make the certificates; from now on the threads start and kill
        local.kill(name)
    victims = [*_victims(campaign, federation, services, network, tally)]
    threads = [threading.Thread(target=victim.run, daemon=True) for victim in victims]
    stop = threading.Event()
    if campaign.bad_network:
        own = random.Random(campaign.seed)  # noqa: S311 - repeats with the seed, protects nobody
        weather = threading.Thread(target=network.weather, args=(stop, own), daemon=True)
        weather.start()
    for thread in threads:
        thread.start()
    try:
        return _work(campaign, federation, threads, stop)
    finally:
        tally.over.set()
        for thread in threads:
            thread.join()


def _victims(
    campaign: Campaign, federation: Hospitals, services: LocalServices, network: Network, tally: Tally
) -> Iterator[Victim]:
    """Yield who is to be killed."""
    local, names, sites = federation.local, campaign.replica_names(), federation.sites
    coins = random.Random(campaign.seed)  # noqa: S311 - repeats with the seed, protects nobody
    url = local.url_at(network.port)
    own = {UPLOAD_PART.name: str(campaign.part), **hooks(local.folder, SEEDED)}

    def died(name: str) -> None:
        living = [other for other in names if other != name and local.is_running(other)]
        network.lead_to(local.ports[coins.choice(living or [name])])

    def agent(name: str, more: dict[str, str]) -> None:
        federation.start_agent(name, url, {**own, **more})

    rivals = Rivals()
    victim = partial(
        Victim, local=local, tally=tally, coins=coins, passes=campaign.passes, ends=time.monotonic() + campaign.seconds
    )
    for name, of in zip(names, _shared(campaign.server, len(names)), strict=True):
        yield victim(name, of, partial(local.launch_server, name), died=died, rivals=rivals, restless=len(names) > 1)
    for noun in NOUNS:
        wanted = [point for point in campaign.services if point.startswith(f"{noun}.")]
        for each, of in zip(services.of(noun), _shared(wanted, len(services.of(noun))), strict=True):
            yield victim(each.operator, of, partial(each.launch, local))
    for name, of in zip(sites, _shared(campaign.clients, len(sites)), strict=True):
        yield victim(name, of, partial(agent, name), outage=campaign.outage, restless=campaign.outage > 0)


def _work(
    campaign: Campaign, federation: Hospitals, threads: Sequence[threading.Thread], stop: threading.Event
) -> dict[str, Plan]:
    """Submit run after run while there is somebody to be killed; wait for the end of all."""
    submitted: dict[str, Plan] = {}
    number = 0
    while any(thread.is_alive() for thread in threads) or number < len(campaign.plans):
        plan = campaign.plans[number % len(campaign.plans)]
        number += 1
        submitted[_patiently(campaign, federation, partial(_submit, plan))] = plan
        _wait(campaign, federation, submitted, lambda: not any(thread.is_alive() for thread in threads))
    stop.set()
    _wait(campaign, federation, submitted, lambda: False)
    return submitted


def _wait(campaign: Campaign, federation: Hospitals, runs: Iterable[str], enough: Callable[[], bool]) -> None:
    """Wait until all runs are at their end, or it is enough."""
    until = time.monotonic() + _RUN
    for run in runs:
        while not enough():
            found = _patiently(campaign, federation, partial(_look, run))
            if found["state"] != "running" or time.monotonic() > until:
                break
            time.sleep(0.05)


def _is_small(section: SecureAggregation) -> bool:
    """Say whether a sum has a graph that is not safe from a server that lies."""
    return section.protocol == "secagg-plus" and section.server == "curious"


def _charges(submitted: dict[str, Plan], books: Mapping[str, Books], url: str) -> list[str]:
    """Return what is wrong with the ledger."""
    accounts = asyncio.run(read_accounts(url))
    private = [run for run, plan in submitted.items() if plan.privacy is not None]
    return [*accounts.broken, *(f"{run}: {said}" for run in private for said in ledger_problems(accounts, books[run]))]


def _give_budget(plans: Sequence[Plan], federation: Hospitals) -> None:
    """Set a budget that outlasts a campaign, where a plan spends of it."""
    privacy = next((plan.privacy for plan in plans if plan.privacy is not None), None)
    if privacy is not None:
        guarantee = {"unit": privacy.unit, "adjacency": privacy.adjacency, "delta": privacy.delta}
        with federation.calls() as calls:
            calls.call("PUT", f"/ledger/{POPULATION}", {"epsilon": 1e6, "populations": [POPULATION], **guarantee})


def _submit(plan: Plan, calls: Operator) -> str:
    return submit(calls, plan)


def _look(run: str, calls: Operator) -> dict[str, Any]:
    return calls.get(f"/runs/{run}")


def _patiently(campaign: Campaign, federation: Hospitals, call: Callable[[Operator], Any]) -> Any:
    """Call whichever replica answers, until one does."""
    until = time.monotonic() + _RUN
    while True:
        for name in campaign.replica_names():
            try:
                with federation.calls(federation.local.url_at(federation.local.ports[name])) as calls:
                    return call(calls)
            except HansaError:
                if time.monotonic() > until:
                    raise
        time.sleep(0.05)


def _shared(wanted: Sequence[str], count: int) -> Iterator[list[str]]:
    """Share points out among so many victims; each hears of enrolment first."""
    ordered = sorted(wanted, key=lambda point: point not in ENROLMENT)
    yield from (list(ordered[start::count]) for start in range(count))


def _other_models(campaign: Campaign, submitted: dict[str, Plan], books: Any, folder: Path) -> Iterator[str]:
    """Yield the runs that gave another model than the one that follows from their rounds, or from none being killed."""
    for plan in campaign.plans:
        if plan.privacy is not None:
            continue  # nobody but the server knows what the noise was
        prepared = prepare(plan)
        runs = [run for run, of in submitted.items() if of is plan]
        wanted = None
        if runs and isinstance(plan.cohort, Full):
            wanted = simulate(plan, out=folder / "undisturbed" / plan.name, executor="serial").summary["model_sha256"]
        for run in runs:
            found = books[run].run
            content = (folder / "server" / "blobs" / "models" / found.model).read_bytes()
            if as_simulated(prepared, content, found.round) != (wanted or recomputed(prepared, books[run])):
                yield f"{run} ({plan.name}) gave another model"
