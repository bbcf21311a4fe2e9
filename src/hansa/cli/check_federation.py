"""What ``hansa check`` says of a plan without ``[data]``: one for a federation, checked as a submission is."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from hansa.algorithms.plan import Plan, plan_sha256
from hansa.algorithms.round_storage import update_bytes
from hansa.algorithms.rounds import travelling_layout
from hansa.cli.console import facts, heading
from hansa.cli.job_building import build_job, signature_of
from hansa.cli.promises import pieces, privacy_promises, secure_promises, sends, stored
from hansa.core.errors import PlanError
from hansa.core.layout import Layout
from hansa.core.nouns import Signature
from hansa.core.schema import to_mapping
from hansa.evaluation.metrics import choose
from hansa.reporting.disclosure import server_sees
from hansa.reporting.figures import bytes_text, count_text
from hansa.wire.jobs import layout_from_mapping

_LATER: Final = "what only a server knows (its population, what code it allows) is checked by hansa submit"


@dataclass(frozen=True)
class FederationPlan:
    """A plan that stands without data of its own."""

    plan: Plan
    layout: Layout
    """What travels."""
    metrics: tuple[str, ...]
    notes: tuple[str, ...]

    def promises(self) -> list[tuple[str, str]]:
        """Return what the plan promises, as names and sentences."""
        seen = server_sees(to_mapping(self.plan), metrics=self.metrics, on_clients=True)
        found = privacy_promises(self.plan, self.layout)
        found += [("the server sees" if phrase == seen[0] else "", phrase) for phrase in seen]
        found += secure_promises(self.plan, self.layout, None)
        return [*found, ("stays with clients", "examples")]

    def costs(self) -> dict[str, int]:
        """Return what a round costs a client, in bytes, without what is around a message."""
        parameters, down = self.layout.branch("params").size, 4 * self.layout.size
        up = update_bytes(self.plan, self.layout)
        return {"parameters": parameters, "bytes_down_per_client": down, "bytes_up_per_client": up}

    def show(self, console: Console) -> None:
        """Print it for people."""
        costs = self.costs()
        console.print(Text(f"{self.plan.name}: ", style="bold").append("the plan is valid and sound", style="green"))
        for note in self.notes:
            console.print(Text("note: ", style="yellow").append(note, style="none"))
        rows = [
            ("model", f"{count_text(costs['parameters'])} parameters"),
            ("a client receives", f"{bytes_text(costs['bytes_down_per_client'])} a round, 4 bytes a number"),
            ("a client sends", f"{bytes_text(costs['bytes_up_per_client'])} a round, {sends(self.plan)}"),
            ("at rest", stored(self.plan, self.layout, None)),
        ]
        for title, pairs in (
            ("It promises", self.promises()),
            ("It costs", rows),
            ("It is made of", pieces(self.plan)),
            ("Digests", [("plan_sha256", plan_sha256(self.plan))]),
        ):
            heading(console, title)
            facts(console, pairs)

    def answer(self) -> dict[str, Any]:
        """Return it for programs."""
        told: dict[str, list[str]] = {}
        title = ""
        for name, sentence in self.promises():
            title = name or title
            told.setdefault(title.replace(" ", "_"), []).append(sentence)
        return {
            "name": self.plan.name,
            "sound": True,
            "plan_sha256": plan_sha256(self.plan),
            "promises": {name: " ".join(said) if len(said) == 1 else said for name, said in told.items()},
            "costs": self.costs(),
            "metrics": list(self.metrics),
            "plan": to_mapping(self.plan),
            "notes": list(self.notes),
        }


def check_federation(plan: Plan) -> FederationPlan:
    """Return a plan without data that stands. Raises HansaError: PlanError with every problem that it has."""
    job = build_job(plan, population="")
    signature = None if plan.features is None else signature_of(plan.features)
    if signature is None:
        raise LookupError("a job without data is built of features that are complete")
    notes = ("the plan has no [data]: it is for a federation, where every client brings its own", *job.notes)
    return FederationPlan(
        plan=plan,
        layout=travelling_layout(plan, layout_from_mapping({"lanes": [], **job.body["layout"]})),
        metrics=tuple(metric.name for metric in choose(plan.evaluation.metrics, signature)),
        notes=(*notes, *_refused(plan, signature), _LATER),
    )


def _refused(plan: Plan, signature: Signature) -> tuple[str, ...]:
    """Raise PlanError for what a server would refuse; return a note where its rules are not installed here."""
    if find_spec("sqlalchemy") is None:
        return ("the extra hansa[server] is not installed: a server checks more than was checked here",)
    from hansa.server.submissions import federation_problems  # noqa: PLC0415 - an extra of its own

    problems = list(federation_problems(plan, signature))
    if problems:
        raise PlanError(problems)
    return ()
