"""The roster: who may take part in a task, as identity keys under one root that a registrar vouches for.

A Merkle tree as in RFC 9162, section 2.1: leaves and nodes are hashed apart, and an odd node is carried up as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from hansa.secagg.encoding import u32
from hansa.secagg.keys import KEY_BYTES, digest
from hansa.secagg.refusals import unsound

Registrar = Literal["server", "pinned", "authority"]
"""Who vouches for a roster: the server, each client's own list of keys, or an authority apart from the server."""

_LEAF = b"\x00hansa/secagg/v1|leaf|"
_NODE = b"\x01"


def _leaf(place: int, identity: bytes) -> bytes:
    return hashlib.sha256(_LEAF + u32(place) + identity).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


@dataclass(frozen=True)
class Roster:
    """Identity keys (Ed25519, 32 bytes each); a client's index in it is its name in the task."""

    identities: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if any(len(each) != KEY_BYTES for each in self.identities):
            raise unsound("A roster holds a key that is not 32 bytes long.")
        if len(set(self.identities)) < len(self.identities):
            raise unsound("A roster holds a key twice.")

    @cached_property
    def _levels(self) -> list[list[bytes]]:
        levels = [[_leaf(place, each) for place, each in enumerate(self.identities)]]
        while len(levels[-1]) > 1:
            nodes = levels[-1]
            above = [_node(*nodes[at : at + 2]) for at in range(0, len(nodes) - 1, 2)]
            levels.append(above + nodes[len(above) * 2 :])
        return levels

    @property
    def root(self) -> bytes:
        """Return the root of the tree, 32 bytes."""
        return self._levels[-1][0]

    def proof(self, place: int) -> tuple[bytes, ...]:
        """Return the nodes beside the way from a leaf to the root."""
        beside = []
        for nodes in self._levels[:-1]:
            if place ^ 1 < len(nodes):
                beside.append(nodes[place ^ 1])
            place //= 2
        return tuple(beside)


def proven(root: bytes, size: int, place: int, identity: bytes, proof: Sequence[bytes]) -> bool:
    """Say whether a key has a place in the roster of a root and size."""
    if not 0 <= place < size:
        return False
    node, rest, last = _leaf(place, identity), iter(proof), size - 1
    while last:
        if place ^ 1 <= last:
            beside = next(rest, b"")
            node = _node(beside, node) if place & 1 else _node(node, beside)
        place, last = place // 2, last // 2
    return node == root and next(rest, None) is None


def registration(root: bytes, size: int) -> bytes:
    """Return what a registrar signs under the purpose ``roster``; an authority signs the task's hash with it."""
    return digest("roster", root, u32(size))
