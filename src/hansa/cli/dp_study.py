"""``hansa dp study``: whether privacy is affordable, measured over budgets, cohorts and seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from hansa.algorithms.plan import Plan
from hansa.cli.console import NOT_DEFINED_STYLE, command_line, heading, new_table, print_json, screen, sentence, shown
from hansa.cli.options import AsJson, Overrides
from hansa.core.sections import Evaluation
from hansa.reporting.figures import HIGHER_IS_BETTER, LOWER_IS_BETTER, metric_name, metric_text, plural
from hansa.simulation.choice import AUTO, EXECUTORS, asked_for
from hansa.wire.plans import read_plan, write_plan

_RESULTS: Final = "results.json"
_REPORT: Final = "report.html"
_SILENCE: Final = 15.0
"""Seconds between two lines about a run that goes on."""


def study(  # noqa: PLR0913 - a command's options
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="The plan; it has a table privacy.")],
    *,
    epsilon: Annotated[
        str, typer.Option(metavar="E,E,...", help="Budgets to try; the run without privacy is always there.")
    ] = "1,2,4,8",
    cohort: Annotated[
        str, typer.Option(metavar="N,N,...", help="Sizes of the cohort to try. Default: the plan's.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting, from the plan's seed on.")] = 3,
    metric: Annotated[
        str | None, typer.Option(help="What is compared, on the server's own examples. Default: the plan's first.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="How far behind the run without privacy is affordable, in the metric's unit.")
    ] = 0.02,
    settings: Overrides = None,
    executor: Annotated[str, typer.Option(help=f"How updates are computed: {', '.join((AUTO, *EXECUTORS))}.")] = AUTO,
    workers: Annotated[int | None, typer.Option(help="How many chunks are computed at once.", min=1)] = None,
    chunk: Annotated[int | None, typer.Option(help="How many clients train at once in a chunk.", min=1)] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The study's folder. What is finished in it is not run again.")
    ] = Path("study"),
    as_json: AsJson = False,
) -> None:
    """Find out whether privacy is affordable: a plan over budgets, cohorts and seeds, beside none, as a report."""
    from hansa.simulation.study import Study, settings_of  # noqa: PLC0415 - only where a command needs it

    read = read_plan(plan, settings or [])
    points = settings_of(read, _numbers(epsilon, "--epsilon"), [int(size) for size in _numbers(cohort, "--cohort")])
    console = screen()
    sentence(
        console, f"{plural(len(points), 'setting')} with {plural(seeds, 'seed')} each, {read.rounds:,} rounds a run"
    )
    asked_for(executor, workers=workers, chunk=chunk)  # words that mean nothing end the command, not each setting
    work = Study(out, _metric(read, metric), executor=executor, workers=workers, chunk=chunk)
    rows = []
    for found in work.measured(points, seeds, lambda name: [_Lines(console, name)]):
        rows.append(found.as_json())
        _line(console, rows[-1])
    results = _results(read, points, rows, work.metric or "", tolerance=tolerance, seeds=seeds)
    _write(out, results, read)
    _show(console, results, out)
    if as_json:
        print_json({**results, "folder": str(out), "report": str(out / _REPORT)})


def _numbers(text: str, option: str) -> list[float]:
    """Return the numbers of a list with commas; "none" is the run without privacy, which is always there."""
    words = [word.strip() for word in text.split(",")]
    try:
        found = [float(word) for word in words if word not in {"", "none"}]
    except ValueError:
        found = [-1.0]
    whole = option != "--cohort" or all(number.is_integer() for number in found)
    if not whole or not all(0 < number < 1e9 for number in found):
        raise typer.BadParameter(f"{text!r} is not a list of numbers above 0, with commas.", param_hint=option)
    return list(dict.fromkeys(found))


def _metric(plan: Plan, given: str | None) -> str | None:
    evaluation: Evaluation = plan.evaluation
    known = HIGHER_IS_BETTER | LOWER_IS_BETTER
    if given is not None and (given not in known or (evaluation.metrics and given not in evaluation.metrics)):
        names = ", ".join(evaluation.metrics or sorted(known))
        raise typer.BadParameter(f"{given!r} is not measured by this plan: {names}.", param_hint="--metric")
    return given or next(iter(evaluation.metrics), None)


class _Lines:
    """Says which run is computed, and now and then how far it is."""

    def __init__(self, console: Console, name: str) -> None:
        self.console, self.name, self.rounds = console, name, 0
        self.last = time.monotonic()

    def __call__(self, event: Mapping[str, Any]) -> None:
        self.rounds = event.get("rounds", self.rounds) if event["event"] == "start" else self.rounds
        if event["event"] == "round" and time.monotonic() - self.last > _SILENCE:
            self.last = time.monotonic()
            sentence(self.console, f"{self.name}: round {event['round']}/{self.rounds}", "dim")


def _line(console: Console, row: Mapping[str, Any]) -> None:
    values = ", ".join(metric_text(value) for value in row["utility"].values())
    console.print(Text(f"{row['name']}: ").append(values or "not measured", style="" if values else NOT_DEFINED_STYLE))


def _results(  # noqa: PLR0913 - a study in full
    plan: Plan, points: Sequence[Any], rows: list[dict[str, Any]], metric: str, *, tolerance: float, seeds: int
) -> dict[str, Any]:
    from hansa.reporting import study_page  # noqa: PLC0415 - only where a command needs it

    found, twin = study_page.recommended(rows, metric, tolerance), study_page.best_twin(rows, metric)
    chosen = next((point.plan for point in points if found is not None and point.name == found["name"]), None)
    privacy: Any = plan.privacy
    return {
        "name": plan.name,
        "metric": metric,
        "tolerance": tolerance,
        "seeds": seeds,
        "settings": rows,
        "recommended": found and found["name"],
        "without_privacy": twin and twin["name"],
        "verdict": study_page.verdict(rows, metric, tolerance),
        "risks": list(study_page.risks(rows, privacy, seeds)),
        "promises": [] if chosen is None else _promises(chosen),
    }


def _promises(plan: Plan) -> list[tuple[str, str]]:
    """Return what a plan promises beside its epsilon, which the runs tell."""
    from hansa.reporting.privacy_sentences import sentences  # noqa: PLC0415 - only where a command needs it

    kept, about = [], ""
    for named, text in sentences(plan):
        about = named or about
        if about != "epsilon":
            kept.append((named, text))
    return kept


def _write(out: Path, results: Mapping[str, Any], plan: Plan) -> None:
    from hansa.reporting.run_folder import replace_file, storing  # noqa: PLC0415 - only where a command needs it
    from hansa.reporting.study_page import render_study  # noqa: PLC0415 - as above

    privacy: Any = plan.privacy
    page = render_study(results, privacy=privacy, plan_text=write_plan(plan))
    with storing(out):
        replace_file(out / _RESULTS, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
        replace_file(out / _REPORT, page.encode())


def _show(console: Console, results: Mapping[str, Any], out: Path) -> None:
    columns = ("setting", "charged", "reference", metric_name(results["metric"]), "spread")
    table = new_table(columns)
    for row in results["settings"]:
        private = row["privacy"]
        cost = [f"{private[f'epsilon_{kind}']:.4g}" if private else "none" for kind in ("charged", "reference")]
        if row["utility"]:
            table.add_row(row["name"], *cost, metric_text(row["mean"]), metric_text(row["deviation"]))
    console.print()
    console.print(table)
    failed = [(row["name"], reason) for row in results["settings"] for reason in row["failures"]]
    if failed:
        heading(console, "Not measured, in whole or in part")
        for name, reason in failed:
            sentence(console, f"{name}: {reason}")
    console.print()
    sentence(console, results["verdict"], "bold")
    for risk in results["risks"][:2]:
        sentence(console, risk)
    console.print()
    command_line(console, "report", shown(out / _REPORT))
