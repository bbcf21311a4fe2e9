"""The server's messages of each phase, made of what clients sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from hansa.secagg import keys
from hansa.secagg.convention import Convention
from hansa.secagg.dealt import Dealt
from hansa.secagg.encoding import to_bitmap
from hansa.secagg.graph import Graph
from hansa.secagg.messages import (
    Advert,
    Announcement,
    Deliveries,
    Keys,
    Message,
    Neighbour,
    Quorum,
    Survivors,
)
from hansa.secagg.task import Task


def announcements(convention: Convention, to: Iterable[int]) -> Iterator[Message]:
    """Yield the task for each client."""
    task, roster = convention.task, convention.roster
    signature = keys.sign(convention.signer, "task", task.hash)
    for client in to:
        yield Announcement(
            client, task.hash, task.content, roster.proof(client), convention.registration, signature,
            convention.decryptors,
        )  # fmt: skip


def keys_of(
    convention: Convention, graph: Graph, adverts: Mapping[int, Advert], to: Iterable[int], beacon: bytes = b""
) -> Iterator[Message]:
    """Yield the adverts of each client's neighbours, with the beacon and its signature where there is one."""
    task, roster = convention.task, convention.roster
    advertised = to_bitmap(graph.advertised, task.roster_size)
    entries = {
        client: Neighbour(adverts[client], roster.identities[client], roster.proof(client)).encode()
        for client in graph.advertised
    }
    for client in to:
        yield Keys(client, task.hash, advertised, beacon, tuple(entries[each] for each in graph.neighbours(client)))


def deliveries(task: Task, dealt: Dealt, to: Iterable[int]) -> Iterator[Message]:
    """Yield what each client's neighbours sealed for it."""
    present = to_bitmap(dealt.shared, task.roster_size)
    for client in to:
        yield Deliveries(client, task.hash, present, dealt.sealed(client))


def survivors_of(
    convention: Convention, survivors: Sequence[int], agreed: bytes, to: Iterable[int]
) -> Iterator[Message]:
    """Yield the frozen set of survivors with the server's signature."""
    task = convention.task
    present = to_bitmap(survivors, task.roster_size)
    signature = keys.sign(convention.signer, "survivors", agreed)
    for client in to:
        yield Survivors(client, task.hash, present, signature)


def quorums(graph: Graph, signatures: Mapping[int, bytes], to: Iterable[int]) -> Iterator[Message]:
    """Yield as many neighbours' signatures to each client as it needs beside its own."""
    for client in to:
        others = [each for each in graph.neighbours(client) if each in signatures][: graph.threshold - 1]
        yield Quorum(client, graph.task.hash, tuple((each, signatures[each]) for each in others))
