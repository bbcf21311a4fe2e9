"""``python -m benchmarks``: see README.md."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import machine, peak, profiling, results, scaling, secure_sums
from benchmarks.data import prepare
from benchmarks.environments import UnavailableError
from benchmarks.places import PLANS
from benchmarks.process_tree import adopt_orphans
from benchmarks.scaling import Scaling
from benchmarks.start import write_start
from benchmarks.suite import Suite
from benchmarks.systems import System, all_systems, offers_executor
from benchmarks.tasks import TASKS, Task

_COMMANDS = ("compare", "data", "scaling", "profile", "peak", "federation", "secure-sums")
_SCENARIOS = ("check-ins", "reports", "storage", "model", "cohort", "rounds", "agents")
_WIDTH = 132
"""Columns of what is written to a file."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one subcommand; ``compare`` where none is named. Return the exit status."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or (words[0] not in _COMMANDS and words[0] not in {"-h", "--help"}):
        words.insert(0, "compare")
    chosen = _parser().parse_args(words)
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends with it
    console = Console() if Console().is_terminal else Console(width=_WIDTH)
    try:
        return int(chosen.run(chosen, console))
    except UnavailableError as error:
        console.print(f"nothing measured: {error}", markup=False)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Hansa and its peers at the same work.")
    commands = parser.add_subparsers(required=True)
    compare = commands.add_parser("compare", help="tasks A, B, C in all systems, interleaved (the default)")
    compare.add_argument("--tasks", default="A,B,C", help="which tasks: A,B,C")
    compare.add_argument("--peers", default="pfl,fedjax,flower,torch-loop", help="which peers; 'none' for Hansa alone")
    compare.add_argument(
        "--peer-data", choices=("mapped", "read"), default="mapped", help="how peers take the examples from disk"
    )
    compare.set_defaults(run=_compare)
    data = commands.add_parser("data", help="make the synthetic data, and nothing else")
    data.set_defaults(run=_data)
    scaling = commands.add_parser("scaling", help="Hansa by cohort, population and workers")
    scaling.add_argument("--curves", default="cohort,population,workers")
    scaling.add_argument("--plan", type=Path, default=PLANS / "synthetic.toml")
    scaling.add_argument("--population-key", default="data.arguments.clients", help="the setting for how many clients")
    scaling.set_defaults(run=_scaling)
    profile = commands.add_parser("profile", help="where the time of Hansa's run of a task goes")
    profile.add_argument("task", choices=("A", "B", "C", "C-linear"))
    profile.add_argument("words", nargs=argparse.REMAINDER, help="further words for hansa run")
    profile.set_defaults(run=_profile)
    peak = commands.add_parser("peak", help="the share of the machine's matrix-product peak that task A reaches")
    peak.set_defaults(run=_peak)
    load = commands.add_parser("federation", help="load on a server of a federation")
    load.add_argument("--scenario", choices=_SCENARIOS, action="append", help="which; may be repeated; default: all")
    load.add_argument("--json", action="store_true", help="print the figures as one line of JSON at the end")
    load.set_defaults(run=_federation)
    sums = commands.add_parser("secure-sums", help="secure sums: against their aims, and SecAgg+ beside Flower's")
    sums.add_argument("--peers", choices=("flower", "none"), default="flower")
    sums.add_argument("--beside-only", action="store_true", help="only the sum that the peer does as well")
    sums.add_argument("--repetitions", type=int, default=3)
    sums.set_defaults(run=_secure_sums)
    for one in (compare, scaling, peak):
        one.add_argument("--repetitions", type=int, default=3)
        one.add_argument(
            "--executor", default=None, help="Hansa's executor; default: auto (scaling: batched) where offered"
        )
    return parser


def _compare(chosen: argparse.Namespace, console: Console) -> int:
    """Run the comparison and write its result."""
    tasks, systems = _tasks(chosen.tasks), _systems(chosen.peers, chosen.executor)
    facts = machine.facts()
    suite = Suite(tasks, systems, chosen.repetitions, chosen.peer_data == "mapped", _say)
    result = {"machine": facts, "repetitions": chosen.repetitions, "peer_data": chosen.peer_data, **suite.run()}
    results.write("compare", result, results.comparison(result), console)
    failed = [one for task in result["tasks"].values() for one in task["systems"].values() if "failure" in one]
    return 1 if any(one["hansa"] for one in failed) else 0


def _data(chosen: argparse.Namespace, console: Console) -> int:  # noqa: ARG001 - a subcommand's form
    """Make the data of all tasks."""
    for task in TASKS.values():
        write_start(task, prepare(task))
        console.print(f"{task.name}: {task.about}")
    return 0


def _scaling(chosen: argparse.Namespace, console: Console) -> int:
    """Measure the curves of Hansa alone."""
    facts = machine.facts()
    curves = Scaling(
        chosen.plan.resolve(), chosen.population_key, one_executor(chosen.executor), chosen.repetitions, _say
    ).run(chosen.curves.split(","))
    result = {"machine": facts, **curves}
    results.write("scaling", result, scaling.grids(result), console)
    return 0


def _profile(chosen: argparse.Namespace, console: Console) -> int:
    """Profile one run of a task's plan."""
    facts, words = machine.facts(), list(chosen.words)
    for task in TASKS.values():
        write_start(task, prepare(task))
    if "--executor" not in words and (picked := executor(None)):
        words += ["--executor", picked]
    result = {"machine": facts, "words": words, **profiling.profile([str(PLANS / f"{chosen.task}.toml"), *words])}
    results.write(f"profile-{chosen.task}", result, profiling.grids(result), console)
    return 0


def _peak(chosen: argparse.Namespace, console: Console) -> int:
    """Measure the machine's products and Hansa's share of them at task A."""
    facts = machine.facts()
    hansa = all_systems(executor(chosen.executor))[0]
    result = {"machine": facts, **peak.share_of_peak(hansa, chosen.repetitions, _say)}
    results.write("peak", result, peak.grids(result), console)
    return 0


def _federation(chosen: argparse.Namespace, console: Console) -> int:
    """Put load on a server; the exit status tells whether every aim was met."""
    from benchmarks.federation.scenarios import SCENARIOS  # noqa: PLC0415 - it needs what a server needs

    wanted = chosen.scenario or _SCENARIOS
    facts, figures, grids, met = machine.facts(), {}, [], True
    for name in wanted:
        for scenario in SCENARIOS[name]:
            _say(f"{name}: {scenario.about}")
            bystanders = machine.Bystanders()
            figures[scenario.about] = measured = scenario.measure()
            measured["others_cores"] = bystanders.cores()
            grids.append(scenario.grid(measured))
            met = met and scenario.met(measured)
            grids[-1].show(console)
    kind = "-".join(["federation", *(wanted if len(wanted) == 1 else [])])
    results.write(kind, {"machine": facts, "scenarios": figures}, grids, console)
    if chosen.json:
        _say(json.dumps({"met": met, "scenarios": figures}))
    return 0 if met else 1


def _secure_sums(chosen: argparse.Namespace, console: Console) -> int:
    """Measure secure sums; the exit status tells whether every aim was met."""
    facts, peers = machine.facts(), [] if chosen.peers == "none" else [chosen.peers]
    wanted = () if chosen.beside_only else secure_sums.SUMS
    measured = secure_sums.measure(wanted, peers, chosen.repetitions, _say)
    result = {"machine": facts, "sums": [one.as_json() for one in measured]}
    results.write("secure-sums", result, secure_sums.grids(measured), console)
    return 0 if secure_sums.met(measured) else 1


def _say(line: str) -> None:
    """Print a line of progress at once, also where the output goes to a file."""
    print(line, flush=True)  # noqa: T201 - a command


def one_executor(named: str | None) -> str:
    """Return the executor of all points of a curve: auto might choose another for each, so batched stands in for it."""
    return named if named is not None else "batched" if offers_executor("batched") else ""


def executor(named: str | None) -> str:
    """Return Hansa's executor: the one that was named, else auto where the command offers it, else its default."""
    return named if named is not None else "auto" if offers_executor("auto") else ""


def _tasks(names: str) -> list[Task]:
    wanted = names.upper().replace(",", "")
    unknown = set(wanted) - set(TASKS)
    if unknown:
        raise SystemExit(f"unknown tasks: {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    return [TASKS[name] for name in TASKS if name in wanted]


def _systems(names: str, named: str | None) -> list[System]:
    """Return Hansa and the named peers; "pfl" stands for both of its configurations."""
    wanted = set() if names == "none" else set(names.split(","))
    offered = all_systems(executor(named))
    known = {word for system in offered if not system.is_hansa for word in (system.name, system.peer or system.name)}
    if wanted - known:
        raise SystemExit(f"unknown peers: {', '.join(sorted(wanted - known))}; there are {', '.join(sorted(known))}")
    return [system for system in offered if system.is_hansa or {system.name, system.peer} & wanted]


if __name__ == "__main__":
    sys.exit(main())
