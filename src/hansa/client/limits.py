"""What a site's policy allows now: asked before each call, so that nothing is sent or fetched against it.

What is not allowed now waits, as it is on disk, and goes on once it is allowed. No message of a secure sum is excepted:
the others go on without a client that waits, as without one whose line is down. Bytes are those of the bodies of all
calls, both ways, with repeats and errors; headers, TLS and TCP are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hansa.client.machine import Machine, obstacles
from hansa.client.policy import Resources, refused
from hansa.client.room import Room
from hansa.client.transport import ANSWER, Meter
from hansa.client.usage import Usage
from hansa.core.clock import Clock
from hansa.core.errors import RefusedError

if TYPE_CHECKING:
    from hansa.client.learner import Answer

NOT_NOW: Final = "HANSA-POLICY-WAITS"
WAITS: Final = frozenset({NOT_NOW, "HANSA-POLICY-BYTES"})
"""Codes of what goes on by itself at another hour, or another day."""
_SUM: Final = 65_536
_SUM_A_CLIENT: Final = 1024
"""Bytes of a secure sum beside the vector: its polls, and for each client of the cohort keys and shares both ways."""


@dataclass
class Limits(Meter):
    """A policy's limits on calls, with the machine that they hold for and the bytes of today."""

    resources: Resources
    usage: Usage
    clock: Clock
    machine: Machine
    _lifted: bool = field(default=False, init=False)

    @property
    def left(self) -> float:
        """Bytes that are left of today; infinite where there is no limit."""
        most = self.resources.bytes_a_day
        return math.inf if most is None else max(0, most - self.usage.today())

    def obstacles(self) -> list[str]:
        """Return why the client rests now, a sentence each; none where it works."""
        used_up = ["the day's bytes are used up"] if self.left < ANSWER else []
        return [*obstacles(self.resources, self.clock, self.machine), *used_up]

    @contextmanager
    def lifted(self, *, lifts: bool = True) -> Iterator[None]:
        """Let small calls pass that no limit puts off; their bytes count."""
        self._lifted = lifts
        try:
            yield
        finally:
            self._lifted = False

    def require_now(self) -> None:
        """Raise RefusedError (``HANSA-POLICY-WAITS``) unless hours, battery and network are as the policy says."""
        hindered = [] if self._lifted else obstacles(self.resources, self.clock, self.machine)
        if hindered:
            raise RefusedError(
                NOT_NOW,
                rule="A client works, and calls its server, when its policy allows it.",
                found=f"{'; '.join(hindered)}.".capitalize(),
                action="Wait: it goes on by itself.",
            )

    def require_bytes(self, size: int) -> None:
        """Raise RefusedError (``HANSA-POLICY-BYTES``) unless so many bytes fit what is left of today."""
        if not self._lifted and size > self.left:
            raise RefusedError(
                "HANSA-POLICY-BYTES",
                rule="What is sent or fetched fits what is left of the policy's bytes_a_day.",
                found=f"It has {size} bytes, and {self.left:.0f} are left of today.",
                action="Wait until tomorrow, or raise resources.bytes_a_day.",
            )

    def begin_call(self, up: int) -> None:
        """Count the bytes of a call. Raises RefusedError where it is not to be made now."""
        self.require_now()
        self.require_bytes(up + ANSWER)
        self.usage.count(up, 0)

    def received(self, size: int) -> None:
        """Count bytes that came."""
        self.usage.count(0, size)

    def never(self, size: int) -> bool:
        """Return whether an upload of so many bytes fits no whole day."""
        most = self.resources.bytes_a_day
        return most is not None and size + ANSWER > most

    def objections(self, down: int, up: int) -> list[str]:
        """Return why an answer is not begun for which so many bytes come and about as many go."""
        if down + up + 2 * ANSWER <= self.left:
            return []
        return [f"{down} bytes of the model and about {up} of the answer are more than is left of today's bytes_a_day"]


def require_fits(limits: Limits, room: Room, answer: Answer, cohort: int) -> None:
    """Raise RefusedError for an answer that the policy's bytes or disk can never take; make room for it else.

    One that goes into a secure sum of ``cohort`` clients has to fit today, with what the sum sends beside it: it is
    declined before the sum begins, so that nobody is left waiting in the middle.
    """
    size, kept = len(answer.content), sum(each.nbytes for each in answer.rows.values())
    if answer.ring is None:
        if limits.never(size):
            raise refused([f"the answer has {size} bytes, more than a whole day's bytes_a_day"])
        room.make(size + kept)
        return
    beside = _SUM + _SUM_A_CLIENT * cohort
    if size + beside > limits.left:
        raise refused([f"the secure sum takes up to {size + beside} bytes, more than is left of today's bytes_a_day"])
    room.make(2 * size + kept + beside)  # the vector in the clear, and masked
