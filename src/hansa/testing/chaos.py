"""Chaos: campaign after campaign, until every kill point was hit often enough, and there were kills enough in all.

``python -m hansa.testing.chaos --kills 200 --times 5`` tortures four hospitals' agents and a server on SQLite;
``--postgres`` two servers on a PostgreSQL of its own; ``--plan`` chooses what they do. It prints how often each point
was hit, which were waited for in vain, and what was wrong: a model that differs in a bit, a report that was
acknowledged and not counted exactly once in a round that closed, a round that closed twice; under ``--plan private`` a
model that the ledger has not charged exactly once, or a chain that is broken; under ``--plan authority`` a sum for
which it has drawn twice. It ends with 1 where anything was wrong, or where points were not hit in the time given.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hansa.core.killpoints import KILL_POINTS
from hansa.testing.campaign import Campaign, Result, torture
from hansa.testing.chaos_plans import AUTHORITY, AWAY, CORRELATED, FULL, ONESHOT, PRIVATE, SECURE, SHORT
from hansa.testing.postgres import own_postgres
from hansa.testing.victims import ANYWHERE

PLANS: Final = {
    "full": (FULL,),
    "short": (SHORT, AWAY),
    "secure": (SECURE,),
    "oneshot": (ONESHOT,),
    "authority": (AUTHORITY,),
    "private": (PRIVATE, CORRELATED),
}
OUTAGES: Final = {**dict.fromkeys(PLANS, 0.0), "short": 5.0, "private": 5.0}
PARTS: Final = {**dict.fromkeys(PLANS, 6000), "private": 150}
"""Bytes of one part of an upload: what is private has no evaluation by clients, and updates of 200 bytes only."""
ABANDONED: Final = "coordinator.round.abandoned"
OF_SUMS: Final = ("sums.record-made", "sums.record-written", "client.sum-answered", "client.sum-recorded")
OF_DECRYPTORS: Final = tuple(point for point in KILL_POINTS if point.startswith("decryptor."))
OF_AUTHORITIES: Final = tuple(point for point in KILL_POINTS if point.startswith("authority."))
_MANY: Final = 12
"""Points that are worth a campaign."""
_SERVICES: Final = (*OF_DECRYPTORS, *OF_AUTHORITIES)
_FOLDS: Final = ("coordinator.fold.written", "coordinator.fold.committed")
_STATELESS: Final = ("client.rows-written", "client.rows-current", *OF_SUMS, *_SERVICES)
_SUMMED: Final = (ABANDONED, *_FOLDS, *(f"coordinator.round.{each}" for each in ("collecting", "frozen")))
"""A sum collects and freezes by itself."""
_ABSENT: Final = {
    "full": (ABANDONED, *OF_SUMS, *_SERVICES, *_FOLDS),  # everybody is waited for, and floats have their order
    "short": (*_STATELESS, *_FOLDS),  # nothing is kept with clients
    "private": _STATELESS,  # as above
    "secure": (*_SUMMED, *_SERVICES),
    "oneshot": (*_SUMMED, *OF_AUTHORITIES),
    "authority": (*_SUMMED, *OF_DECRYPTORS),
}


def points_of(plan: str) -> list[str]:
    """Return the kill points that a federation passes under the plans of that name."""
    return [point for point in KILL_POINTS if point not in _ABSENT[plan]]


@dataclass
class Series:
    """What several campaigns have come to."""

    wanted: Sequence[str]
    times: int
    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    abandoned: int = 0
    problems: list[str] = field(default_factory=list)
    missed: Counter[str] = field(default_factory=Counter)

    @property
    def missing(self) -> list[str]:
        """Return the points that were not hit often enough."""
        return [point for point in self.wanted if self.kills[point] < self.times]

    def add(self, result: Result) -> None:
        """Count a campaign's result."""
        self.kills += result.tally.kills
        self.missed += result.tally.missed
        self.runs += result.runs
        self.abandoned += result.abandoned
        self.problems += result.problems

    def told(self) -> dict[str, Any]:
        """Return everything as a mapping, for people and programs."""
        return {
            "kills": self.kills.total(),
            "at": dict(sorted(self.kills.items())),
            "missing": self.missing,
            "waited_for_in_vain": dict(sorted(self.missed.items())),
            "runs": self.runs,
            "rounds_abandoned": self.abandoned,
            "problems": self.problems,
        }


def next_campaign(series: Series, plan: str, seed: int, **settings: Any) -> Campaign:
    """Return a campaign that kills once at each point that was not hit often enough, and a few times anywhere.

    Points that were hit least come first, as a campaign may end before the last; where few are left, they come again.
    """
    coins = random.Random(seed)  # noqa: S311 - repeats with the seed, protects nobody
    missing = sorted(coins.sample(series.missing, len(series.missing)), key=lambda point: series.kills[point])
    again = max(1, _MANY // max(1, len(missing)))
    chosen = [point for turn in range(again) for point in missing if series.kills[point] + turn < series.times]
    services = [point for point in chosen if point in _SERVICES]
    clients = [point for point in chosen if point.startswith("client.")] + [ANYWHERE] * 4
    server = [point for point in chosen if point not in {*services, *clients}] + [ANYWHERE] * 4
    passes = 2 if OUTAGES[plan] else 3  # of rounds that fail now and then, and ask some of the agents
    settings |= {"passes": passes, "outage": OUTAGES[plan], "part": PARTS[plan], "seed": seed}
    return Campaign(server, clients, PLANS[plan], services, **settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Torture federations as the command line says; print what came out, also when stopped."""
    asked = _parser().parse_args(arguments)
    series = Series(points_of(asked.plan), asked.times)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # stops what was started
    try:
        _go_on(series, asked)
    finally:
        sys.stdout.write(json.dumps(series.told(), indent=1) + "\n")
    return int(bool(series.problems or series.missing or series.kills.total() < asked.kills))


def _go_on(series: Series, asked: argparse.Namespace) -> None:
    """Torture one federation after another until it was often enough, something is wrong, or time is up."""
    until, seed = time.monotonic() + 60 * asked.minutes, asked.seed
    while (series.missing or series.kills.total() < asked.kills) and time.monotonic() < until and not series.problems:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hansa-chaos-")))
            settings: dict[str, Any] = {"bad_network": not asked.good_network, "seconds": 60 * asked.each}
            if asked.postgres:
                settings |= {"database": stack.enter_context(own_postgres(folder / "postgres")), "replicas": 2}
            result = torture(next_campaign(series, asked.plan, seed, **settings), folder / "federation")
        series.add(result)
        seed += 1
        told = f"{series.kills.total()} kills in all, {len(series.missing)} points still missing"
        sys.stderr.write(f"campaign of {result.seconds:.0f} s: {result.tally.total} kills; {told}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hansa.testing.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kills in all, at least")
    parser.add_argument("--times", type=int, default=5, help="kills at each point, at least")
    parser.add_argument("--plan", choices=tuple(PLANS), default="full", help="all take part, some are late, ...")
    parser.add_argument("--postgres", action="store_true", help="two servers on a PostgreSQL, not one on SQLite")
    parser.add_argument("--seed", type=int, default=0, help="of the first campaign; the next has the next")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no campaign starts later than that")
    parser.add_argument("--each", type=float, default=3.0, help="minutes after which a campaign kills nobody any more")
    parser.add_argument("--good-network", action="store_true", help="without delay, loss and partitions")
    return parser


if __name__ == "__main__":
    sys.exit(main())
