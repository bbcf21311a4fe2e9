"""Secure sums: Hansa's protocols against what they are held to, and SecAgg+ beside Flower's, interleaved."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from benchmarks.environments import UnavailableError, interpreter
from benchmarks.machine import Bystanders
from benchmarks.places import PEERS, RUNS
from benchmarks.results import Grid
from benchmarks.systems import environment, hansa_command

Say = Callable[[str], None]
Figures = dict[str, float]

DROPOUT: Final = 0.1
"""Of the clients that shared keys, those that send no vector: the worst moment."""
SLACK: Final = 1.5
"""How many times the prototype's time a round may take."""
PEER: Final = "flower"
TIMES_FASTER: Final = {"client_ms": 10.0, "server_s": 100.0}
"""What Hansa is to be beside the peer."""
_LIMIT: Final = 1800


@dataclass(frozen=True, kw_only=True)
class Sum:
    """A secure sum that is measured, what a prototype on idle cores took for it, and what is aimed at."""

    protocol: str
    clients: int
    parameters: int
    neighbours: int = 0
    threshold: int = 0
    threads: int = 2
    prototype: Sequence[tuple[str, float]] = ()
    aims: Sequence[tuple[str, float]] = ()

    @property
    def about(self) -> str:
        """Return it in words."""
        graph = f", k={self.neighbours} t={self.threshold}" if self.neighbours else ""
        return f"{self.protocol}, n={self.clients:,}{graph}, d={self.parameters:,}, threads={self.threads}"

    def command(self) -> list[str]:
        """Return Hansa's command."""
        graph = ["--neighbours", self.neighbours, "--threshold", self.threshold] if self.neighbours else []
        words = ["--protocol", self.protocol, "--clients", self.clients, "--parameters", self.parameters, *graph]
        words += ["--dropout", DROPOUT, "--threads", self.threads, "--json"]
        return [hansa_command(), "bench", "secagg", *map(str, words)]


BESIDE: Final = Sum(
    protocol="secagg-plus", clients=100, neighbours=64, threshold=43, parameters=100_000,
    prototype=[("client_ms", 21.3), ("server_s", 0.127)], aims=[("client_ms", 35), ("server_s", 0.2)],
)  # fmt: skip
"""What the peer does as well."""

_LARGE: Final = Sum(
    protocol="secagg-plus", clients=1000, neighbours=100, threshold=67, parameters=1_000_000, threads=1,
    prototype=[("client_ms", 84), ("server_s", 6.89)], aims=[("client_ms", 130), ("server_s", 10)],
)  # fmt: skip

SUMS: Final = (
    Sum(protocol="secagg-plus", clients=100, neighbours=50, threshold=34, parameters=100_000,
        prototype=[("client_ms", 14.1), ("server_s", 0.071)]),
    Sum(protocol="secagg-full", clients=100, parameters=100_000,
        prototype=[("client_ms", 30.5), ("server_s", 0.122)], aims=[("client_ms", 50), ("server_s", 0.2)]),
    Sum(protocol="oneshot-seeds", clients=1000, parameters=100_000,
        prototype=[("client_ms", 0.33), ("server_s", 0.009), ("decryptor_s", 0.182)]),
    Sum(protocol="oneshot-seeds", clients=1000, parameters=1_000_000,
        prototype=[("client_ms", 2.03), ("server_s", 0.172), ("decryptor_s", 0.86)],
        aims=[("client_ms", 4), ("server_s", 0.4), ("after_arrival_s", 0.4), ("decryptor_s", 1.5)]),
    _LARGE,
    replace(_LARGE, threads=2, prototype=(), aims=[("server_s", 10 / 1.6)]),
)  # fmt: skip


@dataclass
class Measured:
    """The runs of one sum in one system: figures of each, or why there are none."""

    system: str
    sum: Sum
    runs: list[dict[str, Any]]
    failure: str = ""

    def median(self, figure: str) -> float:
        """Return the median of a figure."""
        return statistics.median(run["figures"][figure] for run in self.runs)

    @property
    def figures(self) -> Figures:
        """Return the medians of all figures."""
        return {name: self.median(name) for name in self.runs[0]["figures"]} if self.runs else {}

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "about": self.sum.about, "medians": self.figures}


def measure(sums: Sequence[Sum], peers: Sequence[str], repetitions: int, say: Say) -> list[Measured]:
    """Measure every sum: the one that the peer does as well interleaved with it, each in a process of its own."""
    mine, beside = Measured("hansa", BESIDE, []), [Measured(peer, BESIDE, []) for peer in peers]
    for turn in range(repetitions):
        both = [mine, *beside]
        for one in both[turn % len(both) :] + both[: turn % len(both)]:
            _run(one, say)
    rest = [Measured("hansa", each, []) for each in sums]
    for _ in range(repetitions):
        for one in rest:
            _run(one, say)
    return [mine, *beside, *rest]


def _run(measured: Measured, say: Say) -> None:
    bystanders = Bystanders()
    try:
        run = _hansa(measured.sum) if measured.system == "hansa" else _flower(measured.sum)
    except (UnavailableError, OSError, ValueError, KeyError) as error:
        measured.failure = str(error) or type(error).__name__
        say(f"{measured.system}, {measured.sum.about}: failed: {measured.failure}")
        return
    run["others"] = bystanders.cores()
    measured.runs.append(run)
    told = ", ".join(f"{name} {value:.4g}" for name, value in run["figures"].items())
    say(f"{measured.system}, {measured.sum.about}: {told}")


def _hansa(work: Sum) -> dict[str, Any]:
    answer = json.loads(_output(work.command()).strip().splitlines()[-1])
    if not answer["exact"]:
        raise UnavailableError("the sum is not exact")
    server = answer["server_seconds"]
    figures = {
        "client_ms": answer["client_ms"]["total"], "server_s": server["total"],
        "after_arrival_s": server["after arrival"],
    }  # fmt: skip
    if "decryptor_seconds" in answer:
        figures["decryptor_s"] = answer["decryptor_seconds"]["total"]
    return {"figures": figures, "answer": answer}


def _flower(work: Sum) -> dict[str, Any]:
    shutil.rmtree(RUNS, ignore_errors=True)
    RUNS.mkdir()
    job, out = RUNS / "job.json", RUNS / "result.json"
    names = ("clients", "parameters", "neighbours", "threshold")
    wanted = {name: getattr(work, name) for name in names} | {"dropout": DROPOUT, "out": str(out)}
    job.write_text(json.dumps(wanted), encoding="utf-8")
    _output([str(interpreter(PEER)), str(PEERS / "run_flower_secagg.py"), str(job)])
    answer = json.loads(out.read_text(encoding="utf-8"))
    if not answer["sum_is_right"]:
        raise UnavailableError("the sum is not right")
    figures = {"client_ms": answer["client_ms"]["total"], "server_s": answer["server_seconds"]}
    return {"figures": figures, "answer": answer}


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - ours
            command, check=False, capture_output=True, text=True, timeout=_LIMIT, env=environment()
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"given up after {_LIMIT} s") from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise UnavailableError(f"exit status {done.returncode}: {last[0]}")
    return done.stdout


def grids(measured: Sequence[Measured]) -> list[Grid]:
    """Return the tables: beside the peer, and against what is aimed at."""
    mine, peers = measured[0], [one for one in measured if one.system != "hansa"]
    return [*(_beside(mine, peer) for peer in peers), _held(measured)]


def _beside(mine: Measured, peer: Measured) -> Grid:
    title = f"{mine.sum.about}, {DROPOUT:.0%} drop out after key sharing: Hansa beside {peer.system}"
    if not (mine.runs and peer.runs):
        return Grid(title, ("figure",), (), f"Not measured: {mine.failure or peer.failure}.")
    rows = []
    for name, aim in TIMES_FASTER.items():
        ours, theirs = mine.median(name), peer.median(name)
        times = theirs / ours
        rows.append((name, f"{ours:.4g}", f"{theirs:.4g}", f"{times:.0f}x", f"{aim:.0f}x", _met(times >= aim)))
    note = (
        f"Medians of {len(mine.runs)} and {len(peer.runs)} interleaved runs, each in a process of its own, without "
        "network and disk. Quantising is left out of both; Hansa's hold signatures, commitments and the phase in "
        "which clients agree on the survivors, which the peer does not have."
    )
    return Grid(title, ("figure", "Hansa", peer.system, "faster", "aim", ""), rows, note)


def _held(measured: Sequence[Measured]) -> Grid:
    rows = []
    for one in measured:
        if one.system != "hansa":
            continue
        if not one.runs:
            rows.append((one.sum.about, "failed", "", "", "", one.failure))
            continue
        prototype, aims = dict(one.sum.prototype), dict(one.sum.aims)
        for name, seen in one.figures.items():
            limits = (
                [SLACK * prototype[each] for each in [name] if each in prototype],
                [aims[each] for each in [name] if each in aims],
            )
            floor, aim = ("".join(f"{limit:.4g}" for limit in some) for some in limits)
            met = [_met(seen <= limit) for some in limits for limit in some]
            rows.append((one.sum.about, name, f"{seen:.4g}", floor, aim, ", ".join(met)))
    note = (
        f"Medians. Floor: {SLACK} times what the prototype took, on one thread of idle cores; it did not hash vectors. "
        "The aim of two threads is that of one, 1.6 times as fast."
    )
    return Grid("Against what is aimed at", ("sum", "figure", "seen", "floor", "aim", "floor, aim"), rows, note)


def met(measured: Sequence[Measured]) -> bool:
    """Say whether every aim was met and nothing failed; the floors, which are the prototype's, are only shown."""
    mine = measured[0]
    ratios = all(
        one.runs and one.median(name) / mine.median(name) >= aim
        for one in measured
        if one.system != "hansa"
        for name, aim in TIMES_FASTER.items()
    )
    return ratios and all(
        one.runs and all(one.median(name) <= aim for name, aim in one.sum.aims)
        for one in measured
        if one.system == "hansa"
    )


def _met(yes: bool) -> str:  # noqa: FBT001 - the answer itself
    return "met" if yes else "missed"
