"""How the server gets secrets back from shares, checks them against their commitments, and takes the masks away."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hansa.core.ring import RingVector
from hansa.secagg import keys
from hansa.secagg.commitments import KEY, SEED, commitment, share_hashes
from hansa.secagg.field import combine
from hansa.secagg.graph import Graph
from hansa.secagg.masks import Mask, apply_on_threads
from hansa.secagg.messages import Advert, Unmask


@dataclass(frozen=True)
class Revealed:
    """What one holder revealed: the shares [m, 44] that fit the hashes of their dealers [m], sorted."""

    dealers: NDArray[np.uint32]
    shares: NDArray[np.uint8]


@dataclass(frozen=True)
class Unmasked:
    """How unmasking went: nothing lacking, or why there is no sum, and dealers whose shares give no secret."""

    lacking: str = ""
    dealers: tuple[int, ...] = ()


def checked_shares(message: Unmask, hashes: NDArray[np.uint8], alive: NDArray[np.bool_]) -> Revealed:
    """Return those of a message's shares [m] that fit the hashes [m, 64] that their dealers signed.

    ``alive`` says of everybody in the roster whether its vector is in the sum.
    """
    dealers, shares = message.read_shares()
    living = alive[dealers]
    signed = np.where(living[:, None], hashes[:, : keys.KEY_BYTES], hashes[:, keys.KEY_BYTES :])
    found = share_hashes(message.task, dealers, message.client, np.where(living, SEED, KEY), shares)
    good = (found == signed).all(axis=1)
    return Revealed(dealers[good], shares[good])


def unmask(  # noqa: PLR0913 - all that a round has gathered
    graph: Graph,
    shared: Sequence[int],
    survivors: Sequence[int],
    *,
    adverts: Mapping[int, Advert],
    revealed: Mapping[int, Revealed],
    total: RingVector,
    threads: int,
) -> Unmasked:
    """Take every mask off the total of the survivors' vectors, in place, or say why that cannot be done."""
    alive = set(survivors)
    needed = [each for each in shared if each in alive or alive & set(graph.neighbours(each))]
    lacking = Unmasked(f"too few clients gave shares that fit: {graph.threshold} are needed")
    if not revealed:
        return lacking
    points = _points(revealed)
    if any(len(points.rows.get(dealer, ())) < graph.threshold for dealer in needed):
        return lacking
    found = _secrets(graph, needed, points, adverts, alive)
    liars = tuple(dealer for dealer in needed if dealer not in found)
    if liars:
        return Unmasked("some shares give no secret that fits its commitment", liars)
    apply_on_threads(_masks(graph, found, adverts, alive), total, graph.task.ring, threads)
    return Unmasked()


class _Points(NamedTuple):
    """Places [m] and shares [m, 44] of all dealers, and each dealer's rows, in the order of holders."""

    places: NDArray[np.int64]
    shares: NDArray[np.uint8]
    rows: Mapping[int, range]


def _points(revealed: Mapping[int, Revealed]) -> _Points:
    holders = sorted(revealed)
    dealers = np.concatenate([revealed[each].dealers for each in holders])
    order = np.argsort(dealers, kind="stable")
    found, first, count = np.unique(dealers[order], return_index=True, return_counts=True)
    return _Points(
        np.repeat(holders, [len(revealed[each].dealers) for each in holders])[order] + 1,
        np.concatenate([revealed[each].shares for each in holders])[order],
        dict(zip(found.tolist(), map(range, first.tolist(), (first + count).tolist()), strict=True)),
    )


def _secrets(
    graph: Graph, needed: Sequence[int], points: _Points, adverts: Mapping[int, Advert], alive: Collection[int]
) -> dict[int, bytes]:
    """Return the secrets that fit their commitments: from the first t shares, else from any t in a row."""
    found: dict[int, bytes] = {}
    threshold, most = graph.threshold, max(len(points.rows[each]) for each in needed)
    for first in range(most - threshold + 1):
        left = [each for each in needed if each not in found and len(points.rows[each]) >= first + threshold]
        if not left:
            break
        windows = np.array([points.rows[each].start for each in left])[:, None] + np.arange(first, first + threshold)
        secrets = combine(points.places[windows], points.shares[windows])
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
