"""Training, validation and test examples of each client, and the clients that never train."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hansa.core.layout import Array, Int64s
from hansa.core.streams import Floats, Stream, UInt64s, mix
from hansa.data.rows import ClientRows

Mask = NDArray[np.bool_]
_WORDS_AT_ONCE = 1 << 22
_OWN_DRAWS = 4
"""A client's first words: for each of test and validation the phase, and who stays where all would go."""


@dataclass(frozen=True, eq=False)
class Split:
    """Which entries of a roster's rows are for testing and for validation: bool [total]; the rest trains."""

    test: Mask
    validation: Mask


def split(
    rows: ClientRows, labels: Array, stream: Stream, *, test_fraction: float, validation_fraction: float
) -> Split:
    """Split every client's examples at random, stratified by class; a client keeps one for training at least.

    ``labels`` [N] are the store's; integers are classes. A client's classes are put in a random order and shuffled
    within, and every so many examples one is taken from a random start on (systematic sampling: Madow and Madow
    1944, "On the theory of systematic sampling", https://doi.org/10.1214/aoms/1177731312). So every example is as
    likely to test as any other, and a class's count is its share rounded up or down; for validation that holds for
    what testing left. What is drawn for a client depends on its number and its own labels, never on other clients.
    """
    test, validation = (np.zeros(len(rows.order), dtype=np.bool_) for _ in range(2))
    if test_fraction or validation_fraction:
        order = _stratified_order(rows, labels, stream)
        draws = stream.uniform(np.arange(len(rows)), _OWN_DRAWS)
        ordered_test = _every_so_often(rows, test_fraction, draws[:, :2])
        rest = rows.where(~ordered_test)
        chosen = _every_so_often(rest, validation_fraction / (1 - test_fraction), draws[:, 2:])
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
    """Return the clients that train and the ``count`` that never do, each ascending.

    Every client draws a word and the smallest are held out, so a client that is added takes one place at most.
    """
    order = np.argsort(stream.bits(np.arange(clients), 1)[:, 0], kind="stable")
    return np.sort(order[count:]).astype(np.int64), np.sort(order[:count]).astype(np.int64)


def _share(sizes: Array, fraction: float) -> Int64s:
    return np.floor(sizes * fraction + 0.5).astype(np.int64)


def _every_so_often(rows: ClientRows, fraction: float, draws: Floats) -> Mask:
    """Mark evenly spaced positions of each client: of m neighbours, m times the fraction rounded down or up.

    ``draws`` [clients, 2] in [0, 1) say where a client starts, so that each position is marked as often as the
    fraction says, and which one is spared where all of them would be.
    """
    positions, sizes = rows.positions(), rows.all_sizes
    starts = np.repeat(draws[:, 0], sizes)
    marked = np.floor((positions + 1) * fraction + starts) > np.floor(positions * fraction + starts)
    counts = np.diff(np.concatenate([[0], np.cumsum(marked)])[rows.offsets])
    full = np.flatnonzero((counts == sizes) & (sizes > 0))
    marked[rows.offsets[full] + (draws[full, 1] * sizes[full]).astype(np.int64)] = False
    return np.asarray(marked)


def _stratified_order(rows: ClientRows, labels: Array, stream: Stream) -> Int64s:
    """Return the entries of each client by class, shuffled within and the classes too: int64 [total]."""
    words, clients = _words(rows, stream), rows.clients()
    if labels.dtype.kind == "f":
        return np.lexsort((words, clients))
    return np.lexsort((words, _class_words(words, labels[rows.order], clients), clients))


def _class_words(words: UInt64s, classes: Array, clients: Int64s) -> UInt64s:
    """Return a random word for each class of each client, at every entry of it: uint64 [total].

    It comes from the word of the class's first entry: any function of the client's own stream would do.
    """
    order = np.lexsort((classes, clients))
    classes, clients = classes[order], clients[order]
    begins = np.ones(len(order), dtype=np.bool_)
    begins[1:] = (classes[1:] != classes[:-1]) | (clients[1:] != clients[:-1])
    drawn = np.empty_like(words)
    drawn[order] = mix(words[order[begins]])[np.cumsum(begins) - 1]
    return drawn


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
        drawn = stream.bits(chunk, _OWN_DRAWS + width)[:, _OWN_DRAWS:]
        words[(rows.offsets[chunk][:, None] + columns)[inside]] = drawn[inside]
    return words
