"""An agent's part in secure sums, one after another: what it computed goes in there and nowhere else."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hansa.client.policy import SecureSums
from hansa.client.records import Id, Pending
from hansa.client.state import DECLINED, StateFolder
from hansa.client.sum_folder import Begun, SumFolder
from hansa.client.transport import Transport, said_by_hansa
from hansa.client.trust import id_of, on_the_wire
from hansa.core.clock import Clock
from hansa.core.errors import RefusedError
from hansa.core.killpoints import reached
from hansa.wire.generated import federation_pb2 as wire
from hansa.wire.jobs import JobDescriptor

if TYPE_CHECKING:
    from hansa.client.learner import Answer
    from hansa.client.sum_part import SumPart

log = logging.getLogger("hansa.client")

_OVER: Final = ("HANSA-SECAGG-", "HANSA-REPORT-", "HANSA-NOT-FOUND", "HANSA-REQUEST-")
"""Errors by which a server says that a secure sum goes on without this client."""
_AGAIN: Final = 5.0


@dataclass
class Summing:
    """Goes on with one secure sum, message by message, from what is on disk."""

    state: StateFolder
    transport: Transport
    demands: SecureSums
    clock: Clock
    left: Id | None = None
    """The last assignment whose sum did not hold what it must."""
    _part: SumPart | None = field(default=None, init=False)

    def begun(self) -> Begun | None:
        """Return the sum that the client takes part in, if there is one."""
        return self._folder.begun()

    def begin(self, assigned: wire.Assignment, job: JobDescriptor, answer: Answer, server_key: bytes) -> None:
        """Begin the sum of an assignment with what was computed. Raises RefusedError where none was announced."""
        if not assigned.secure_sum or answer.ring is None:
            raise RefusedError(
                "HANSA-REQUEST-INVALID",
                rule="What a plan gives to a secure sum is sent in no other way.",
                found="The server has announced no secure sum.",
                action="Tell the operator of the server; nothing was sent.",
            )
        begun = Begun(
            id=id_of(assigned),
            announcement=bytes(assigned.secure_sum),
            server_key=server_key,
            plan_sha256=assigned.plan_sha256,
            model_sha256=assigned.model_sha256,
            ring=tuple((each.name, each.length, each.bits) for each in answer.ring.segments),
            section=job.plan["secure_aggregation"],
        )
        self._folder.begin(begun, answer.content)

    def step(self, begun: Begun, wait: float, report: Callable[[Pending], float]) -> float:
        """Go on by one message; return in how many seconds to come back. ``report`` sends a masked vector."""
        try:
            part = self._part_of(begun)
            gives = part.gives_vector and not self.state.answered(part.id)
            if gives:
                self.state.room.make(len(part.reply))
        except RefusedError as error:
            return self._leave(begun, error)
        if gives:
            digest = hashlib.sha256(part.reply).hexdigest()
            pending = self.state.write_pending(part.id, part.reply, digest, {})
            reached("client.pending-written")
            return report(pending)
        try:
            answer = self.transport.exchange(part.next_request(on_the_wire(part.id), wait))
        except RefusedError as error:
            if not error.code.startswith(_OVER) or not said_by_hansa(error):
                raise
            log.info("sum is over assignment=%s code=%s found=%r", begun.id, error.code, error.found)
            self.end()
            return _AGAIN
        self._part = None  # kept again once what it does is on disk
        try:
            if answer.message:
                part.take(answer.message)
        except RefusedError as error:
            return self._leave(begun, error)
        self._part = part
        if part.done and not answer.message:
            self.end()
            return 0.0
        return answer.come_back_seconds

    def end(self) -> None:
        """Forget the secure sum; nothing of it is sent any more."""
        self._folder.end()
        self._part = None

    @property
    def _folder(self) -> SumFolder:
        return SumFolder(self.state)

    def _part_of(self, begun: Begun) -> SumPart:
        from hansa.client.sum_part import SumPart  # noqa: PLC0415 - a client at rest needs none of it

        if self._part is None or self._part.id != begun.id:
            self._part = SumPart.resume(self._folder, begun, self.demands, self.state.key())
        return self._part

    def _leave(self, begun: Begun, error: RefusedError) -> float:
        """Take no part in a sum that does not hold what it must; the reason stays here."""
        log.warning("left sum assignment=%s code=%s found=%r", begun.id, error.code, error.found)
        line = {"at": self.clock.now(), "assignment": str(begun.id), "plan_sha256": begun.plan_sha256}
        self.state.note(DECLINED, {**line, "code": error.code, "why": str(error)})
        self.end()
        self.left = begun.id
        return 0.0
