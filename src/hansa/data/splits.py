"""Training, validation and test examples of each client, and the clients that never train."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hansa.core.layout import Array, Int64s
from hansa.core.streams import Stream, UInt64s
from hansa.data.rows import ClientRows

Mask = NDArray[np.bool_]
_WORDS_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class Split:
    """Which entries of a roster's rows are for testing and for validation: bool [total]; the rest trains."""

    test: Mask
    validation: Mask


def split(
    rows: ClientRows, labels: Array, stream: Stream, *, test_fraction: float, validation_fraction: float
) -> Split:
    """Split every client's examples at random, stratified by class; a client keeps one for training at least.

    ``labels`` [N] are the store's; integers are classes, and a class gets its share up to rounding. What is
    drawn for a client depends on its number, its size and its labels, never on other clients.
    """
    test, validation = (np.zeros(len(rows.order), dtype=np.bool_) for _ in range(2))
    if test_fraction or validation_fraction:
        order = _stratified_order(rows, labels, stream)
        ordered_test = _every_so_often(rows, test_fraction)
        rest = rows.where(~ordered_test)
        chosen = _every_so_often(rest, validation_fraction / (1 - test_fraction))
        test[order[ordered_test]] = True
        validation[order[~ordered_test][chosen]] = True
    return Split(test, validation)


def split_in_order(rows: ClientRows, *, test_fraction: float, validation_fraction: float) -> Split:
    """Split every client's examples by position: the last ones test, those before them validate.

    For text, where windows overlap: a random split would show the symbols to predict while training.
    """
    sizes = rows.all_sizes
    tests = np.minimum(_share(sizes, test_fraction), sizes - 1)
    validations = np.minimum(_share(sizes, validation_fraction), sizes - 1 - tests)
    from_end = np.repeat(sizes, sizes) - rows.positions()
    test = from_end <= np.repeat(tests, sizes)
    return Split(test, ~test & (from_end <= np.repeat(tests + validations, sizes)))


def choose_held_out(clients: int, count: int, stream: Stream) -> tuple[Int64s, Int64s]:
    """Return the clients that train and the ``count`` that never do, each ascending."""
    order = stream.coins().generator().permutation(clients)
    return np.sort(order[count:]).astype(np.int64), np.sort(order[:count]).astype(np.int64)


def _share(sizes: Array, fraction: float) -> Int64s:
    return np.floor(sizes * fraction + 0.5).astype(np.int64)


def _every_so_often(rows: ClientRows, fraction: float) -> Mask:
    """Mark evenly spaced positions of each client: of m neighbours, m times the fraction rounded down or up.

    Over a client the count is its size times the fraction, rounded; never all of it.
    """
    positions, sizes = rows.positions(), rows.all_sizes
    marked = _share(positions + 1, fraction) > _share(positions, fraction)
    counts = np.diff(np.concatenate([[0], np.cumsum(marked)])[rows.offsets])
    marked[rows.offsets[1:][(counts == sizes) & (sizes > 0)] - 1] = False
    return np.asarray(marked)


def _stratified_order(rows: ClientRows, labels: Array, stream: Stream) -> Int64s:
    """Return the entries of each client sorted by class and shuffled within: int64 [total]."""
    words = _words(rows, stream)
    if labels.dtype.kind == "f":
        return np.lexsort((words, rows.clients()))
    return np.lexsort((words, labels[rows.order], rows.clients()))


def _words(rows: ClientRows, stream: Stream) -> UInt64s:
    """Return a random word for each entry, a function of the client's number and the position: uint64 [total].

    Clients are taken by falling size, so that little is drawn in vain and memory stays small.
    """
    sizes = rows.all_sizes
    by_size = np.argsort(-sizes, kind="stable").astype(np.int64)
    words = np.empty(len(rows.order), dtype=np.uint64)
    start = 0
    while start < len(by_size) and (width := int(sizes[by_size[start]])):
        chunk = by_size[start : start + max(1, _WORDS_AT_ONCE // width)]
        start += len(chunk)
        columns = np.arange(width)[None, :]
        inside = columns < sizes[chunk][:, None]
        words[(rows.offsets[chunk][:, None] + columns)[inside]] = stream.bits(chunk, width)[inside]
    return words
