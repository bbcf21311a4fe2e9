"""The machines of one round's secure sums on one replica: one for each group of the cohort."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from hansa.algorithms.secure_sums import Groups
from hansa.core.errors import RefusedError
from hansa.core.ring import RingVector
from hansa.secagg.beacon import Draw
from hansa.secagg.messages import header_of
from hansa.secagg.oneshot_messages import Batch, Request
from hansa.secagg.protocols import Server
from hansa.secagg.step import Step
from hansa.server.contexts import RunContext
from hansa.store.records import Client, Round

_ASKS: Final = (Batch.kind, Request.kind, Draw.kind)
"""Messages to decryptors, and to the authority."""
_TAKES_VECTORS: Final = ("MASK", "COLLECT")
_BEFORE: Final = ("ADVERTISE", "DRAW", "SHARE", "MASK", "COLLECT")
"""Phases of both machines before it is fixed whose vectors are in the sum, or may be."""


@dataclass
class Held:
    """The machine of one group's sum."""

    group: int
    first: int
    """The position of the group's first client in the cohort."""
    size: int
    key: bytes
    server: Server | None
    """None until the decryptors stand ready, and the authority vouches for the roster."""
    place: int
    """How many records are in the store."""
    since: float
    """When the phase began."""
    told: dict[int, bytes] = field(default_factory=dict)
    """Client -> the last message to it. Clients are numbered within the group, as in the machine."""
    asks: dict[int, bytes] = field(default_factory=dict)
    """Decryptor, or authority -> the last message to it."""
    trouble: str = ""
    """Why decryptors or the authority have not answered, if they have not."""
    troubles: set[str] = field(default_factory=set)
    """Of which the operator was told, by this replica."""
    failed: str = ""
    """Why there is no machine, and will be none."""
    calling: asyncio.Task[None] | None = None
    """Asks them what is to be asked now."""

    def take_in(self, step: Step) -> None:
        """Keep what is told to whom."""
        for to, message in step.send:
            (self.asks if header_of(message).kind in _ASKS else self.told)[to] = message

    def news_for(self, client: int, seen: int) -> bytes:
        """Return the last message to a client, unless it is of the kind that the client has answered."""
        told = self.told.get(client, b"")
        return told if told and header_of(told).kind != seen else b""

    @property
    def phase(self) -> str:
        """Return the name of the machine's phase."""
        if self.server is None:
            return "ABORTED" if self.failed else "PREPARE"
        return self.server.phase.name

    @property
    def announces(self) -> bool:
        """Say whether clients are told of the sum."""
        return self.phase in ("ADVERTISE", "COLLECT")

    @property
    def takes_vectors(self) -> bool:
        """Say whether masked vectors are added."""
        return self.phase in _TAKES_VECTORS

    @property
    def over(self) -> bool:
        """Say whether nothing more follows."""
        return self.phase in ("DONE", "ABORTED")

    @property
    def aborted(self) -> bool:
        """Say whether there is no sum."""
        return self.phase == "ABORTED"

    @property
    def frozen(self) -> bool:
        """Say whether it is fixed whose vectors are in the sum, or may be: no other comes in."""
        return self.phase not in (*_BEFORE, "PREPARE", "ABORTED")

    @property
    def needs_others(self) -> bool:
        """Say whether decryptors or an authority are to be asked, or a report that nobody opens is to be taken out."""
        return self.phase in ("PREPARE", "DRAW", "CHECK", "EXCLUDE", "DECRYPT")

    @property
    def vectors(self) -> tuple[int, ...]:
        """Return whose vectors are in a frozen sum, or may be."""
        if self.server is None:
            return ()
        return self.server.survivors or getattr(self.server, "reporters", ())

    @property
    def result(self) -> RingVector | None:
        """Return the sum, once there is one."""
        return None if self.server is None else self.server.result

    @property
    def why(self) -> str:
        """Return why there is no sum."""
        reason = self.failed if self.server is None else self.server.abort_reason
        return f"{reason}: {self.trouble}" if self.trouble else reason

    def deadline(self, preparing: float) -> float:
        """Return when the phase is over; ``preparing`` in how many seconds decryptors and authority have answered.

        Of decryptors that were asked for their sums one may have answered, and never answers another attempt: so the
        others are waited for.
        """
        if self.server is None:
            return self.since + preparing
        if self.phase == "DECRYPT":
            return math.inf
        return self.since + self.server.seconds


@dataclass
class HeldRound:
    """The machines of a round's sums."""

    context: RunContext
    round: Round
    key: bytes
    positions: Mapping[str, int]
    """Client -> its position in the cohort."""
    sums: list[Held]
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there is more to tell, or these are not the machines any more; then there is another event."""

    def ring(self) -> None:
        """Let those look again who wait."""
        self.news.set()
        self.news = asyncio.Event()

    def of(self, position: int) -> tuple[Held, int]:
        """Return the sum of a position in the cohort, and the client's number in it."""
        held = self.sums[((position + 1) * len(self.sums) - 1) // self.round.cohort_size]
        return held, position - held.first

    @property
    def over(self) -> bool:
        """Say whether every sum is done or given up."""
        return all(each.over for each in self.sums)

    @property
    def done(self) -> list[Held]:
        """Return the sums that there are."""
        return [each for each in self.sums if each.result is not None]

    @property
    def why(self) -> str:
        """Return why sums were given up."""
        return "; ".join(dict.fromkeys(each.why for each in self.sums if each.aborted))

    @property
    def included(self) -> frozenset[int]:
        """Return the positions of those whose vectors are in a sum."""
        return frozenset(each.first + client for each in self.done for client in each.vectors)


def groups_of(context: RunContext, cohort: int) -> Groups:
    """Return how a round's cohort is cut."""
    section = context.plan.secure_aggregation
    return Groups(cohort, 1 if section is None else section.groups(cohort))


def bounds_of(groups: Groups) -> Iterator[tuple[int, int, int]]:
    """Yield (group, first position, size)."""
    for number in range(groups.count):
        yield number, groups.bounds(number)[0], groups.size(number)


def machine_of(held: Held) -> Server:
    """Return a sum's machine. Raises RefusedError where there is none yet."""
    if held.server is None:
        raise not_asked()
    return held.server


def position_of(round_: HeldRound, client: Client) -> int:
    """Return a client's position in a round's cohort. Raises RefusedError where it has none."""
    position = round_.positions.get(client.id)
    if position is None:
        raise not_asked()
    return position


def is_missing(held: Held, client: int) -> bool:
    """Return True where a masked vector that was reported is not in its machine."""
    return held.takes_vectors and held.server is not None and client in held.server.waits_for


def not_asked() -> RefusedError:
    """Return the error of a client's message that no sum of its own asks for."""
    return RefusedError(
        "HANSA-REPORT-UNEXPECTED",
        rule="A client takes part in the secure sums of its own assignments, with messages of its own.",
        found="It has no part in that one, or not with this message.",
        action="Leave this sum; check in, and take part in what is assigned.",
    )
