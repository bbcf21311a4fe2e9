"""``python -m benchmarks``: see README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks import machine, results
from benchmarks.data import prepare
from benchmarks.process_tree import adopt_orphans
from benchmarks.start import write_start
from benchmarks.suite import Suite
from benchmarks.systems import System, all_systems, offers_executor
from benchmarks.tasks import TASKS, Task

_COMMANDS = ("compare", "data", "scaling", "profile", "peak")
_WIDTH = 132
"""Columns of what is written to a file."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one subcommand; ``compare`` where none is named. Return the exit status."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or (words[0] not in _COMMANDS and words[0] not in {"-h", "--help"}):
        words.insert(0, "compare")
    chosen = _parser().parse_args(words)
    adopt_orphans()
    console = Console() if Console().is_terminal else Console(width=_WIDTH)
    return int(chosen.run(chosen, console))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Hansa and its peers at the same work.")
    commands = parser.add_subparsers(required=True)
    compare = commands.add_parser("compare", help="tasks A, B, C in all systems, interleaved (the default)")
    compare.add_argument("--tasks", default="A,B,C", help="which tasks: A,B,C")
    compare.add_argument("--peers", default="pfl,fedjax,flower,torch-loop", help="which peers; 'none' for Hansa alone")
    compare.add_argument("--repetitions", type=int, default=3)
    compare.add_argument(
        "--peer-data", choices=("mapped", "read"), default="mapped", help="how peers take the examples from disk"
    )
    compare.set_defaults(run=_compare)
    data = commands.add_parser("data", help="make the synthetic data, and nothing else")
    data.set_defaults(run=_data)
    for one in (compare,):
        one.add_argument("--executor", default=None, help="Hansa's executor; default: auto where it is offered")
    return parser


def _compare(chosen: argparse.Namespace, console: Console) -> int:
    """Run the comparison and write its result."""
    tasks, systems = _tasks(chosen.tasks), _systems(chosen.peers, chosen.executor)
    facts = machine.facts()
    said = console.print if console.is_terminal else lambda line: print(line, flush=True)  # noqa: T201 - a command
    suite = Suite(tasks, systems, chosen.repetitions, chosen.peer_data == "mapped", said)
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
