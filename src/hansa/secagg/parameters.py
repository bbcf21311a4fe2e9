"""The smallest graph of ``secagg-plus`` that protects and that survives drop-outs, by exact tail bounds.

Corrupt and dropped clients are spread by the random order of the graph, so how many of a client's k neighbours are
among them is hypergeometric. Source: Bell et al. 2020, https://eprint.iacr.org/2020/704, sections 3.2 and 4.2.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import comb
from typing import Final, Literal

from hansa.secagg.refusals import unsound
from hansa.secagg.task import SMALLEST

SECURITY_BITS: Final = 40
"""No client is exposed but with probability 2^-40 over the graph."""
FAILURE_BITS: Final = 20
"""No secret is lost but with probability 2^-20 over the graph."""


@dataclass(frozen=True)
class GraphParameters:
    """How many neighbours each client has, and how many shares give a secret back."""

    neighbours: int
    threshold: int


def smallest_graph(
    clients: int,
    *,
    corrupt: Fraction | float,
    dropped: Fraction | float,
    server: Literal["curious", "malicious"] = "curious",
) -> GraphParameters:
    """Return the fewest neighbours k, and the largest threshold t that they allow, for shares of clients.

    With probability 2^-40, over all clients, fewer than t neighbours of each are corrupt (or, where the server lies to
    different clients, fewer than 2t - k), and the honest survivors stay connected; with 2^-20 at least t neighbours of
    each survive. ``corrupt`` and ``dropped`` are shares of all clients, rounded down to clients. Raises RefusedError
    where no sparse graph does: use ``secagg-full``.

    Parameters for a lying server are the usual ones, of dealers that keep no share. Here each keeps one, so that
    2t - k - 1 corrupt neighbours suffice; and without a beacon it chooses the graph. Clients refuse such a plan.
    """
    if clients < SMALLEST:
        raise unsound(f"There are {clients} clients, fewer than {SMALLEST}.")
    bad, gone = int(clients * Fraction(str(corrupt))), int(clients * Fraction(str(dropped)))
    for neighbours in range(2, clients - 1, 2):
        if not _connected(clients, neighbours, bad + gone):
            continue
        exposed = _tails(clients - 1, bad, neighbours)
        lost = _tails(clients - 1, gone, neighbours)
        whole = comb(clients - 1, neighbours)
        for threshold in range(neighbours, 1, -1):
            fatal = threshold if server == "curious" else 2 * threshold - neighbours
            safe = fatal > 0 and (clients * exposed[fatal] << SECURITY_BITS) < whole
            if safe and (clients * lost[neighbours - threshold + 1] << FAILURE_BITS) < whole:
                return GraphParameters(neighbours, threshold)
    raise unsound(f"No sparse graph of {clients} clients withstands so many corrupt and dropped.")


def fewest_clients(
    graph: GraphParameters,
    clients: int,
    *,
    corrupt: int,
    dropped: Fraction | float,
    server: Literal["curious", "malicious"] = "curious",
) -> int:
    """Return the fewest of ``clients`` that may share keys on a graph: of fewer, the corrupt are too large a share."""

    def safe(count: int) -> bool:
        fatal = graph.threshold if server == "curious" else 2 * graph.threshold - graph.neighbours
        if count - 1 <= graph.neighbours:  # everybody with everybody
            return corrupt < fatal
        exposed = _tails(count - 1, corrupt, graph.neighbours)[fatal]
        together = _connected(count, graph.neighbours, corrupt + int(count * Fraction(str(dropped))))
        return together and (count * exposed << SECURITY_BITS) < comb(count - 1, graph.neighbours)

    return SMALLEST + bisect_left(range(SMALLEST, clients), x=True, key=safe)


def _tails(others: int, marked: int, drawn: int) -> list[int]:
    """Return, for each x from 0 to ``drawn``, how many draws hold x marked ones or more."""
    draws = [comb(marked, each) * comb(others - marked, drawn - each) for each in range(drawn + 1)]
    return list(accumulate(reversed(draws)))[::-1]


def _connected(clients: int, neighbours: int, removed: int) -> bool:
    """Say whether the circle stays in one piece: two gaps of k/2 removed neighbours each would cut it (union bound)."""
    pairs = comb(clients, 2)
    return (pairs * comb(removed, neighbours) << SECURITY_BITS) < comb(clients, neighbours)
