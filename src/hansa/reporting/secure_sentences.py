"""What a plan's secure sums protect, from whom and on which assumptions, in sentences for a privacy reviewer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from hansa.algorithms.ring_plan import BranchCode, RingCode
from hansa.core.ring import FEWEST_BITS
from hansa.core.secure_aggregation import SecureAggregation
from hansa.reporting.figures import bytes_text, count_text
from hansa.secagg.planned import floors_of, graph_of, least_shown, least_summed, lost_too_many

_REGISTRAR: Final = {
    "server": (
        "the server says whose keys are whose: this protects against a server that only looks and against a stolen "
        "database, but a server that lies could invent all other clients and read the update of the one that is left"
    ),
    "pinned": (
        "each site's own list holds the keys of its peers: the server can neither invent a client nor exchange a key"
    ),
    "authority": (
        "{authority}, whose key the server does not hold, vouches for the keys of each sum's clients and does not work "
        "with the server, which then can neither invent a client nor exchange a key; each site's policy holds that "
        "key. Who runs it is what the plan says, and a site's policy where it sets authority_operator"
    ),
}
_PINNED_AT_DECRYPTORS: Final = (
    "each decryptor's own list holds the keys of the clients, who are not told each other's: a server that lies cannot "
    "invent a client as long as one decryptor that does not work with it keeps such a list"
)
_AUTHORITY_AT_DECRYPTORS: Final = (
    "at least one decryptor that does not work with the server demands that authority, too"
)
_SERVER: Final = {
    "curious": "the server keeps to the protocol; it looks at all that it gets, and so does who steals its database",
    "malicious": "the server may lie in any message; it still learns a sum that the clients agreed on, or nothing",
}
_MANY: Final = 100
"""Clients from which on it is told what a full graph of more costs."""


class Sentence(NamedTuple):
    """Whom or what it is about (empty: as the one before), and what is said."""

    about: str
    text: str


def sentences(section: SecureAggregation, code: RingCode, clients: int) -> list[Sentence]:
    """Return who sees what, on which assumptions, and in which integers, for sums of usually so many ``clients``."""
    return [
        *_others(section, code, clients),
        *(_full_graph(section, clients) or _other_limits(section, clients)),
        _minimum(section, clients),
        *_assumptions(section, clients),
        *integers(section, code),
    ]


def integers(section: SecureAggregation, code: RingCode) -> Iterator[Sentence]:
    """Yield the split of the bits, the steps, the error of weights, and the bytes of a client."""
    groups = "a group" if section.group_size is not None else "a cohort"
    most = count_text(code.clients)
    yield Sentence("integers", f"no sum overflows, for up to {most} clients in {groups} and the largest weights")
    for branch in code.branches:
        yield Sentence("", branch_text(code, branch))
    yield Sentence("", _weights(code))
    bits = sorted({run.bits for run in code.lanes})
    shown = f"{bits[0]} to {bits[-1]}" if len(bits) > 1 else str(bits[0])
    lanes = len(code.layout.lanes)
    yield Sentence(
        "",
        f"{lanes} counts, weights and statistics in the same vector, {shown} bits each in the sum: what the largest "
        f"sum of each needs, {FEWEST_BITS} at least",
    )
    parts = " + ".join(f"{count_text(each.length)} x {each.bits}" for each in code.ring.segments)
    size = bytes_text(float(code.ring.nbytes))
    yield Sentence("", f"{size} for each client's vector, whatever is in it: {parts} bits, each part in whole bytes")


def branch_text(code: RingCode, branch: BranchCode) -> str:
    """Return which integers the entries of a branch are, how many bits their sum takes, and why so many."""
    own = (branch.limit + 1).bit_length()
    weights = f" x {count_text(code.weight_steps)} units of weight" if code.weight_steps > 1 else ""
    noise = f", with noise of up to {count_text(branch.tail)} steps" if branch.tail else ""
    clipped = ", the clip norm," if code.norm is not None else ""
    padding = (
        f"; its {count_text(branch.size)} entries are padded to {count_text(branch.length)}, for blocks of "
        f"{count_text(branch.block)} that are rotated together"
    )
    return (
        f"{branch.name}: entries of up to {branch.step * branch.limit:g}{clipped} in steps of {branch.step:.3g} ({own} "
        f"bits with the sign), {branch.bits} bits in the sum, for up to {count_text(code.clients)} clients{weights} x "
        f"{count_text(branch.limit)} steps{noise}{padding if branch.length > branch.size else ''}"
    )


def _weights(code: RingCode) -> str:
    if code.weight_steps == 1:
        return f"weights: every update counts {code.weight_unit:g}, or nothing where it is empty"
    unit, tenth = code.weight_unit, code.max_weight / 10
    largest = f"weights: up to {code.max_weight:g} in units of {unit:g}"
    if not code.weight_error(1.0):
        return f"{largest}, so that none is rounded; a larger one counts as that much"
    return (
        f"{largest}; one of at least {tenth:g} is off by at most {100 * code.weight_error(tenth):.2g}%, one of less "
        f"than {unit:g} counts as {unit:g}, a larger one as {code.max_weight:g}"
    )


def _others(section: SecureAggregation, code: RingCode, clients: int) -> Iterator[Sentence]:
    """Yield what a decryptor, another client and somebody on the network see."""
    full = graph_of(section, clients)[0] == "secagg-full"
    if section.protocol == "oneshot-seeds":
        yield Sentence(
            "a decryptor sees",
            "who reported, and one sealed seed of 32 bytes of each; no vector. It gives one sum of the masks of its "
            "seeds in which a client's of a round is, and none below its own minimum",
        )
        yield Sentence("another client sees", "the model and the decryptors' keys; of other clients nothing")
    else:
        peers = "every other client" if full else "the clients that it is paired with"
        yield Sentence("a decryptor sees", "there is none: the clients remove the masks of a sum together")
        yield Sentence(
            "another client sees",
            f"the model, the public keys of {peers}, and one share of the secrets of each, which tells nothing by "
            "itself; of their updates nothing",
        )
    if section.registrar == "authority":
        more = ", and who was ready for it" if section.beacon and not full else ""
        seen = f"whose keys each sum is of, and its task{more}; no seed, no share, no vector"
        yield Sentence("the authority sees", seen)
    yield Sentence(
        "a network observer sees",
        f"who talks to the server, when and how much: {bytes_text(float(code.ring.nbytes))} of masked vector for each "
        "client alike. What is said is encrypted by TLS; without it, who reads all of it sees what the server sees, "
        "and so the sum, but no single update",
    )


def _full_graph(section: SecureAggregation, clients: int) -> list[Sentence]:
    """Return how many may collude and drop out where every pair of clients masks; nothing for other protocols."""
    if graph_of(section, clients)[0] != "secagg-full":
        return []
    full, begins = replace(section, protocol="secagg-full", beacon=None), floors_of(section, clients)[0]
    threshold, colluders = full.threshold(clients), full.tolerated_colluders(clients)
    if threshold is None or colluders is None:
        return []
    # a server that lies begins with as few as it may; of three numbers in a row one stands fewest
    small = min((clients, *range(begins, min(begins + 3, clients))), key=lambda n: full.tolerated_colluders(n) or 0)
    fewest = full.tolerated_colluders(small) or 0
    few = f" where all begin, and up to {fewest} where only {small} do" if fewest < colluders else ""
    costs = (
        f"each client has {count_text(clients - 1)} neighbours: it agrees a key with each of them, gives each a share "
        "of its secrets and adds a mask for each; more than a sparse graph or oneshot-seeds takes by far"
    )
    return [
        Sentence(
            "may collude",
            f"the server with up to {fewest} of {clients} clients, and they learn the sum of the others only "
            f"(t = floor(2n/3) + 1 = {threshold}, and t > (n + c)/2 holds for c up to {colluders}{few}); the plan "
            f"assumes {section.assumed_colluding} at most. With more they could read single updates",
        ),
        *([Sentence("", _why_full(section, clients))] if section.protocol == "secagg-plus" else []),
        *([Sentence("", costs)] if clients > _MANY else []),
        Sentence(
            "may drop out",
            f"{clients - least_shown(section, clients, clients)} of {clients} clients, at any moment; with more the "
            "round is abandoned, and nothing is shown",
        ),
    ]


def _other_limits(section: SecureAggregation, clients: int) -> list[Sentence]:
    """Return how many may collude and drop out in the other protocols."""
    colluding = section.assumed_colluding
    if section.protocol == "oneshot-seeds":
        return [
            Sentence("may collude", f"the server with up to {colluding} clients and all decryptors but one"),
            Sentence("may drop out", "any number: who has not reported is not in the sum, and nobody is needed again"),
        ]
    return [
        Sentence(
            "may collude",
            f"the server with {colluding} of {clients} clients; {_graph(section, clients)}",
        ),
        Sentence(
            "may drop out",
            f"{section.expected_dropout:.0%} of {clients} clients, for which the graph is drawn; with more a round may "
            "be abandoned, and nothing is shown",
        ),
    ]


def _graph(section: SecureAggregation, clients: int) -> str:
    """Return the graph of pairs of so many clients, and with which chance it protects."""
    graph = graph_of(section, clients)[1]
    drawn = f"each is paired with k = {graph.neighbours} others, and t = {graph.threshold} shares give a secret back"
    if section.server == "curious":
        return f"{drawn}, so that this holds but for a chance of 2^-40"
    return (
        f"{drawn}, so that this holds for a beacon that is drawn once but for a chance of 2^-40. A server that gives "
        "rounds up until the graph suits it has that chance with each beacon"
    )


def _why_full(section: SecureAggregation, clients: int) -> str:
    """Return why so many clients of ``secagg-plus`` have a full graph, and that nobody draws that."""
    why = "so few that every pair of them masks, as with secagg-full"
    if lost_too_many(section, clients):
        why = (
            f"no sparse graph of so many stands an expected_dropout of {section.expected_dropout:.0%}, so that every "
            "pair of them masks, as with secagg-full: for fewer pairs lower it, or use oneshot-seeds, which stands any"
        )
    undrawn = ". There is no graph to draw then, and the authority is not asked for one" if section.beacon else ""
    return f"{why}{undrawn}"


def _minimum(section: SecureAggregation, clients: int) -> Sentence:
    """Return with how many a sum begins, and how many must be left: of a full graph fewer where fewer begin."""
    cohort, never = floors_of(section, clients)[0], "is never shown"
    least, fewest = (least_shown(section, clients, begun) for begun in (max(clients, cohort), cohort))
    few = f" (than {fewest}, where only {cohort} begin)" if fewest < least else ""
    if section.protocol == "secagg-plus" and section.server == "malicious" and graph_of(section, clients)[1].neighbours:
        never = "is not shown where the server tells all of them the same"
    return Sentence(
        "", f"a sum of fewer than {least} of {clients} clients {never}{few}, and none begins with fewer than {cohort}"
    )


def _assumptions(section: SecureAggregation, clients: int) -> Iterator[Sentence]:
    """Yield what is taken for granted, and what a sum does not hide."""
    yield Sentence("it assumes", _SERVER[section.server])
    at_decryptors = section.registrar == "pinned" and section.decryptors
    authority = "an authority" if section.authority is None else section.authority.operator
    registrar = _REGISTRAR[section.registrar].format(authority=authority)
    yield Sentence("", _PINNED_AT_DECRYPTORS if at_decryptors else registrar)
    if section.registrar == "authority" and section.decryptors:
        yield Sentence("", _AUTHORITY_AT_DECRYPTORS)
    if section.decryptors:
        *rest, last = sorted({each.operator for each in section.decryptors})
        named = f"{', '.join(rest)} and {last}"
        yield Sentence(
            "",
            f"one of {named} does not work with the server: all of them with it can read every update. Who runs each "
            "is what its own settings and each site's policy say, by its key",
        )
    if section.beacon is not None and graph_of(section, clients)[1].neighbours:
        yield Sentence(
            "",
            f"{authority} draws the graph of pairs at random, once for each sum, after it has seen the signed keys of "
            "those who take part; nobody who runs it works with the server, which could choose the graph then",
        )
    others = least_summed(section, clients)
    yield Sentence(
        "it does not hide",
        f"the sum itself, in which an update is one of as few as {others} that nobody else knows. Without differential "
        "privacy nothing bounds what sums and models tell about one client, in particular over many rounds",
    )
