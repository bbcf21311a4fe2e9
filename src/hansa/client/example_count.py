"""How often this client trained in a run whose plan protects single examples: the client counts, and ends it there.

Every training that leaves noised steps behind is a release to whoever receives it, also where the server tries a round
again or leaves the report out. So the count goes up, on disk, before the work begins, and nothing takes it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hansa.client.records import Id
from hansa.client.state import StateFolder
from hansa.core.errors import RefusedError

TRAININGS: Final = "trainings.json"
"""Run -> how often the client trained in it."""


def count_training(state: StateFolder, assignment: Id, plan: Mapping[str, Any]) -> None:
    """Count a training of a plan with ``trainer.example_privacy``; any other plan is not counted.

    Raises RefusedError beyond the plan's ``max_participations``, and for anything but training: whatever else is
    computed from examples has no noise.
    """
    given = plan.get("trainer", {}).get("example_privacy")
    if given is None:
        return
    if assignment.kind != "training":
        raise _refused(
            "Under trainer.example_privacy nothing but noised training leaves a client.",
            f"The server asked for {assignment.kind}.",
        )
    counted: dict[str, int] = state.read_json(TRAININGS) or {}
    done, most = counted.get(assignment.run, 0), int(given.get("max_participations") or 0)
    if done >= most:
        raise _refused(
            f"Under this plan's trainer.example_privacy a client trains at most {most} times, tries included.",
            "The server asked once more.",
        )
    state.write_json(TRAININGS, {**counted, assignment.run: done + 1})


def _refused(rule: str, found: str) -> RefusedError:
    return RefusedError(
        "HANSA-POLICY-REFUSED",
        rule=rule,
        found=found,
        action="Tell the operator; a plan with a larger max_participations allows more, for more noise.",
    )
