"""``hansa run``: a plan in simulation, with its progress and its result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hansa.cli.console import command_line, print_json, screen, sentence, shown
from hansa.cli.failures import running
from hansa.cli.options import AsJson, Overrides
from hansa.cli.outcome import show_outcome
from hansa.cli.progress import watch
from hansa.core.ledger import LedgerFile
from hansa.reporting.figures import nested
from hansa.reporting.run_folder import PLAN, REPORT, RunFolder
from hansa.simulation.choice import AUTO, EXECUTORS
from hansa.simulation.run import RunResult, resume, run
from hansa.wire.plans import read_plan


def command(  # noqa: PLR0913 - a command's options
    plan: Annotated[Path | None, typer.Argument(metavar="PLAN.toml", help="The plan.", show_default=False)] = None,
    *,
    settings: Overrides = None,
    executor: Annotated[str, typer.Option(help=f"How updates are computed: {', '.join((AUTO, *EXECUTORS))}.")] = AUTO,
    workers: Annotated[
        int | None, typer.Option(help="How many chunks are computed at once. Default: one a processor.", min=1)
    ] = None,
    chunk: Annotated[int | None, typer.Option(help="How many clients train at once in a chunk.", min=1)] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where torch modules train: cuda, mps ... Default: as their factory says."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder; it must not exist. Default: runs/RUN_ID.")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.sqlite",
            help="Charge the run to this ledger, for a model that is to be released: its noise is then secret.",
        ),
    ] = None,
    scope: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --ledger: whose data these are. Default: simulation.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="EPSILON", help="With --ledger: what all runs of the scope may cost; makes it, or sets its limit."
        ),
    ] = None,
    actor: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --ledger: who answers for it. Default: unnamed.")
    ] = None,
    resume_from: Annotated[
        Path | None, typer.Option("--resume", metavar="DIR", help="Go on with an interrupted run, in its folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a plan in simulation: train, compare, and write a run folder with a report."""
    console = screen()
    charged = _ledger(ledger, {"scope": scope, "budget": budget, "actor": actor})
    if resume_from is not None:
        if plan is not None or settings or out is not None or charged is not None:
            raise typer.BadParameter(
                "it goes on with the plan and folder that it has; give nothing beside it.", param_hint="--resume"
            )
        with watch(console) as seen, running(lambda: seen.folder or resume_from):
            result = resume(resume_from, callbacks=[seen])
        if seen.folder is None:
            sentence(console, "already finished: this is its result")
    else:
        if plan is None:
            raise typer.BadParameter("name a plan, or a run folder with --resume.", param_hint="PLAN.toml")
        read = read_plan(plan, settings or [])
        with watch(console) as seen, running(lambda: seen.folder):
            how: dict[str, Any] = {"executor": executor, "workers": workers, "chunk": chunk, "device": device}
            result = run(read, out=out, **how, ledger=charged, callbacks=[seen])
    _show(console, result)
    if as_json:
        print_json({**result.summary, "folder": str(result.path), "report": str(result.report)})


def _ledger(path: Path | None, options: Mapping[str, Any]) -> LedgerFile | None:
    """Return the ledger that is to be charged, or None."""
    given = {name: value for name, value in options.items() if value is not None}
    if path is not None:
        return LedgerFile(path=path, **given)
    for name in given:
        raise typer.BadParameter("it needs --ledger.", param_hint=f"--{name}")
    return None


def _show(console: Console, result: RunResult) -> None:
    """Print the result, and where it lies."""
    folder = RunFolder.open(result.path)
    events = [event for event in folder.events() if event["event"] != "summary"]
    show_outcome(console, result.summary, events, folder.read(PLAN))
    if meaning := nested(result.summary, "privacy", "meaning"):
        private = result.summary["privacy"]
        number = "" if private["ledger"] else f"{private['epsilon_charged']:.4g} at delta {private['delta']:g}, "
        sentence(console, f"epsilon: {number}{meaning}")
    console.print()
    command_line(console, "report", str(result.path / REPORT))
    if not nested(result.summary, "privacy", "ledger"):
        command_line(console, "replay", f"hansa replay {shown(result.path)}")
