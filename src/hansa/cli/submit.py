"""``hansa submit``: a plan to a server. The initial model is built here, the server never imports its factory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from hansa.cli.console import command_line, print_json, screen, sentence
from hansa.cli.operator_client import Operator, in_path, operator
from hansa.cli.options import AsJson, CaFile, Overrides, ServerUrl, TokenFile
from hansa.cli.rounds import measured, named, others
from hansa.core.errors import HansaError, RunError
from hansa.reporting.figures import bytes_text

_POLL: Final = 0.5
_QUIET: Final = 15.0
"""Seconds without a word after which it is told what is waited for."""
_AWAY: Final = frozenset({"HANSA-SERVER-UNREACHABLE", "HANSA-SERVER-BUSY", "HANSA-SERVER-LIMIT"})
_LONGEST_AWAY: Final = 600.0
"""Seconds for which a server may be away before the wait ends; its run goes on without us."""


def command(  # noqa: PLR0913 - a command's options
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="The plan.")],
    *,
    population: Annotated[str, typer.Option(metavar="NAME", help="Who is to take part.")],
    settings: Overrides = None,
    eligibility: Annotated[
        str, typer.Option(metavar="EXPRESSION", help="Only these clients: 'attributes.region == \"eu\"'.")
    ] = "",
    priority: Annotated[int, typer.Option(help="The higher run goes first.", min=-100, max=100)] = 0,
    purpose: Annotated[str, typer.Option(help="What the model is for; sites accept plans by it.")] = "",
    wait_for: Annotated[
        int, typer.Option(metavar="CLIENTS", help="Open no round before so many clients are there.", min=1)
    ] = 1,
    shape: Annotated[
        str | None, typer.Option(metavar="28,28", help="The shape of one example, where no data are here to tell.")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="With --shape: classes of the label, 0 for a number.")] = None,
    begin_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Begin from this model of the same form (hansa models download), not from a new one.",
            exists=True,
            dir_okay=False,
            readable=True,
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the run ends, and tell its rounds.")] = False,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Submit a plan to a server; the initial model is built here, from the code that the plan names."""
    from hansa.cli.job_building import build_job  # noqa: PLC0415 - help comes at once
    from hansa.wire.plans import read_plan  # noqa: PLC0415

    console = screen()
    read = read_plan(plan, settings or [])
    options = {"eligibility": eligibility, "priority": priority, "purpose": purpose, "wait_for": wait_for}
    content = None if begin_from is None else begin_from.read_bytes()
    job = build_job(read, population=population, signature=_signature(shape, classes), begin_from=content, **options)
    for note in job.notes:
        console.print(Text("note: ", style="yellow").append(note, style="none"))
    with operator(server, token_file, ca) as calls:
        calls.upload(f"/models/{job.body['model']}", job.model)
        taken = calls.call("POST", "/jobs", job.body)
        run = taken["run"]["id"]
        command_line(console, "run", run)
        command_line(console, "plan", taken["job"]["plan_sha256"])
        if (stored := taken.get("round_bytes")) is not None:
            sentence(console, f"the server stores about {bytes_text(stored)} of updates in an open round")
        if wait:
            try:
                taken["run"] = follow(calls, console, run)
            except KeyboardInterrupt:
                sentence(console, "you wait no more, and the run goes on")
                command_line(console, "watch", f"hansa rounds {run}")
                command_line(console, "end it", f"hansa runs cancel {run}")
                raise
            _close(calls, console, run)
    if not wait:
        command_line(console, "watch", f"hansa rounds {run}")
    if as_json:
        print_json(taken)


def follow(calls: Operator, console: Console, run: str) -> dict[str, Any]:
    """Tell a run's rounds until it ends; return it. Raises RunError where it does not finish.

    A server that is away for a while, as at a restart, is waited for. Raises HansaError where it stays away.
    """
    told: set[str] = set()
    spoken = answered = time.monotonic()
    while True:
        try:
            found = calls.get(f"/runs/{in_path(run)}")
            rounds = calls.get(f"/runs/{in_path(run)}/rounds", limit=100)["rounds"]
        except HansaError as error:
            if error.code not in _AWAY or time.monotonic() - answered > _LONGEST_AWAY:
                raise
            if spoken <= answered or time.monotonic() - spoken > _LONGEST_AWAY / 10:
                sentence(console, f"waiting for the server: {error.found}")
                spoken = time.monotonic()
            time.sleep(2 * _POLL)
            continue
        answered = time.monotonic()
        for each in reversed(rounds):
            if each["state"] in ("closed", "abandoned") and named(each) not in told:
                told.add(named(each))
                sentence(console, _told(each))
                spoken = answered
        if found["state"] == "finished":
            return found
        if found["state"] != "running":
            raise RunError(
                "HANSA-RUN-STATE",
                rule="A run that is waited for goes to its end.",
                found=f"It is {found['state']}{': ' + found['why'] if found['why'] else ''}.",
                action=f"See: hansa events --run {run}",
            )
        if answered - spoken > _QUIET:
            sentence(console, _awaited(rounds, _held_up(calls, run)))
            spoken = answered
        time.sleep(_POLL)


def _close(calls: Operator, console: Console, run: str) -> None:
    """Say what a finished run lacked, and how its model is fetched."""
    for warning in _missing(calls.get(f"/runs/{in_path(run)}/rounds", limit=1000)["rounds"]):
        console.print(Text("warning: ", style="yellow").append(warning, style="none"))
    command_line(console, "fetch", f"hansa models download {run} --out {run}.safetensors")


def _told(round_: dict[str, Any]) -> str:
    """Return a round that is over in a line: whose updates count, what became of the others, what was measured."""
    funnel = round_["funnel"]
    parts = [round_["state"], f"{funnel['included']} of {funnel['picked']}"]
    if round_["state"] == "closed":
        parts.append(others(funnel))
    return f"{named(round_)}: {', '.join(part for part in (*parts, measured(round_['report'])) if part)}"


def _missing(rounds: list[dict[str, Any]]) -> list[str]:
    """Return what a finished run's newest rounds of training lacked, in sentences; none where all came."""
    trained = [each["funnel"] for each in rounds if each["kind"] == "training" and each["state"] == "closed"]
    lacking = [each for each in trained if each["included"] < each["picked"]]
    found = []
    alone = sum(each["included"] == 1 for each in trained)
    if alone:
        found.append(f"{alone} of {len(trained)} rounds of training counted the update of a single client")
    declined = sum(each["fates"].get("declined", 0) > 0 for each in lacking)
    if declined:
        found.append(f"in {declined} of {len(trained)} rounds of training clients declined; the log of each says why")
    return found


def _held_up(calls: Operator, run: str) -> str:
    """Return why the newest event of a run says that it waits; nothing where it says something else."""
    newest = calls.get(f"/runs/{in_path(run)}/events", limit=1)["events"]
    return newest[0]["detail"]["why"] if newest and newest[0]["kind"] in ("run.waiting", "round.waiting") else ""


def _awaited(rounds: list[dict[str, Any]], why: str) -> str:
    """Return what a run waits for: ``why`` where its events say that, else by its newest rounds, the newest first."""
    if why:
        return f"waiting: {why}"
    if not rounds or rounds[0]["state"] in ("closed", "abandoned"):
        return "waiting for clients: no round is open (hansa clients list POPULATION says when each was last seen)"
    funnel = rounds[0]["funnel"]
    told = others(funnel) or "none has answered"
    return (
        f"{named(rounds[0])} waits for its clients: of {funnel['picked']}, {told} "
        "(hansa clients list POPULATION says when each was last seen)"
    )


def _signature(shape: str | None, classes: int | None) -> Any:
    if (shape is None) != (classes is None):
        raise typer.BadParameter("give --shape and --classes together.")
    if shape is None or classes is None:
        return None
    from hansa.core.nouns import Signature  # noqa: PLC0415 - with a shape

    try:
        return Signature(tuple(int(length) for length in shape.split(",")), classes)
    except ValueError:
        raise typer.BadParameter("must be numbers with commas: 28,28.", param_hint="--shape") from None
