"""``hansa check``: what a plan promises and costs, or why it does not build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from hansa.algorithms.secure_sums import training_code
from hansa.cli.check_federation import check_federation
from hansa.cli.console import facts, heading, print_json, screen
from hansa.cli.options import AsJson, Overrides
from hansa.cli.promises import (
    NO_EPSILON,
    NO_UNIT,
    Costs,
    costs,
    held_out,
    pieces,
    privacy_promises,
    promises,
    secure_promises,
)
from hansa.core.schema import to_mapping
from hansa.reporting.disclosure import IN_THE_CLEAR, SUM_ONLY
from hansa.reporting.example_sentences import told_examples
from hansa.reporting.privacy_sentences import told
from hansa.simulation.preparation import Prepared, prepare
from hansa.wire.plans import read_plan


def command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="The plan.")],
    *,
    settings: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say what a plan promises and what it costs, or list every problem with its key path.

    The data are read and a round is tried out; nothing is kept. A plan that names no data is one for a federation, and
    is checked as its submission will be.
    """
    console = screen()
    read = read_plan(plan, settings or [])
    if read.data is None:
        stands = check_federation(read)
        stands.show(console)
        if as_json:
            print_json(stands.answer())
        return
    prepared = prepare(read)
    cost = costs(prepared)
    _show(console, prepared, cost)
    if as_json:
        print_json(_answer(prepared, cost))


def _show(console: Console, prepared: Prepared, cost: Costs) -> None:
    """Print the answer for people."""
    console.print(Text(f"{prepared.plan.name}: ", style="bold").append("the plan is valid and sound", style="green"))
    for note in prepared.notes:
        console.print(Text("note: ", style="yellow").append(note, style="none"))
    for title, pairs in (
        ("It promises", promises(prepared)),
        ("It costs", cost.rows()),
        ("It is made of", [*pieces(prepared.plan), ("judged by", held_out(prepared))]),
        ("Digests", [("plan_sha256", prepared.plan_sha256), ("data_sha256", prepared.data.sha256)]),
    ):
        heading(console, title)
        facts(console, pairs)


def _private(prepared: Prepared) -> dict[str, Any]:
    """Return what differential privacy the plan promises."""
    numbers = told(prepared.plan, training_code(prepared.plan, prepared.first.layout))
    examples = told_examples(prepared.plan)
    if numbers is None and examples is None:
        return {"privacy_unit": NO_UNIT, "epsilon": NO_EPSILON}
    of = numbers or examples or {}
    more = {name: told for name, told in (("privacy", numbers), ("example_privacy", examples)) if told is not None}
    said = [text for _, text in privacy_promises(prepared.plan, prepared.first.layout)]
    return {"privacy_unit": of["unit"], "epsilon": of["epsilon_charged"], **more, "said": said}


def _secure(prepared: Prepared) -> dict[str, Any]:
    """Return the sentences about secure sums, by whom or what they are about."""
    told: dict[str, list[str]] = {}
    title = ""
    for name, sentence in secure_promises(prepared.plan, prepared.first.layout, prepared.population):
        title = name or title
        told.setdefault(title.replace(" ", "_"), []).append(sentence)
    return {"secure_aggregation": told} if told else {}


def _answer(prepared: Prepared, cost: Costs) -> dict[str, Any]:
    """Return the answer for programs."""
    return {
        "name": prepared.plan.name,
        "sound": True,
        "plan_sha256": prepared.plan_sha256,
        "data_sha256": prepared.data.sha256,
        "promises": {
            **_private(prepared),
            "server_sees": IN_THE_CLEAR if prepared.plan.secure_aggregation is None else SUM_ONLY,
            **_secure(prepared),
        },
        "costs": cost.as_mapping(),
        "metrics": [metric.name for metric in prepared.metrics],
        "plan": to_mapping(prepared.plan),
        "notes": list(prepared.notes),
    }
