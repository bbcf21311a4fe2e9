"""How the server gets secrets back from shares, checks them against their commitments, and takes the masks away."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hansa.core.ring import RingVector
from hansa.secagg import keys
from hansa.secagg.commitments import KEY, SEED, commitment, share_hash
from hansa.secagg.field import SHARE_BYTES, combine
from hansa.secagg.graph import Graph
from hansa.secagg.masks import Mask, apply_on_threads
from hansa.secagg.messages import Advert, SealedShares, Unmask

Points = dict[int, bytes]
"""Holder -> the share of one dealer that it gave and that fits the dealer's hash."""


@dataclass(frozen=True)
class Unmasked:
    """How unmasking went: nothing lacking, or why there is no sum, and dealers whose shares give no secret."""

    lacking: str = ""
    dealers: tuple[int, ...] = ()


def checked_shares(message: Unmask, given: Mapping[int, SealedShares], alive: Collection[int]) -> dict[int, bytes]:
    """Return, by dealer, the shares of a message that fit the hashes that their dealers signed and gave its sender."""
    good, holder, task = {}, message.client, message.task
    for dealer, share in message.shares:
        hashes = given[dealer].hashes
        if dealer in alive:
            kind, signed = SEED, hashes[: keys.KEY_BYTES]
        else:
            kind, signed = KEY, hashes[keys.KEY_BYTES :]
        if hmac.compare_digest(share_hash(task, dealer, holder, kind, share), signed):
            good[dealer] = share
    return good


def unmask(  # noqa: PLR0913 - all that a round has gathered
    graph: Graph,
    shared: Sequence[int],
    survivors: Sequence[int],
    *,
    adverts: Mapping[int, Advert],
    revealed: Mapping[int, Points],
    total: RingVector,
    threads: int,
) -> Unmasked:
    """Take every mask off the total of the survivors' vectors, in place, or say why that cannot be done."""
    alive = set(survivors)
    needed = [each for each in shared if each in alive or alive & set(graph.neighbours(each))]
    points = {dealer: sorted(revealed.get(dealer, {}).items()) for dealer in needed}
    if any(len(each) < graph.threshold for each in points.values()):
        return Unmasked(f"too few clients gave shares that fit: {graph.threshold} are needed")
    found = _secrets(graph, points, adverts, alive)
    liars = tuple(dealer for dealer in needed if dealer not in found)
    if liars:
        return Unmasked("some shares give no secret that fits its commitment", liars)
    apply_on_threads(_masks(graph, found, adverts, alive), total, graph.task.ring, threads)
    return Unmasked()


def _secrets(
    graph: Graph, points: Mapping[int, list[tuple[int, bytes]]], adverts: Mapping[int, Advert], alive: Collection[int]
) -> dict[int, bytes]:
    """Return the secrets that fit their commitments: from the first t shares, else from any t in a row."""
    found: dict[int, bytes] = {}
    threshold, most = graph.threshold, max(map(len, points.values()))
    for first in range(most - threshold + 1):
        left = [each for each in points if each not in found and len(points[each]) >= first + threshold]
        if not left:
            break
        windows = [points[each][first : first + threshold] for each in left]
        places = np.array([[holder + 1 for holder, _ in window] for window in windows])
        joined = np.frombuffer(b"".join(share for window in windows for _, share in window), np.uint8)
        secrets = combine(places, joined.reshape(len(left), threshold, SHARE_BYTES))
        found |= {
            dealer: secret
            for dealer, secret in zip(left, secrets, strict=True)
            if secret is not None and _fits(graph, adverts[dealer], secret, alive)
        }
    return found


def _fits(graph: Graph, advert: Advert, secret: bytes, alive: Collection[int]) -> bool:
    if advert.client in alive:
        return hmac.compare_digest(commitment(secret, graph.task.hash, advert.client), advert.commitment)
    return hmac.compare_digest(keys.private_key(secret).public_key().public_bytes_raw(), advert.masking)


def _masks(
    graph: Graph, secrets: Mapping[int, bytes], adverts: Mapping[int, Advert], alive: Collection[int]
) -> Iterator[Mask]:
    """Yield what is still in the total, with the other sign: own masks of the living, pair masks with the dropped."""
    task = graph.task.hash
    for client, secret in secrets.items():
        if client in alive:
            yield Mask(keys.self_key(secret, task, client), minus=True)
            continue
        own = keys.private_key(secret)
        for other in graph.neighbours(client):
            if other in alive:
                publics = adverts[client].masking, adverts[other].masking
                shared = keys.agree(own, adverts[other].masking)
                yield Mask(keys.pair_key(shared, task, (client, other), publics), minus=client > other)
