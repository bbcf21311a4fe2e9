"""What this replica knows without asking the store: who is assigned what, who waits, and who called lately.

A check-in is answered from here, so that one without an assignment reads and writes nothing. The store is the truth;
the board is read anew from it when the replica starts, and follows it then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hansa.server.callers import Callers
from hansa.server.contexts import RunContext
from hansa.store.records import Assigned, Client, Round, RoundKey


@dataclass(frozen=True)
class Posted:
    """An open round on the board, with what its run is about.

    ``goal`` reports are enough to look whether the round may close; 0 where only all of them are. After each
    ``fold_every`` reports some may be added to the round's sum; 0: never before it closes.
    """

    round: Round
    context: RunContext
    goal: int = 0
    fold_every: int = 0

    @property
    def population(self) -> str:
        """Return whose clients it is for."""
        return self.context.job.population


@dataclass
class Standing:
    """Who of an open round has not answered yet, and how many have reported."""

    posted: Posted
    open: dict[str, Assigned]
    reported: int = 0
    known: set[str] = field(default_factory=set)
    """All that were ever put up: who answered is not asked again, whatever an older reading of the store says."""


@dataclass
class Board:
    """The open rounds by client, and the clients that wait for one."""

    rounds: dict[RoundKey, Standing] = field(default_factory=dict)
    by_client: dict[str, list[RoundKey]] = field(default_factory=dict)
    waiting: dict[str, set[asyncio.Event]] = field(default_factory=dict)
    callers: Callers = field(default_factory=Callers)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the coordinator has something to look at."""
    closing: bool = False
    """True once this replica stops: nobody waits here any more."""

    def post(self, posted: Posted, assigned: Iterable[Assigned], *, reported: int = 0) -> None:
        """Put up an open round; wake those of its cohort who wait. Of one that is up, only who is new is added."""
        key = posted.round.id
        standing = self.rounds.setdefault(key, Standing(posted, {}, reported))
        if standing.posted.round.version < posted.round.version:
            standing.posted = posted
        for each in assigned:
            if each.client in standing.known:
                continue
            standing.known.add(each.client)
            if each.fate is None:
                standing.open[each.client] = each
                held = self.by_client.setdefault(each.client, [])
                held.append(key)
                held.sort(key=lambda one: -self.rounds[one].posted.context.run.priority)
                self.wake(each.client)

    def take_down(self, key: RoundKey) -> None:
        """Take a round off the board; wake those of its cohort who did not answer: they are not asked any more."""
        standing = self.rounds.pop(key, None)
        if standing is None:
            return
        for client in list(standing.open):
            self._forget(client, key)

    def assignment(self, client: str) -> tuple[Posted, Assigned] | None:
        """Return what a client is asked to do, the most urgent first."""
        for key in self.by_client.get(client, ()):
            standing = self.rounds[key]
            return standing.posted, standing.open[client]
        return None

    def example(self, client: Client) -> tuple[Posted, Assigned] | None:
        """Return what a client would be asked if it were picked for an open round of its population."""
        for key, standing in self.rounds.items():
            if standing.posted.population == client.population:
                return standing.posted, Assigned(key, client.id, client.number, position=-1)
        return None

    def answered(self, key: RoundKey, client: str, *, reported: bool) -> None:
        """Take note that a client reported or declined; ring where the coordinator may have something to do."""
        standing = self.rounds.get(key)
        if standing is None or client not in standing.open:
            return
        del standing.open[client]
        self._forget(client, key)
        standing.reported += reported
        goal, every = standing.posted.goal, standing.posted.fold_every
        to_fold = reported and every > 0 and standing.reported % every == 0
        if not standing.open or standing.reported >= goal > 0 or to_fold:
            self.changed.set()

    def fetchable(self, population: str, digest: str) -> Posted | None:
        """Return an open round of a population whose model or job has a digest."""
        for standing in self.rounds.values():
            posted = standing.posted
            if posted.population == population and digest in (posted.round.model, posted.context.job.descriptor):
                return posted
        return None

    async def wait(self, client: str, seconds: float) -> None:
        """Wait until something concerns a client, the time is over, or this replica stops."""
        if self.closing:
            return
        event = asyncio.Event()
        self.waiting.setdefault(client, set()).add(event)
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            events = self.waiting[client]
            events.discard(event)
            if not events:
                del self.waiting[client]

    def wake(self, client: str) -> None:
        """Let those go on who wait for a client."""
        for event in self.waiting.get(client, ()):
            event.set()

    def close(self) -> None:
        """Let all go on who wait, and let nobody wait any more."""
        self.closing = True
        for client in tuple(self.waiting):
            self.wake(client)
        self.changed.set()

    def is_behind(self, round_: Round) -> bool:
        """Return True unless the board shows a round with all who are assigned to it now."""
        standing = self.rounds.get(round_.id)
        return standing is None or len(standing.known) < round_.cohort_size

    def stale(self, open_rounds: Sequence[RoundKey]) -> list[RoundKey]:
        """Return the rounds on the board that are open no more."""
        still_open = set(open_rounds)
        return [key for key in self.rounds if key not in still_open]

    def _forget(self, client: str, key: RoundKey) -> None:
        held = self.by_client.get(client)
        if held and key in held:
            held.remove(key)
            if not held:
                del self.by_client[client]
        self.wake(client)
