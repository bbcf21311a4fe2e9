"""The smallest graph of ``secagg-plus`` that protects and that survives drop-outs, by exact tail bounds.

Corrupt and dropped clients are spread by the random order of the graph, so how many of a client's k neighbours are
among them is hypergeometric. Source: Bell et al. 2020, https://eprint.iacr.org/2020/704, sections 3.2 and 4.2; what a
server that lies can do on a circle, decision 43.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import comb
from typing import Final, Literal

from hansa.secagg.refusals import unsound
from hansa.secagg.task import SMALLEST

ServerKind = Literal["curious", "malicious"]

SECURITY_BITS: Final = 40
"""No client is exposed but with probability 2^-40 over the graph."""
FAILURE_BITS: Final = 20
"""No secret is lost but with probability 2^-20 over the graph."""


@dataclass(frozen=True)
class GraphParameters:
    """How many neighbours each client has, and how many shares give a secret back."""

    neighbours: int
    threshold: int


@lru_cache(maxsize=64)
def smallest_graph(
    clients: int, *, corrupt: Fraction | float, dropped: Fraction | float, server: ServerKind = "curious"
) -> GraphParameters:
    """Return the fewest neighbours k, and the largest threshold t that they allow, for shares of clients.

    What :func:`protects` promises holds but with probability 2^-40, over all clients; at least t neighbours of each
    survive but with 2^-20. ``corrupt`` and ``dropped`` are shares of all clients, rounded down to clients. Raises
    RefusedError where no sparse graph does: use ``secagg-full``.
    """
    if clients < SMALLEST:
        raise unsound(f"There are {clients} clients, fewer than {SMALLEST}.")
    bad, gone = int(clients * Fraction(str(corrupt))), int(clients * Fraction(str(dropped)))
    for neighbours in range(2, clients - 1, 2):
        graph = GraphParameters(neighbours, _largest_threshold(clients, neighbours, gone))
        if graph.threshold > 1 and protects(graph, clients, corrupt=bad, dropped=gone, server=server):
            return graph
    raise unsound(f"No sparse graph of {clients} clients withstands so many corrupt and dropped.")


def protects(
    graph: GraphParameters, clients: int, *, corrupt: int, dropped: int = 0, server: ServerKind = "curious"
) -> bool:
    """Say whether a graph drawn for so many clients exposes none of them but with probability 2^-40.

    Curious server: fewer than t neighbours of each client are corrupt, and the honest survivors stay connected where
    ``dropped`` clients are lost at random. Lying server, which chooses who is lost, and shows clients different sets:
    of the k + 1 that hold a client's shares, the client among them, fewer than 2t - k - 1 are corrupt, so that nobody
    gives away both secrets; and of the k/2 on one side fewer than 2t - 3k/2 - 2, so that no piece of the circle can be
    cut off.
    """
    others, neighbours, threshold = clients - 1, graph.neighbours, graph.threshold
    lying, half = server == "malicious", graph.neighbours // 2
    both = 2 * threshold - neighbours - 1 if lying else threshold
    if others <= neighbours:  # everybody with everybody
        return corrupt < both
    exposed = Fraction(clients * _tail(others, corrupt, neighbours, both), comb(others, neighbours))
    if lying:
        cut = 2 * threshold - neighbours - half - 2
        exposed += Fraction(2 * clients * _tail(others, corrupt, half, cut), comb(others, half))
    elif not _connected(clients, neighbours, corrupt + dropped):
        return False
    return exposed * (1 << SECURITY_BITS) < 1


def fewest_clients(
    graph: GraphParameters, clients: int, *, corrupt: int, dropped: Fraction | float, server: ServerKind = "curious"
) -> int:
    """Return the fewest of ``clients`` that may share keys on a graph: of fewer, the corrupt are too large a share.

    From there on every number of clients is safe. So few that all are neighbours may be while a few more are not: they
    count only where the least sparse circle, of k + 2, is safe as well.
    """

    def safe(count: int) -> bool:
        gone = int(count * Fraction(str(dropped)))
        return protects(graph, count, corrupt=corrupt, dropped=gone, server=server)

    first = graph.neighbours + 2
    return SMALLEST if safe(first) else first + bisect_left(range(first, clients), x=True, key=safe)


def _largest_threshold(clients: int, neighbours: int, dropped: int) -> int:
    """Return the most shares that are left of every client's but with probability 2^-20; 1 where there are not two."""
    whole = comb(clients - 1, neighbours)
    lost = 0
    for missing in range(min(dropped, neighbours), 0, -1):  # so many of some client's neighbours, or more
        lost += comb(dropped, missing) * comb(clients - 1 - dropped, neighbours - missing)
        if (clients * lost << FAILURE_BITS) >= whole:
            return max(1, neighbours - missing)
    return neighbours


def _tail(others: int, marked: int, drawn: int, least: int) -> int:
    """Return how many draws hold ``least`` marked ones or more; no more than all others are marked."""
    marked = min(marked, others)
    held = range(max(0, least), min(marked, drawn) + 1)
    return sum(comb(marked, each) * comb(others - marked, drawn - each) for each in held)


def _connected(clients: int, neighbours: int, removed: int) -> bool:
    """Say whether the circle stays in one piece: two gaps of k/2 removed neighbours each would cut it (union bound)."""
    pairs = comb(clients, 2)
    return (pairs * comb(removed, neighbours) << SECURITY_BITS) < comb(clients, neighbours)
