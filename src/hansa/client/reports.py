"""A client's reports: sent until the server has answered for the whole, and what became of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hansa.client.participations import Participations
from hansa.client.records import Outcome, Pending, Report
from hansa.client.state import StateFolder
from hansa.client.transport import Transport, said_by_hansa
from hansa.core.errors import RefusedError
from hansa.core.killpoints import reached
from hansa.wire.generated import federation_pb2 as wire

log = logging.getLogger("hansa.client")

_OUTCOMES: Final[Mapping[int, Outcome]] = {
    wire.OUTCOME_INCLUDED: "included",
    wire.OUTCOME_NOT_INCLUDED: "not-included",
}
_VERDICTS: Final = ("HANSA-REPORT-", "HANSA-NOT-FOUND", "HANSA-REQUEST-", "HANSA-SECAGG-", "HANSA-RING-")
"""Errors by which a server says that it never takes this report. After any other it stays to be sent."""
AGAIN: Final = 5.0
"""Seconds until an agent comes back whose answer is not wanted."""


@dataclass(frozen=True)
class Reports:
    """Sends the reports that are on disk, and learns what became of them."""

    state: StateFolder
    transport: Transport
    participations: Participations

    def send(self, pending: Pending, *, resumes: bool) -> float:
        """Send a report, until the server has answered for the whole of it; return in how many seconds to go on.

        Raises RefusedError where it stays to be sent.
        """
        assignment = pending.id
        path = f"/v1/updates/{assignment.run}/{assignment.kind}/{assignment.round}/{assignment.attempt}"
        try:
            answer = self.transport.upload(
                path, pending.sha256, pending.file, start=pending.start, size=pending.size, resumes=resumes
            )
        except RefusedError as error:
            if not error.code.startswith(_VERDICTS) or not said_by_hansa(error):
                raise
            log.warning("refused assignment=%s code=%s found=%r", assignment, error.code, error.found)
            self.state.acknowledged(pending, "refused")
            self.participations.forget(assignment)
            return AGAIN
        reached("client.acknowledged")
        late = answer.verdict == wire.VERDICT_LATE
        self.state.acknowledged(pending, "late" if late else "open")
        if late:
            self.participations.forget(assignment)
        log.info("reported assignment=%s verdict=%s", assignment, "late" if late else "accepted")
        return 0.0

    def keep_back(self, pending: Pending) -> None:
        """Send nothing that was computed before consent was withdrawn; the server tells whether it has it already."""
        self.state.acknowledged(pending, "open")

    def learn(self, report: Report, told: wire.Outcome) -> None:
        """Take note of a report's outcome, if a check-in told it."""
        outcome = _OUTCOMES.get(told)
        if outcome is None:
            return
        reached("client.outcome-learned")
        self.state.learned(report.id, outcome)
        if outcome != "included":
            self.participations.forget(report.id)
        log.info("outcome assignment=%s is=%s", report.id, outcome)
