"""The scenarios of load: what each measures, and what it aims at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.federation.checkins import check_ins
from benchmarks.federation.cohorts import cohort
from benchmarks.federation.models import model
from benchmarks.federation.reports import reports
from benchmarks.federation.silos import many_agents, rounds
from benchmarks.federation.storage import storage
from benchmarks.results import Grid

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Aim:
    """A figure that is shown: what it is, and the least or the most that it is to be, where it has an aim."""

    key: str
    about: str
    most: float | None = None
    least: float | None = None

    def row(self, figures: Figures) -> tuple[str, str, str, str]:
        """Return what is shown of it."""
        value = float(figures[self.key])
        bounds = [f"{word} {bound:g}" for word, bound in (("<=", self.most), (">=", self.least)) if bound is not None]
        verdict = ("yes" if self.met(figures) else "NO") if bounds else ""
        return self.about, f"{value:.4g}", ", ".join(bounds), verdict

    def met(self, figures: Figures) -> bool:
        """Return True unless a bound is broken."""
        value = float(figures[self.key])
        return not (self.most is not None and not value <= self.most) and not (
            self.least is not None and not value >= self.least
        )


@dataclass(frozen=True)
class Scenario:
    """One measurement: what it is about, how it is made, and what is shown of it."""

    about: str
    measure: Callable[[], dict[str, Any]]
    aims: Sequence[Aim]

    def grid(self, figures: Figures) -> Grid:
        """Return its table."""
        rows = [aim.row(figures) for aim in self.aims]
        note = f"Other processes of the machine used {figures['others_cores']:.2f} cores meanwhile."
        return Grid(self.about, ("figure", "seen", "aim", "met"), rows, note)

    def met(self, figures: Figures) -> bool:
        """Return True where every aim is met."""
        return all(aim.met(figures) for aim in self.aims)


_SERVER: Final = (
    Aim("core_share", "share of the server's core"),
    Aim("cpu_ms_a_call", "processor time a call, ms"),
)
_CALLS: Final = (
    Aim("errors", "calls without the answer 200", most=0),
    Aim("p50_ms", "p50, ms"),
    Aim("late_p99_ms", "how late the generator itself was, p99, ms"),
    *_SERVER,
)
_MEMORY: Final = Aim("rss_peak_mb", "the server's peak memory, MB", most=500)


def _check_ins(*, tls: bool, most: float) -> Scenario:
    way = "TLS, a connection each" if tls else "plain, kept connections"
    aims = (
        Aim("rate", "check-ins a second", least=990),
        Aim("p99_ms", "p99, ms", most=most),
        _MEMORY,
        Aim("written", "files of the database that were written", most=0),
        *_CALLS,
    )
    return Scenario(f"check-ins of 10,000 clients every 10 s: {way}", lambda: check_ins(tls=tls), aims)


def _reports(*, tls: bool, rate: float) -> Scenario:
    way = "TLS, a connection each" if tls else "plain, kept connections"
    aims = (
        Aim("rate", "reports a second", least=0.98 * rate),
        Aim("missing", "reports that are not in the database", most=0),
        Aim("p99_ms", "p99, ms"),
        Aim("rss_peak_mb", "the server's peak memory, MB"),
        *_CALLS,
    )
    about = f"reports of 1 MB, {rate:g} a second: {way}"
    return Scenario(about, lambda: reports(tls=tls, rate=rate), aims)


def _storage(*, fold_every: int | None, most: float) -> Scenario:
    way = f"added to the sum, {fold_every} at a time" if fold_every else "all kept until the round is closed"
    aims = (
        Aim("update_mb", "an update, MB"),
        Aim("at_most_mb", "sealed blobs of the open round, the most, MB", most=most),
        Aim("at_rest_mb", "when all but one have reported, MB"),
        Aim("close_seconds", "from the last report to the closed round, s"),
        Aim("missing", "updates that the round did not count", most=0),
        Aim("errors", "calls without the answer 200", most=0),
    )
    about = f"a round under privacy of 200 clients with updates of 1 MB: {way}"
    return Scenario(about, lambda: storage(fold_every=fold_every), aims)


_SILOS: Final = (
    Aim("rounds", "rounds while it was watched"),
    Aim("server_core_share", "share of the server's core"),
    Aim("server_rest_mb", "the server's memory at rest, MB", most=200),
    Aim("server_mb", "the server's memory in the rounds, MB"),
    Aim("agent_rest_mb", "an agent's memory at rest, MB, the most", most=80),
    Aim("agent_mb", "an agent's memory in the rounds, MB, the most"),
)

SCENARIOS: Final[Mapping[str, Sequence[Scenario]]] = {
    "check-ins": (_check_ins(tls=True, most=200), _check_ins(tls=False, most=100)),
    "reports": (_reports(tls=True, rate=100), _reports(tls=False, rate=200)),
    "storage": (_storage(fold_every=None, most=220), _storage(fold_every=32, most=105)),
    "model": (
        Scenario(
            "a model of 1 GB to 4 silos, and their updates of 1 GB back",
            model,
            (
                Aim("download_growth_mb", "how much the server's memory grew while 4 silos fetched it, MB", most=300),
                Aim("upload_growth_mb", "how much it grew while 4 updates of 1 GB came in, MB", most=300),
                Aim("close_growth_mb", "how much it grew while the round was folded and closed, MB"),
                Aim("download_mb_a_second", "downloads, MB/s"),
                Aim("upload_mb_a_second", "uploads, sealed and synced, MB/s"),
                Aim("close_seconds", "from the last update to the closed round, s"),
            ),
        ),
    ),
    "cohort": (
        Scenario(
            "a cohort of 1,000 of 1,000,000 clients on PostgreSQL: three conditions, minimum separation",
            cohort,
            (
                Aim("p95_ms", "p95 of 100 draws, ms", most=100),
                Aim("p50_ms", "p50, ms"),
                Aim("eligible_p50_ms", "of that, to find who is eligible, p50, ms"),
                Aim("smallest_cohort", "the smallest cohort", least=1_000),
                Aim("eligible", "eligible clients"),
                Aim("enrol_seconds", "enrolling them all, s"),
            ),
        ),
    ),
    "rounds": (
        Scenario(
            "rounds of 4 silos over TLS, 10,000 parameters, no training",
            rounds,
            (
                Aim("rounds_a_second", "rounds a second", least=10),
                Aim("first_round_seconds", "from the submission to the first closed round, s", most=2),
                *_SILOS,
            ),
        ),
    ),
    "agents": (
        Scenario(
            "50 silos on all cores; one is killed",
            many_agents,
            (
                Aim("rounds_a_second", "rounds a second"),
                Aim("first_round_seconds", "from the submission to the first closed round, s"),
                Aim("deadline_seconds", "the plan's round deadline, s"),
                Aim("noticed_seconds", "from the kill to a round that closed without it, s", most=7),
                Aim("alive", "agents that run at the end", least=49),
                Aim("agents_mb", "all agents' memory in the rounds, MB"),
                *_SILOS,
            ),
        ),
    ),
}
"""Scenario -> its measurements, one after another."""
