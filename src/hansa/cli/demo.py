"""``hansa demo``: the real thing on one machine. A server, four hospitals, one model; then everything is stopped."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from hansa.cli.console import command_line, print_json, screen, sentence
from hansa.cli.options import AsJson, Overrides
from hansa.cli.outcome import show_outcome
from hansa.core.errors import PlanError, Problem, RunError
from hansa.reporting.run_folder import PLAN, REPORT, RunFolder, new_run_id, taken

POPULATION: Final = "hospitals"
_POLL: Final = 0.1
_PATIENCE: Final = 120.0
"""Seconds without a closed round after which the demonstration gives up."""


def command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help='A plan with source = "heart".')],
    *,
    settings: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder; it must not exist. Default: runs/RUN_ID.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train across four hospitals: a server and four agents as processes on this machine, over TLS."""
    from hansa.cli.job_building import build_job  # noqa: PLC0415 - help comes at once
    from hansa.simulation.preparation import prepare  # noqa: PLC0415 - likewise
    from hansa.wire.plans import read_plan  # noqa: PLC0415 - likewise

    console = screen()
    if out is not None and out.exists():
        raise taken(out)
    read = read_plan(plan, settings or [])
    if read.data is None or read.data.source != "heart":
        raise PlanError([Problem("data.source", 'the demonstration is of source = "heart".')])
    prepared = prepare(read)
    with local_hospitals(console, prepared) as (federation, calls):
        job = build_job(prepared.plan, population=POPULATION, wait_for=prepared.population)
        calls.upload(f"/models/{job.body['model']}", job.model)
        run = calls.call("POST", "/jobs", job.body)["run"]["id"]
        found = _follow(calls, console, run)
        rounds = calls.get(f"/runs/{run}/rounds", limit=1000)["rounds"]
        model = calls.download(f"/models/{found['model']}")
        states = {name: federation.state(name) for name in prepared.data.train.names}
        summary, folder = _write(out, prepared, found, rounds, model=model, states=states)
    events = [event for event in folder.events() if event["event"] != "summary"]
    show_outcome(console, summary, events, folder.read(PLAN))
    for note in summary["notes"]:
        sentence(console, note, style="dim")
    console.print()
    command_line(console, "report", str(folder.path / REPORT))
    if as_json:
        print_json({**summary, "folder": str(folder.path), "report": str(folder.path / REPORT)})


@contextmanager
def local_hospitals(
    console: Console, prepared: Any, folder: Path | None = None, port: int = 0
) -> Iterator[tuple[Any, Any]]:
    """Start a server and an agent for each hospital; yield the federation and an operator; stop everything.

    Without a folder, what the processes keep is removed at the end.
    """
    from hansa.cli.demo_data import write_hospitals  # noqa: PLC0415 - help comes at once
    from hansa.cli.local_federation import LocalFederation  # noqa: PLC0415 - likewise
    from hansa.cli.operator_client import operator  # noqa: PLC0415 - likewise

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is stopped
    with tempfile.TemporaryDirectory(prefix="hansa-demo-") as temporary:
        place = folder or Path(temporary)
        sites = write_hospitals(place / "hospitals", prepared.data)
        with LocalFederation(place, port=port) as federation:
            federation.start_server()
            command_line(console, "server", federation.url)
            with operator(federation.url, federation.token_file, federation.ca) as calls:
                _invite(federation, calls, sites)
                sentence(console, f"{len(sites)} agents, each with a hospital's own patients: {', '.join(sites)}")
                yield federation, calls


def _invite(federation: Any, calls: Any, sites: dict[str, Path]) -> None:
    """Make the population and invite its hospitals, in order: that is the order of the population's list."""
    known = {each["name"] for each in calls.get("/populations")["populations"]}
    if POPULATION not in known:
        calls.call("POST", "/populations", {"name": POPULATION})
    federation.introduce(sites)
    for name, data in sites.items():
        token = ""
        if not (federation.state(name) / "identity.json").exists():
            token = calls.call("POST", f"/populations/{POPULATION}/invitations", {"name": name})["token"]
        federation.start_agent(name, data=data, token=token)


def _follow(calls: Any, console: Console, run: str) -> dict[str, Any]:
    """Tell evaluations as they come, until the run ends; return it. Raises RunError if it does not finish."""
    told, since = -1, time.monotonic()
    while True:
        found: dict[str, Any] = calls.get(f"/runs/{run}")
        newest = calls.get(f"/runs/{run}/rounds", limit=5)["rounds"]
        for each in reversed(newest):
            if each["kind"] == "evaluation" and each["state"] == "closed" and each["round"] > told:
                told, since = each["round"], time.monotonic()
                name, value = next(iter(each["report"]["federated"].items()))
                sentence(console, f"round {told} of {found['rounds']}: {name} {value['overall']:.3f}")
        if found["state"] == "finished":
            return found
        if found["state"] != "running" or time.monotonic() - since > _PATIENCE:
            raise RunError(
                "HANSA-RUN-STATE",
                rule="The demonstration's run goes to its end.",
                found=f"It is {found['state']} after round {found['round']}: {found['why'] or 'nothing moves'}.",
                action="Run it again; `hansa up` keeps the server running, to look into its events.",
            )
        time.sleep(_POLL)


def _write(out: Path | None, *arguments: Any, **options: Any) -> tuple[dict[str, Any], RunFolder]:
    from hansa.cli.federated_run import write_run  # noqa: PLC0415 - help comes at once

    return write_run(out or Path("runs") / new_run_id(), *arguments, **options)
