"""In how many rounds of a run under privacy the client took part: a plan's promise about it is kept here too.

A round counts from the moment that something of it may leave, until the server says that it was not included. So a
server that looks, or errs, gets no more of the client than the plan's noise is for. One that lies about what it
included, or opens attempt after attempt of a round, is defended against by nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hansa.client.records import Id
from hansa.client.state import StateFolder
from hansa.wire.jobs import JobDescriptor

PARTICIPATIONS: Final = "participations.json"
_KEPT_RUNS: Final = 4096


class Participations:
    """The rounds of each run that count, kept on disk."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state

    def objections(self, job: JobDescriptor, assignment: Id) -> list[str]:
        """Return why the client may not take part in a round, where the plan's privacy limits how often it may."""
        cohort = _limited(job, assignment)
        if cohort is None:
            return []
        others = [number for number in self._of(assignment.run) if number != assignment.round]
        most, apart = cohort.get("max_participations"), cohort["rounds"]
        found = []
        if most is not None and len(others) >= most:
            found.append(f"the client took part in {len(others)} rounds, and the plan's noise is for {most}")
        if any(abs(assignment.round - number) < apart for number in others):
            found.append(f"the client took part less than {apart} rounds ago, for which the plan's noise is not made")
        return found

    def note(self, job: JobDescriptor, assignment: Id) -> None:
        """Count a round, on disk before anything of it leaves."""
        if _limited(job, assignment) is not None:
            self._write(assignment.run, sorted({*self._of(assignment.run), assignment.round}))

    def forget(self, assignment: Id) -> None:
        """Take back a round in which the client was not included."""
        if assignment.kind == "training" and assignment.round in (rounds := self._of(assignment.run)):
            self._write(assignment.run, [number for number in rounds if number != assignment.round])

    def _of(self, run: str) -> list[int]:
        return list((self._state.read_json(PARTICIPATIONS) or {}).get(run, []))

    def _write(self, run: str, rounds: list[int]) -> None:
        known = dict(self._state.read_json(PARTICIPATIONS) or {})
        known.pop(run, None)
        self._state.write_json(PARTICIPATIONS, dict([*known.items(), (run, rounds)][-_KEPT_RUNS:]))


def _limited(job: JobDescriptor, assignment: Id) -> Mapping[str, Any] | None:
    """Return the cohort of a plan whose privacy counts on clients that rest, for a round of training."""
    cohort = job.plan.get("cohort", {})
    limited = job.plan.get("privacy") is not None and cohort.get("kind") == "min-separation"
    return cohort if limited and assignment.kind == "training" else None
