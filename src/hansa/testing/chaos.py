"""Chaos: a federation whose processes are killed at named instants, again and again, on a bad network.

``python -m hansa.testing.chaos --kills 200`` runs four hospitals' agents and a server (``--postgres --replicas 2``: two
on PostgreSQL), kills whoever comes to a kill point of :mod:`hansa.core.killpoints` and starts it again, and checks
what came out: the model bit for bit, and that every acknowledged report is counted exactly once or its round is
abandoned. It prints how often each point was hit, and ends with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from hansa.algorithms.plan import Plan
from hansa.cli.operator_client import Operator
from hansa.core.errors import HansaError
from hansa.core.killpoints import KILL_POINTS
from hansa.core.settings import UPLOAD_PART
from hansa.simulation.preparation import prepare
from hansa.simulation.run import run as simulate
from hansa.testing.audit import client_problems, problems, read_books, recomputed
from hansa.testing.hospitals import Hospitals, as_simulated, hospitals, small_plan, submit
from hansa.testing.network import Network
from hansa.testing.postgres import own_postgres
from hansa.testing.victims import ANYWHERE, ENROLMENT, Tally, Victim

WITH_STATE: Final = {
    "trainer": {
        "kind": "linear",
        "epochs": 1,
        "batch_size": 64,
        "optimizer": {"kind": "sgd", "learning_rate": 0.05},
        "hooks": [{"kind": "control-variate"}],
    },
    "transforms": [],
    "server_optimizer": {
        "kind": "momentum",
        "learning_rate": 1.0,
        "branches": {"control": {"kind": "sgd", "learning_rate": "included/population"}},
    },
}
"""What makes the small plan keep rows on its clients and slots on its server."""
FULL: Final = small_plan(name="all take part", rounds=3, **WITH_STATE)
"""Full participation: whatever is killed, the model is the same."""
SHORT: Final = small_plan(
    name="some are late",
    rounds=3,
    cohort={"kind": "uniform", "size": 2},
    devices={"preset": "hospitals"},  # for a simulation; nothing of it is deployed
    schedule={"kind": "sync", "over_selection": 0.5, "report_goal": 2, "round_deadline": 2.5},
    evaluation={"every": 3, "metrics": ["auc"], "baselines": []},
)
"""Over-selection, a goal and a deadline shorter than outages: rounds are abandoned."""
_RUN: Final = 60.0
"""Seconds that a run may take to its end once nobody is killed any more."""


@dataclass(frozen=True)
class Campaign:
    """What is tortured, and how: points for each of the replicas and agents, one list after another."""

    server: Sequence[str]
    clients: Sequence[str]
    plans: Sequence[Plan] = (FULL,)
    database: str = ""
    replicas: int = 1
    seed: int = 0
    passes: int = 3
    """Passes of a point, at most, until it kills."""
    outage: float = 0.0
    """Seconds, at most, that an agent is away after it was killed."""
    seconds: float = math.inf
    """After so many, nobody is killed any more."""
    bad_network: bool = True

    def replica_names(self) -> list[str]:
        """Return the replicas' names."""
        return ["server", *(f"server-{number}" for number in range(2, self.replicas + 1))]


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
    settings: dict[str, Any] = {"max_attempts": 1000, "lease_seconds": 2}
    if campaign.database:
        settings["database"] = campaign.database
    with hospitals(folder, **settings) as federation, Network(federation.local.port, campaign.seed) as network:
        submitted = _suffer(campaign, federation, network, tally)
        states = [federation.local.state(name) for name in federation.sites]
    url = campaign.database or f"sqlite+aiosqlite:///{folder / 'server' / 'hansa.sqlite'}"
    books = asyncio.run(read_books(url))
    found = [*tally.surprises, *(f"{run}: {problem}" for run in submitted for problem in problems(books[run]))]
    found += [problem for state in states for problem in client_problems(state, books)]
    found += list(_other_models(campaign, submitted, books, folder))
    abandoned = sum(each.state == "abandoned" for run in submitted for each in books[run].rounds)
    return Result(tally, len(submitted), abandoned, tuple(found), time.monotonic() - began)


def _suffer(campaign: Campaign, federation: Hospitals, network: Network, tally: Tally) -> dict[str, Plan]:
    """Start everything, kill what is to be killed while runs go on; return the runs, all at their end."""
    local, names = federation.local, campaign.replica_names()
    for name in names:
        local.start_server(name)
    federation.invite()
    coins = random.Random(campaign.seed)  # noqa: S311 - repeats with the seed, protects nobody
    url, part = local.url_at(network.port), {UPLOAD_PART.name: "6000"}

    def died(name: str) -> None:
        living = [other for other in names if other != name and local.is_running(other)]
        network.lead_to(local.ports[coins.choice(living or [name])])

    for name in names:  # the first start was to make the certificates; from now on the threads start and kill
        local.kill(name)

    def agent(name: str, more: dict[str, str]) -> None:
        federation.start_agent(name, url, {**part, **more})

    tortured = (local, tally, coins, campaign.passes)
    threads, ends = [], time.monotonic() + campaign.seconds
    for place, of in zip(names, _shared(campaign.server, len(names)), strict=True):
        victim = Victim(place, partial(local.launch_server, place), *tortured, died=died, ends=ends)
        threads.append(threading.Thread(target=victim.run, args=(of,), daemon=True))
    for place, of in zip(federation.sites, _shared(campaign.clients, len(federation.sites)), strict=True):
        victim = Victim(place, partial(agent, place), *tortured, outage=campaign.outage, ends=ends)
        threads.append(threading.Thread(target=victim.run, args=(of,), daemon=True))
    stop = threading.Event()
    if campaign.bad_network:
        own = random.Random(campaign.seed)  # noqa: S311 - as above
        threading.Thread(target=network.weather, args=(stop, own), daemon=True).start()
    for thread in threads:
        thread.start()
    return _work(campaign, federation, threads, stop)


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
        prepared = prepare(plan)
        runs = [run for run, of in submitted.items() if of is plan]
        wanted = None
        if runs and plan is FULL:
            wanted = simulate(plan, out=folder / "undisturbed", executor="serial").summary["model_sha256"]
        for run in runs:
            found = books[run].run
            content = (folder / "server" / "blobs" / "models" / found.model).read_bytes()
            if as_simulated(prepared, content, found.round) != (wanted or recomputed(prepared, books[run])):
                yield f"{run} ({plan.name}) gave another model"


def scheduled(wanted: Sequence[str], times: int, coins: random.Random) -> list[str]:
    """Return points, each so many times, in an order that coins say."""
    return coins.sample(list(wanted) * times, len(wanted) * times)


def main(arguments: Sequence[str] | None = None) -> int:
    """Torture a federation as the command line says; print what came out."""
    parser = argparse.ArgumentParser(prog="python -m hansa.testing.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kills in all, at least")
    parser.add_argument("--times", type=int, default=5, help="kills at each point, at least")
    parser.add_argument("--points", default="", help="only these kill points, with commas between")
    parser.add_argument("--plan", choices=("full", "short"), default="full", help="all take part, or some are late")
    parser.add_argument("--postgres", action="store_true", help="on a PostgreSQL of its own, not on SQLite")
    parser.add_argument("--passes", type=int, default=3, help="passes of a point, at most, until it kills")
    parser.add_argument("--replicas", type=int, default=1, help="servers on one database")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="nobody is killed later than that")
    parser.add_argument("--good-network", action="store_true", help="without delay, loss and partitions")
    asked = parser.parse_args(arguments)
    coins = random.Random(asked.seed)  # noqa: S311 - repeats with the seed, protects nobody
    chosen = asked.points.split(",") if asked.points else [*KILL_POINTS]
    unknown = {*chosen} - {*KILL_POINTS, ANYWHERE}
    if unknown:
        parser.error(f"no kill points: {', '.join(sorted(unknown))}")
    if asked.plan == "full":
        chosen = [point for point in chosen if point != "coordinator.round.abandoned"]
    elif not asked.points:
        chosen = [point for point in chosen if not point.startswith("client.rows")]
    server = scheduled([point for point in chosen if not point.startswith("client.")], asked.times, coins)
    clients = scheduled([point for point in chosen if point.startswith("client.")], asked.times, coins)
    more = max(0, asked.kills - len(server) - len(clients))
    clients += [ANYWHERE] * (more // 2)
    server += [ANYWHERE] * (more - more // 2)
    campaign = Campaign(
        coins.sample(server, len(server)),
        coins.sample(clients, len(clients)),
        plans=(FULL if asked.plan == "full" else SHORT,),
        replicas=asked.replicas,
        seed=asked.seed,
        passes=asked.passes,
        seconds=asked.seconds,
        outage=0.0 if asked.plan == "full" else 4.0,
        bad_network=not asked.good_network,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # stops what was started
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hansa-chaos-")))
        if asked.postgres:
            campaign = replace(campaign, database=stack.enter_context(own_postgres(folder / "postgres")))
        result = torture(campaign, folder / "federation")
    told = {
        "kills": result.tally.total,
        "at": dict(sorted(result.tally.kills.items())),
        "missed": dict(sorted(result.tally.missed.items())),
        "runs": result.runs,
        "rounds_abandoned": result.abandoned,
        "seconds": round(result.seconds, 1),
        "problems": result.problems,
    }
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
