"""Whether, after a federation was tortured, its authority has drawn once for each sum, and for nothing else."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from hansa.authority.book import FILE
from hansa.secagg.encoding import u32
from hansa.secagg.keys import digest
from hansa.testing.audit import Books


def draw_problems(folder: Path, books: Mapping[str, Books]) -> Iterator[str]:
    """Yield what is wrong with the book in an authority's folder, all of whose runs are in ``books``.

    A round has a task, and so a draw, for each of its attempts that came so far; the one that closed did.
    """
    with contextlib.closing(sqlite3.connect(folder / FILE)) as on:
        drawn = Counter(bytes(each) for (each,) in on.execute("SELECT round FROM draws"))
    states: dict[tuple[str, str, int], list[str]] = {}
    for book in books.values():
        for each in book.rounds:
            states.setdefault((each.id.run, each.id.kind, each.id.round), []).append(each.state)
    for (run, kind, number), attempts in states.items():
        found = drawn.pop(digest("attempts", f"{run}/{kind}".encode(), u32(number)), 0)
        if not int("closed" in attempts) <= found <= len(attempts):
            yield f"{run}: of {kind} {number}, in {len(attempts)} attempts, {found} graphs were drawn"
    if drawn:
        yield f"{drawn.total()} graphs were drawn for rounds that never were"
