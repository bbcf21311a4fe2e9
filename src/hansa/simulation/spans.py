"""Spans of a cohort: what is computed at once, in which order it is handed out, and how it comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from hansa.algorithms.fold import BLOCK
from hansa.core.layout import Int64s

AHEAD = 2
"""Spans for each worker that may be under way or wait for an earlier one: this bounds what is held."""


@dataclass(frozen=True)
class Span:
    """Consecutive positions of a cohort, from a multiple of ``BLOCK`` on."""

    start: int
    stop: int

    @property
    def positions(self) -> slice:
        """Return the positions as a slice of the cohort."""
        return slice(self.start, self.stop)

    def chunks(self, size: int) -> Iterator[Span]:
        """Yield the parts whose clients train together."""
        for start in range(self.start, self.stop, size):
            yield Span(start, min(start + size, self.stop))


def spans(cohort: int, chunk: int) -> list[Span]:
    """Return a cohort cut into spans of a chunk, rounded up to whole blocks."""
    return list(Span(0, cohort).chunks(-(-chunk // BLOCK) * BLOCK))


def in_order_of_work(all_spans: Sequence[Span], sizes: Int64s, tail: int) -> list[Span]:
    """Return spans in the order in which they are handed out: as they come, but the last ``tail`` largest first.

    So the workers end at about the same time (Graham 1969, "Bounds on multiprocessing timing anomalies"), and no
    span waits long for one before it. ``sizes`` are the numbers of examples of the cohort's clients.
    """
    first, last = list(all_spans[:-tail]), all_spans[-tail:]
    return first + sorted(last, key=lambda span: -int(sizes[span.positions].sum()))


def gathered(
    ordered: Sequence[Span], submit: Callable[[Span], Future[Any]], ahead: int, *, cancels: bool = True
) -> Iterator[Any]:
    """Yield the results of all spans as they come; at most ``ahead`` are begun from the oldest unfinished one on.

    An error of one is raised; what is under way then is cancelled where it can be, if ``cancels``.
    """
    under_way: dict[Future[Any], int] = {}
    begun = 0
    try:
        while begun < len(ordered) or under_way:
            while begun < len(ordered) and begun - min(under_way.values(), default=begun) < ahead:
                under_way[submit(ordered[begun])] = begun
                begun += 1
            done = list(wait(under_way, return_when=FIRST_COMPLETED).done)
            while done:  # no name is left for a result that was handed on: it may be large
                del under_way[done[-1]]
                yield done.pop().result()
    finally:
        for future in under_way if cancels else ():
            future.cancel()
