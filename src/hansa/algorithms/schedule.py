"""Schedules: when the server takes a step, and whose reports are part of it.

Two kinds of piece, each a setting, and for each a machine that takes events and says what becomes of them:
:class:`Sync` with :class:`Round`, and :class:`Buffered` with :class:`Buffer`. Machines do no I/O and have no clock. A
simulation tells them simulated seconds, a server those of its own clock; a server that was killed tells a new machine
the same events again and finds it in the same state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Final, Literal

from annotated_types import Ge, Gt, Le

from hansa.core.pieces import BufferedSchedule, CohortSampler, SynchronousSchedule
from hansa.core.schema import Doc

Fate = Literal["included", "late", "lost"]
"""What became of a client in a round: its report counts, or came after the round was frozen, or was given up."""
Verdict = Literal["included", "late", "answered", "unknown"]
"""What becomes of a report in a round. "answered": the client reported before, and is counted once."""
BufferVerdict = Literal["accepted", "too stale", "unknown"]
"""What becomes of a report in a buffer. "unknown": nothing is expected of that client, or not any more."""

_RESOLUTION: Final = 256
"""Staleness weights are multiples of 1/256, which the lanes of weights hold exactly."""


@dataclass(frozen=True, kw_only=True)
class Sync:
    """Rounds: a cohort is picked, trains from one model, and is waited for.

    A round is frozen once, at the first of three moments: every picked client has reported or is lost; the deadline;
    the report goal is reached. The last holds only where the server sees every report: under a secure sum the
    survivors are those who reported when one of the other two came. Who reports at the very moment is included; who
    reports later is late and never counted. A round that is frozen with fewer reports than it needs changes nothing and
    is tried again with a fresh cohort: it needs ``minimum_reports``, or else ``report_goal``, or else any.
    Source of over-selection, goal and deadline: Bonawitz et al. 2019, "Towards federated learning at scale: system
    design", section 2.2, https://arxiv.org/abs/1902.01046.
    """

    synchronous: ClassVar[bool] = True

    over_selection: Annotated[
        float, Ge(0), Le(100), Doc("share of the cohort that is picked on top, to make up for those who do not report")
    ] = 0.0
    report_goal: Annotated[
        int | None,
        Ge(1),
        Doc("reports that close a round before its deadline; absent: as many as the cohort has"),
    ] = None
    minimum_reports: Annotated[
        int | None,
        Ge(1),
        Doc("reports without which a round is given up and tried again; absent: the goal, or without one any number"),
    ] = None
    round_deadline: Annotated[
        float | None, Gt(0), Doc("seconds after which a round waits no more; absent: it waits for all")
    ] = None

    @property
    def needed_reports(self) -> int | None:
        """How many reports a round needs to count, or None where any number will do."""
        return self.report_goal if self.minimum_reports is None else self.minimum_reports

    def problems(self, sampler: CohortSampler, population: int) -> list[tuple[str, str]]:
        """Refuse a goal or a minimum that no cohort can reach, and a minimum above the goal that closes a round."""
        picked, found = picking(self, sampler).expected_size(population), []
        for name in ("report_goal", "minimum_reports"):
            wanted = getattr(self, name)
            if wanted is not None and wanted > picked:
                sentence = f"{wanted} reports are needed, but {picked:g} clients are picked; "
                found.append((name, f"{sentence}lower it, or raise the cohort or over_selection."))
        if found:
            return found
        closing = sampler.expected_size(population) if self.report_goal is None else self.report_goal
        if self.minimum_reports is not None and self.minimum_reports > closing:
            return [("minimum_reports", f"a round is closed by {closing:g} reports; lower it, or raise report_goal.")]
        return []

    def expected_reports(self, sampler: CohortSampler, population: int) -> float:
        """Return the goal, or the size of a cohort."""
        return sampler.expected_size(population) if self.report_goal is None else float(self.report_goal)


@dataclass(frozen=True, kw_only=True)
class Buffered:
    """Buffers of reports, each of the model version that its client was sent (FedBuff).

    ``concurrency`` clients train at the same time; when one reports or is lost, another is picked, uniformly from those
    that neither train nor wait in the buffer, and is sent the newest model. A report that is t versions behind counts
    (1 + t)^-staleness_exponent times, rounded to a 256th; when ``buffer_size`` reports are in, the server takes a step.
    Source: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba 2022, "Federated learning with buffered asynchronous
    aggregation", algorithm 1 and section 5, https://arxiv.org/abs/2106.06639.

    Formal guarantee: a client has at most one update in a step, and its factor is above 0 and at most 1. So a bound on
    an update is a bound on a client's part in a step.
    """

    synchronous: ClassVar[bool] = False

    buffer_size: Annotated[int, Ge(1), Doc("reports that make a step")]
    concurrency: Annotated[int, Ge(1), Doc("clients that train at the same time")]
    max_staleness: Annotated[
        int | None, Ge(0), Doc("the most versions that an update may be behind; absent: none is too old")
    ] = None
    staleness_exponent: Annotated[
        float, Ge(0), Le(10), Doc("a in (1 + t)^-a, the factor of an update that is t versions behind")
    ] = 0.5

    def problems(self, sampler: CohortSampler, population: int) -> list[tuple[str, str]]:  # noqa: ARG002 - the schedule protocol
        """Refuse what needs more clients than there are: each trains once at a time and is in a buffer once."""
        found = []
        for name in ("concurrency", "buffer_size"):
            value = getattr(self, name)
            if value > population:
                found.append((name, f"{value} different clients are needed, but there are {population}; lower it."))
        return found

    def expected_reports(self, sampler: CohortSampler, population: int) -> float:  # noqa: ARG002 - the schedule protocol
        """Return the size of the buffer."""
        return float(self.buffer_size)

    def weight(self, staleness: int) -> float:
        """Return the factor of an update that is so many versions behind: above 0 and at most 1."""
        return max(1, round(_RESOLUTION * math.pow(1 + staleness, -self.staleness_exponent))) / _RESOLUTION


def has_fixed_size(sampler: Any) -> bool:
    """Return True for a sampler that picks a number of clients named ``size``."""
    return isinstance(getattr(sampler, "size", None), int)


def picking(schedule: SynchronousSchedule, sampler: CohortSampler) -> CohortSampler:
    """Return the sampler that picks a cohort and, on top, those who make up for others that do not report."""
    if not schedule.over_selection or not has_fixed_size(sampler):
        return sampler
    more: Any = sampler
    size = math.ceil(more.size * (1 + schedule.over_selection) - 1e-9)
    return replace(more, size=size)  # type: ignore[no-any-return]


@dataclass
class Round:
    """A round from the moment when it is opened: a state machine over reports and losses.

    Events come in the order of their times; the order of those at one moment does not matter. A client reports or is
    lost once, and what it does after that changes nothing. ``at_goal`` says that the goal closes the round, which it
    must not under a secure sum. ``cohort`` holds distinct clients.
    """

    cohort: tuple[int, ...]
    goal: int
    needed: int = 0
    deadline: float = math.inf
    at_goal: bool = True
    closed_at: float | None = field(default=None, init=False)
    fates: dict[int, Fate] = field(default_factory=dict, init=False)
    _included: int = field(default=0, init=False)
    _goal_at: float = field(default=math.inf, init=False)

    @classmethod
    def opened(
        cls, schedule: SynchronousSchedule, cohort: Iterable[int], *, at: float, size: int, at_goal: bool
    ) -> Round:
        """Return the round of the picked clients; ``size`` reports close it where the schedule has no goal."""
        goal, wait = schedule.report_goal, schedule.round_deadline
        deadline = math.inf if wait is None else at + wait
        needed = schedule.needed_reports or 0
        begun = cls(tuple(cohort), size if goal is None else goal, needed, deadline, at_goal)
        begun._close_if_all_answered(at)
        return begun

    @property
    def survivors(self) -> tuple[int, ...]:
        """The clients whose reports are counted, in the order of the cohort."""
        return tuple(client for client in self.cohort if self.fates.get(client) == "included")

    @property
    def enough(self) -> bool:
        """True if as many reported as the round needs."""
        return self._included >= self.needed

    def count(self, fate: Fate) -> int:
        """Return how many clients came to that end."""
        return sum(met == fate for met in self.fates.values())

    def report(self, client: int, at: float) -> Verdict:
        """Take a client's report; say what becomes of it."""
        self.pass_time(at)
        if client not in self.cohort_set:
            return "unknown"
        if client in self.fates:
            return "late" if self.fates[client] == "lost" else "answered"
        if self.closed_at is not None:
            self.fates[client] = "late"
            return "late"
        self.fates[client] = "included"
        self._included += 1
        if self.at_goal and self._included == self.goal:
            self._goal_at = at
        self._close_if_all_answered(at)
        return "included"

    def lose(self, client: int, at: float) -> None:
        """Take note that a client is not waited for any more."""
        self.pass_time(at)
        if client in self.cohort_set and client not in self.fates:
            self.fates[client] = "lost"
            self._close_if_all_answered(at)

    def pass_time(self, until: float) -> None:
        """Take note that everything before this moment was told: the round is frozen if its end lies before."""
        end = min(self.deadline, self._goal_at)
        if self.closed_at is None and until > end:
            self.closed_at = end

    @cached_property
    def cohort_set(self) -> frozenset[int]:
        """The clients that were picked."""
        return frozenset(self.cohort)

    def _close_if_all_answered(self, at: float) -> None:
        if self.closed_at is None and len(self.fates) == len(self.cohort):
            self.closed_at = at


@dataclass(frozen=True, order=True)
class Contribution:
    """One accepted update of a buffer: in order of the version that it started from, and of its start."""

    version: int
    start: int
    client: int
    weight: float


@dataclass
class Buffer:
    """Buffers one after another, from the first model version on: a state machine over starts, reports and losses.

    The order of reports within one buffer does not matter to what it holds once it is full. All state is in its fields.
    """

    schedule: BufferedSchedule
    version: int = 0
    started: int = 0
    training: dict[int, tuple[int, int]] = field(default_factory=dict)
    held: dict[int, Contribution] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """Return how many more clients may train now."""
        return self.schedule.concurrency - len(self.training)

    def may_start(self, client: int) -> bool:
        """Return True if a client neither trains nor waits in the buffer."""
        return client not in self.training and client not in self.held

    def start(self, client: int) -> int:
        """Take note that a client was sent the newest version; return the number of its start. Raises ValueError."""
        if not self.may_start(client) or self.free < 1:
            raise ValueError("a client starts when it is free, and when fewer train than may")
        self.started += 1
        self.training[client] = (self.version, self.started)
        return self.started

    def report(self, client: int) -> BufferVerdict:
        """Take a client's report; say what becomes of it. Raises ValueError if the buffer is full: step first."""
        if self.full:
            raise ValueError("the buffer is full, and the next report belongs to the next version")
        if client not in self.training:
            return "unknown"
        version, start = self.training.pop(client)
        staleness = self.version - version
        if self.schedule.max_staleness is not None and staleness > self.schedule.max_staleness:
            return "too stale"
        self.held[client] = Contribution(version, start, client, self.schedule.weight(staleness))
        return "accepted"

    def lose(self, client: int) -> None:
        """Take note that a client will not report."""
        self.training.pop(client, None)

    def take_back(self, client: int) -> None:
        """Take an accepted report out again: it turned out that it cannot be counted."""
        self.held.pop(client, None)

    @property
    def full(self) -> bool:
        """True if the server must take a step before the next report."""
        return len(self.held) == self.schedule.buffer_size

    def step(self) -> tuple[Contribution, ...]:
        """Empty a full buffer and count the version up; return what it held, in order. Raises ValueError."""
        if not self.full:
            raise ValueError("a step is taken when the buffer is full")
        step = tuple(sorted(self.held.values()))
        self.held = {}
        self.version += 1
        return step

    @property
    def oldest(self) -> int:
        """The oldest version from which an update can still be accepted: older models are needed no more."""
        limit = self.schedule.max_staleness
        wanted = [*(version for version, _ in self.training.values()), self.version]
        wanted += [contribution.version for contribution in self.held.values()]
        return max(min(wanted), 0 if limit is None else self.version - limit)
