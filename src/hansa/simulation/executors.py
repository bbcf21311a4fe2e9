"""Executors: how the cohort's client updates are computed. Each hands them back by cohort position."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import numpy as np

from hansa.algorithms.fold import BLOCK, Fold, Rows
from hansa.algorithms.rounds import client_update, receive, weighed
from hansa.algorithms.secure_sums import RingFold, RingRows
from hansa.core.layout import Array, Floats, Int64s
from hansa.core.nouns import Assignment, ClientBatch
from hansa.simulation.preparation import Prepared
from hansa.simulation.secure_sum import bytes_each, partial_of
from hansa.simulation.spans import AHEAD, Span, gathered, in_order_of_work, spans
from hansa.training.kernels import PLAIN, Kernels, use

StatesOf = Callable[[Int64s], dict[str, Array]]
"""The current rows of some clients, by ordinal: name -> [n, ...]."""


_CHUNK_BYTES: Final = 2**26
"""The most bytes of a chunk's examples, each client's padded to the largest's, unless one client has more."""


@dataclass(frozen=True)
class Partial:
    """What one span of the cohort gave: its updates, collected, and the next rows of its clients by position."""

    position: int
    collected: Fold | Rows | RingFold | RingRows
    states: Mapping[str, Array]
    bytes_up: float


class Executor(Protocol):
    """Computes a cohort's updates. It may hold workers, until it is closed."""

    def partials(
        self, prepared: Prepared, assignment: Assignment, states_of: StatesOf, factors: Floats | None = None
    ) -> Iterator[Partial]:
        """Yield what every span of the cohort gave, in any order.

        ``factors`` float32 [cohort] scale each client's update and its weight before they are summed.
        """

    def close(self) -> None:
        """Let go of the workers."""


@dataclass(frozen=True)
class Work:
    """One span of a cohort with the current rows of its clients: what a worker is handed."""

    span: Span
    chunk: int
    states: Mapping[str, Array]
    factors: Floats | None


def work_of(assignment: Assignment, span: Span, chunk: int, states_of: StatesOf, factors: Floats | None) -> Work:
    """Return a span with what its computation needs beside the assignment."""
    states = states_of(assignment.cohort[span.positions])
    return Work(span, chunk, states, None if factors is None else factors[span.positions])


def with_kernels(kernels: Kernels, compute_it: Callable[..., Partial], *arguments: Any) -> Partial:
    """Compute with some kernels."""
    with use(kernels):
        return compute_it(*arguments)


@np.errstate(over="ignore", invalid="ignore")  # what overflows is found, and explained, by divergence.check
def compute(prepared: Prepared, assignment: Assignment, work: Work) -> Partial:
    """Compute the updates of a span, a chunk of clients at a time, and collect them."""
    plan, span = prepared.plan, work.span
    collected = partial_of(plan, assignment, prepared.streams)
    following: list[dict[str, Array]] = []
    bytes_up = 0.0
    for start, clients in _parts(prepared, assignment, work):
        here = slice(start - span.start, start - span.start + len(clients))
        states = {name: rows[here] for name, rows in work.states.items()}
        batch, after = client_update(plan, assignment, clients, states, prepared.streams)
        bytes_up += bytes_each(plan, batch) * len(batch)
        batch = receive(plan, assignment, batch, prepared.streams)
        collected.add(batch if work.factors is None else weighed(batch, work.factors[here]), start)
        following.append(after)
        del batch  # the next chunk needs its room
    rows = {name: np.concatenate([after[name] for after in following]) for name in following[0]}
    return Partial(span.start, collected, rows, bytes_up)


def _parts(prepared: Prepared, assignment: Assignment, work: Work) -> Iterator[tuple[int, ClientBatch]]:
    """Yield who trains together, and from which position on: a chunk, or less where a client has very many examples."""
    rows = max(1, _CHUNK_BYTES // (8 * max(1, math.prod(prepared.data.signature.shape))))
    for chunk in work.span.chunks(work.chunk):
        start = chunk.start
        clients = prepared.clients(assignment.cohort[chunk.positions], assignment.features)
        for part in clients.parts(rows=rows, clients=work.chunk):
            yield start, part
            start += len(part)


class Serial:
    """One client after the other, as on devices: the reference that every other executor is held to."""

    def __init__(self, *, kernels: Kernels = PLAIN) -> None:
        self.kernels = kernels

    def partials(
        self, prepared: Prepared, assignment: Assignment, states_of: StatesOf, factors: Floats | None = None
    ) -> Iterator[Partial]:
        """Yield block after block, in cohort order."""
        for span in spans(len(assignment.cohort), BLOCK):
            yield with_kernels(
                self.kernels, compute, prepared, assignment, work_of(assignment, span, 1, states_of, factors)
            )

    def close(self) -> None:
        """Do nothing: there are no workers."""


class Batched:
    """A chunk of clients at once over the client axis; several chunks at once on threads.

    Threads share everything, so they cost no memory but that of their chunks. They help where a trainer spends its
    time in products and convolutions, which do not hold Python's lock.
    """

    def __init__(self, *, chunk: int, workers: int, kernels: Kernels = PLAIN) -> None:
        self.chunk = chunk
        self.workers = workers
        self.kernels = kernels
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="hansa-chunk") if workers > 1 else None

    def partials(
        self, prepared: Prepared, assignment: Assignment, states_of: StatesOf, factors: Floats | None = None
    ) -> Iterator[Partial]:
        """Yield chunk after chunk, in any order where there are threads."""
        if self._threads is not None:  # what is found by trying is found before several threads train
            prepared.plan.trainer.batching(prepared.plan.model, prepared.data.signature)
        work = partial(work_of, assignment, chunk=self.chunk, states_of=states_of, factors=factors)
        ordered = spans(len(assignment.cohort), self.chunk)
        threads = self._threads
        if threads is None:
            for span in ordered:
                yield with_kernels(self.kernels, compute, prepared, assignment, work(span))
            return
        sizes = prepared.data.train.sizes(assignment.cohort)
        ordered = in_order_of_work(ordered, sizes, AHEAD * self.workers)
        yield from gathered(
            ordered,
            lambda span: threads.submit(with_kernels, self.kernels, compute, prepared, assignment, work(span)),
            AHEAD * self.workers,
        )

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown()
