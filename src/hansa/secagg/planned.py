"""The task of a secure sum as a plan's ``[secure_aggregation]`` has it."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Final

from hansa.core.errors import RefusedError
from hansa.core.ring import Ring
from hansa.core.secure_aggregation import SecureAggregation
from hansa.secagg.parameters import GraphParameters, fewest_clients, smallest_graph
from hansa.secagg.roster import Roster
from hansa.secagg.task import PHASES, Beacon, DecryptorKeys, Protocol, Task

LONGEST: Final = 2**31 - 1
"""Seconds of a phase, at most: where nothing else ends it, it waits for all."""


def task_of(  # noqa: PLR0913 - what a task is of
    section: SecureAggregation,
    ring: Ring,
    roster: Roster,
    *,
    run: str,
    round_number: int,
    attempt: int,
    plan_sha256: str,
    model_sha256: str,
    first_phase: float = math.inf,
    decryptors: tuple[DecryptorKeys, ...] = (),
) -> Task:
    """Return the task of one sum. ``first_phase``: seconds in which clients advertise, or report, what they computed.

    A cohort too small for a sparse graph has a full one, which protects more; one of fewer survivors than give a secret
    back has no sum. Raises RefusedError where the section's parameters do not fit that many clients.
    """
    clients = len(roster.identities)
    protocol, graph = graph_of(section, clients)
    others = math.ceil(section.phase_deadline)
    cohort, survivors = floors_of(section, clients)
    return Task(
        protocol=protocol,
        run=run,
        round=round_number,
        attempt=attempt,
        plan_sha256=bytes.fromhex(plan_sha256),
        model_sha256=bytes.fromhex(model_sha256),
        roster_root=roster.root,
        roster_size=clients,
        registrar=section.registrar,
        ring=ring,
        minimum_cohort=cohort,
        minimum_survivors=survivors,
        neighbours=graph.neighbours,
        threshold=graph.threshold,
        beacon=beacon_of(section, protocol),
        phase_seconds=(math.ceil(min(first_phase, LONGEST)), *(others for _ in PHASES[1:])),
        decryptors=decryptors,
    )


def graph_of(section: SecureAggregation, clients: int) -> tuple[Protocol, GraphParameters]:
    """Return the protocol that so many clients take, and its graph where that is sparse.

    It is sized for as large a share of colluding clients as they are once the expected share of others is lost.
    """
    none = GraphParameters(0, 0)
    if section.protocol != "secagg-plus":
        return section.protocol, none
    dropped = Fraction(str(section.expected_dropout))
    corrupt = Fraction(section.assumed_colluding, max(1, clients - int(clients * dropped)))
    try:
        return section.protocol, smallest_graph(clients, corrupt=corrupt, dropped=dropped, server=section.server)
    except RefusedError:
        if not _stands(section, clients):
            raise
        return "secagg-full", none


def lost_too_many(section: SecureAggregation, clients: int) -> bool:
    """Say whether so many clients would have a sparse graph, were none of them expected to be lost."""
    return graph_of(replace(section, expected_dropout=0.0), clients)[1].neighbours > 0


def _stands(section: SecureAggregation, clients: int) -> bool:
    """Say whether a full graph of so many clients stands those who are assumed to collude with the server."""
    threshold = 2 * clients // 3 + 1
    return section.assumed_colluding < (threshold if section.server == "curious" else 2 * threshold - clients)


def beacon_of(section: SecureAggregation, protocol: Protocol) -> Beacon:
    """Return who draws the graph of a protocol that :func:`graph_of` gave; of a full one nobody."""
    return section.beacon or "" if protocol == "secagg-plus" else ""


def floors_of(section: SecureAggregation, clients: int) -> tuple[int, int]:
    """Return with how many of so many clients a sum begins at least, and how many must be left for it to be shown.

    A sparse graph protects as many as it was sized for and not many fewer, and t of them must be left; a full one in
    its place protects from where it stands those who collude.
    """
    graph = graph_of(section, clients)[1]
    survivors = max(section.minimum_survivors, graph.threshold)
    if not graph.neighbours:
        fewest = max(section.minimum_cohort, survivors)
        if section.protocol == "secagg-plus":
            while not all(_stands(section, each) for each in range(fewest, min(fewest + 3, clients + 1))):
                fewest += 1  # of three in a row one stands fewest, and of the next three one more
        return fewest, survivors
    dropped, colluding = section.expected_dropout, section.assumed_colluding
    fewest = fewest_clients(graph, clients, corrupt=colluding, dropped=dropped, server=section.server)
    return max(section.minimum_cohort, survivors, fewest), survivors


def least_shown(section: SecureAggregation, clients: int, begun: int) -> int:
    """Return how many must be left of those who began a sum of ``clients``: of a full graph two thirds and one more."""
    full = graph_of(section, clients)[0] == "secagg-full"
    return max(floors_of(section, clients)[1], 2 * begun // 3 + 1 if full else 0)


def least_summed(section: SecureAggregation, clients: int) -> int:
    """Return how many honest clients' vectors a sum over a graph has at least, whatever the server does.

    One that lies may show clients of a sparse one different sets, so that each has fewer others than are left (decision
    43).
    """
    graph, cohort = graph_of(section, clients)[1], floors_of(section, clients)[0]
    honest = least_shown(section, clients, cohort) - section.assumed_colluding
    if section.server == "curious" or not graph.neighbours:
        return honest
    around = 2 * graph.threshold - graph.neighbours - 1
    apart = max(1, cohort // (3 * graph.neighbours // 2 + 1))
    return min(honest, apart * max(1, around - section.assumed_colluding))
