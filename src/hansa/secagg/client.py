"""The client of ``secagg-full`` and ``secagg-plus``: it advertises, shares, masks, consents and helps to unmask.

Source: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning",
https://eprint.iacr.org/2017/281, figure 4 with the steps against an active server; the graph of Bell et al. 2020.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

import numpy as np

from hansa.secagg import field, keys
from hansa.secagg.beacon import beacon_value
from hansa.secagg.commitments import both_hashes, commitment
from hansa.secagg.contribution import Contribution
from hansa.secagg.encoding import Buffer, Reader, from_bitmap, prefixed, u32
from hansa.secagg.graph import Graph, sets_digest
from hansa.secagg.masks import Mask, masked
from hansa.secagg.messages import (
    Abort,
    Advert,
    Announcement,
    Complaint,
    Consistent,
    Deliveries,
    Keys,
    Masked,
    Neighbour,
    Quorum,
    SealedShares,
    Shares,
    Survivors,
    Unmask,
    header_of,
    vector_front,
)
from hansa.secagg.policy import ClientPolicy
from hansa.secagg.refusals import answered, malformed, unexpected, untrusted
from hansa.secagg.step import Outgoing, Step
from hansa.secagg.task import Task

SEED_BYTES: Final = 32
_RECORD: Final = b"HSC1"
_NO_SHARES: Final = bytes(2 * field.SHARE_BYTES)


class Phase(IntEnum):
    """What the client has answered last."""

    ADVERTISED = 0
    SHARED = 1
    MASKED = 2
    CONSISTENT = 3
    UNMASKED = 4
    LEFT = 5


@dataclass(frozen=True)
class _Pair:
    """What a client keeps about one neighbour."""

    identity: bytes
    masking: bytes
    sending: bytes
    receiving: bytes
    mask: bytes


class MaskingClient:
    """A client of one task. Made by :meth:`start` and :meth:`restore`."""

    def __init__(
        self, announcement: bytes, signer: keys.Signer, identity: bytes, policy: ClientPolicy, given: Contribution
    ) -> None:
        header = header_of(announcement)
        message = Announcement.decode(announcement, header.task)
        self.task: Task = policy.accepted(message, identity)
        if self.task.protocol == "oneshot-seeds":
            raise unexpected("The task is of another protocol.")
        if (given.plan_sha256, given.model_sha256) != (self.task.plan_sha256, self.task.model_sha256):
            raise untrusted("The task is for another plan or model than the vector was computed for.")
        self.index = header.client
        self.phase = Phase.ADVERTISED
        self._identity, self._signer, self._policy, self._given = identity, signer, policy, given
        self._announcement = bytes(announcement)
        given.check(self.task.ring)
        self._content = given.sha256()
        self._asked: dict[Phase, bytes] = {}
        self._reply = b""
        self._spent: Container[bytes] = ()
        self.revealed = False
        """Whether this client has helped to unmask: from then on, however the task ends, it joins no other attempt."""

    @classmethod
    def start(  # noqa: PLR0913 - a client is what it is, what it demands and what it gives
        cls,
        announcement: bytes,
        *,
        signer: keys.Signer,
        identity: bytes,
        policy: ClientPolicy,
        given: Contribution,
        random: keys.Random,
        spent: Container[bytes] = (),
    ) -> tuple[MaskingClient, Step]:
        """Return a client that has accepted a task, and its advert.

        ``identity`` is the public key of ``signer``; ``random`` gives n bytes that nobody can guess. ``spent`` holds
        ``hash`` of the tasks that this client ever took part in, and ``report_id`` of those that it helped to unmask
        (see ``revealed``): two sums of one round over different clients would uncover their difference. It is looked
        at once more before this client helps to unmask. Raises RefusedError where a check fails.
        """
        client = cls(announcement, signer, identity, policy, given)
        if client.task.hash in spent or client.task.report_id in spent:
            raise answered("This client has taken part in the task before, or helped to unmask its round.")
        client._spent = spent
        return client, client._begin(random(SEED_BYTES))

    @classmethod
    def restore(  # noqa: PLR0913 - as for start
        cls,
        records: Sequence[Buffer],
        *,
        signer: keys.Signer,
        identity: bytes,
        policy: ClientPolicy,
        given: Contribution,
        spent: Container[bytes] = (),
    ) -> tuple[MaskingClient, Step]:
        """Return the client of its records, and its last message again. Another vector than the first is refused."""
        reader = Reader(records[0] if records else b"")
        if reader.fixed(len(_RECORD)) != _RECORD:
            raise malformed("The first record is not that of a client.")
        seed, content = reader.fixed(SEED_BYTES), reader.fixed(32)
        client = cls(reader.blob(), signer, identity, policy, given)
        if not hmac.compare_digest(client._content, content):
            raise answered("The vector is not the one that this client began the task with.")
        step = client._begin(seed)
        for record in records[1:]:
            step = client.on_message(bytes(record))
        client._spent = spent  # only now: what was answered is answered again
        return client, Step(send=step.send)

    @property
    def done(self) -> bool:
        """Say whether nothing more will be asked of this client; its records and keys can go, its task is spent."""
        return self.phase in {Phase.UNMASKED, Phase.LEFT}

    def on_deadline(self) -> Step:
        """Leave the task: the server has not answered in time. Nothing more is sent."""
        self._leave()
        return Step()

    def on_message(self, message: Buffer) -> Step:
        """Take a message of the server. Raises RefusedError, with nothing changed, where a check fails.

        A repeat of a request that was answered last gives the same bytes again; a different one is refused.
        """
        header = header_of(message)
        if header.task != self.task.hash or header.client != self.index:
            raise unexpected("A message came that is for another task or client.")
        if header.kind == Abort.kind:
            Abort.decode(message, self.task.hash)
            self._leave()
            return Step(persist=(message,))
        if self.phase is Phase.LEFT:
            raise unexpected("This client has left the task.")
        phase, answer = self._answer_of(header.kind)
        if phase <= self.phase:
            if phase == self.phase and hmac.compare_digest(self._asked[phase], hashlib.sha256(message).digest()):
                return Step(send=(Outgoing(self.index, self._reply),))
            raise answered("A phase that was answered is asked for again, or differently.")
        if phase != self.phase + 1:
            raise unexpected("A phase is asked for before the one that comes first.")
        reply = answer(message)
        self._asked[phase] = hashlib.sha256(message).digest()
        self.phase, self._reply = phase, reply
        return Step(persist=(message,), send=(Outgoing(self.index, self._reply),))

    def _answer_of(self, kind: int) -> tuple[Phase, Callable[[Buffer], bytes]]:
        answers: dict[int, tuple[Phase, Callable[[Buffer], bytes]]] = {
            Keys.kind: (Phase.SHARED, self._share),
            Deliveries.kind: (Phase.MASKED, self._mask),
            Survivors.kind: (Phase.CONSISTENT, self._consent),
            Quorum.kind: (Phase.UNMASKED, self._unmask),
        }
        if kind not in answers:
            raise unexpected("A client takes no message of that kind.")
        return answers[kind]

    def _begin(self, seed: bytes) -> Step:
        task = self.task.hash
        self._seed = seed
        self._sealing_key = keys.private_key(keys.derive(seed, "enc-key", task))
        self._mask_secret = keys.derive(seed, "mask-key", task)
        self._self_seed = keys.derive(seed, "self-seed", task)
        self._sealing = self._sealing_key.public_key().public_bytes_raw()
        self._masking = keys.private_key(self._mask_secret).public_key().public_bytes_raw()
        committed = commitment(self._self_seed, task, self.index)
        unsigned = Advert(self.index, task, self._sealing, self._masking, committed, b"")
        advert = replace(unsigned, signature=keys.sign(self._signer, "adv", *unsigned.signed_fields()))
        self._reply = advert.encode()
        record = _RECORD + seed + self._content + prefixed(self._announcement)
        return Step(persist=(record,), send=(Outgoing(self.index, self._reply),))

    def _leave(self) -> None:
        """Drop every secret. Python cannot promise that no copy is left in memory."""
        self.phase, self._reply = Phase.LEFT, b""
        self._forget()

    def _forget(self) -> None:
        self._seed = self._mask_secret = self._self_seed = b""
        self._pairs: dict[int, _Pair] = {}
        self._received: dict[int, bytes] = {}
        for name in ("_sealing_key", "_given", "_own_share"):
            vars(self).pop(name, None)

    def _share(self, content: Buffer) -> bytes:
        """Answer the neighbours' keys with shares of this client's two secrets."""
        message = Keys.decode(content, self.task.hash)
        beacon = beacon_value(self.task, message.advertised, message.beacon, self._policy.authority_key)
        graph = Graph(self.task, from_bitmap(message.advertised, self.task.roster_size), beacon)
        self._check_graph(graph)
        neighbours = message.read_neighbours()
        if tuple(each.advert.client for each in neighbours) != graph.neighbours(self.index):
            raise untrusted("The keys are not those of this client's neighbours.")
        self._check_keys(neighbours)
        pairs = self._agreed(neighbours, message.advertised)
        holders = graph.holders_within(self.index, graph.advertised)
        coefficients = keys.derive(self._seed, "coefficients", self.task.hash, message.advertised)
        places = np.array(holders) + 1
        secrets = self._self_seed + self._mask_secret
        shares = field.share(secrets, threshold=graph.threshold, places=places, key=coefficients)
        hashes = both_hashes(self.task.hash, self.index, holders, shares)
        own, own_hashes, entries = b"", b"", b""
        for holder, both, signed in zip(holders, map(bytes, shares), map(bytes, hashes), strict=True):
            if holder == self.index:
                own, own_hashes = both, signed
            else:
                sealed = keys.seal(pairs[holder].sending, both, _between(self.task.hash, self.index, holder))
                entries += SealedShares(holder, signed, sealed).encode()
        self._graph, self._pairs, self._own_share = graph, pairs, own
        unsigned = Shares(self.index, self.task.hash, own_hashes, entries, b"")
        return replace(unsigned, signature=keys.sign(self._signer, "shares", *unsigned.signed_fields())).encode()

    def _check_graph(self, graph: Graph) -> None:
        count, threshold = len(graph.advertised), graph.threshold
        if self.index not in graph.advertised:
            raise untrusted("This client is not among those that advertised.")
        if count < max(self.task.minimum_cohort, self._policy.minimum_cohort):
            raise untrusted(f"{count} clients advertised, fewer than the task or the policy demands.")
        if not self._policy.minimum_threshold <= threshold <= graph.holders:
            raise untrusted(f"{threshold} of {graph.holders} shares would give a secret back.")

    def _check_keys(self, neighbours: Sequence[Neighbour]) -> None:
        seen, identities = {self._sealing, self._masking}, {self._identity}
        for advert, identity, proof in neighbours:
            self._policy.check_member(self.task, advert.client, identity, proof)
            if not keys.signed(identity, advert.signature, "adv", *advert.signed_fields()):
                raise untrusted("A neighbour's keys are not signed by its identity.")
            seen |= {advert.sealing, advert.masking}
            identities.add(identity)
        if len(seen) != 2 * len(neighbours) + 2:
            raise untrusted("Two keys of a round are the same.")
        if len(identities) != len(neighbours) + 1:
            raise untrusted("An identity has two places in the roster: one client would count as several.")

    def _agreed(self, neighbours: Sequence[Neighbour], advertised: bytes) -> dict[int, _Pair]:
        task, masking_key = self.task.hash, keys.private_key(self._mask_secret)
        pairs = {}
        for advert, identity, _ in neighbours:
            other = advert.client
            try:
                sealed = keys.agree(self._sealing_key, advert.sealing)
                shared = keys.agree(masking_key, advert.masking)
            except ValueError:
                raise untrusted("A neighbour's key is of small order.") from None
            ids = u32(self.index), u32(other)
            publics = self._sealing, advert.sealing
            pairs[other] = _Pair(
                identity,
                advert.masking,
                keys.derive(sealed, "share-enc", task, advertised, *ids, *publics),
                keys.derive(sealed, "share-enc", task, advertised, *ids[::-1], *publics[::-1]),
                keys.pair_key(shared, task, (self.index, other), (self._masking, advert.masking)),
            )
        return pairs

    def _mask(self, content: Buffer) -> bytes:
        """Answer the neighbours' shares with the masked vector, or with a complaint."""
        message = Deliveries.decode(content, self.task.hash)
        shared = from_bitmap(message.shared, self.task.roster_size)
        if not {self.index} <= set(shared) <= set(self._graph.advertised):
            raise untrusted("Those who shared are not some of those who advertised, with this client.")
        self._check_enough(shared)
        present = [each for each in self._graph.holders_within(self.index, shared) if each != self.index]
        entries = message.read_entries()
        if [each.client for each in entries] != present:
            raise untrusted("The shares are not those of this client's neighbours.")
        received = self._opened(entries)
        self._shared = shared
        accused = tuple(dealer for dealer, both in received.items() if both is None)
        if accused:
            self._received = {}
            complaint = Complaint(self.index, self.task.hash, accused, b"")
            signature = keys.sign(self._signer, "complaint", *complaint.signed_fields())
            return replace(complaint, signature=signature).encode()
        self._received = {dealer: both for dealer, both in received.items() if both is not None}
        ring, behind = self.task.ring, keys.SIGNATURE_BYTES
        front = vector_front(Masked.kind, self.index, self.task.hash, ring.nbytes, behind)
        masked_with = b"".join(self._pairs[each].masking for each in present)

        def end(content: bytes) -> bytes:
            return keys.sign(self._signer, "masked", self.task.hash, u32(self.index), masked_with, content)

        return masked(ring, self._given.vector, self._masks(present), front=front, behind=behind, end=end)

    def _check_enough(self, present: Sequence[int]) -> None:
        if len(present) < max(self.task.minimum_survivors, self._policy.minimum_survivors):
            raise untrusted(f"{len(present)} clients are left, fewer than the task or the policy demands.")
        if len(self._graph.holders_within(self.index, present)) < self._graph.threshold:
            raise untrusted("Too few of this client's neighbours are left to give a secret back.")

    def _opened(self, entries: Sequence[SealedShares]) -> dict[int, bytes | None]:
        """Return what each dealer gave; None where it cannot be opened or does not fit the hashes."""
        dealers, task = [each.client for each in entries], self.task.hash
        opened = [
            keys.unseal(self._pairs[dealer].receiving, sealed, _between(task, dealer, self.index))
            for dealer, _, sealed in entries
        ]
        shares = np.frombuffer(b"".join(each or _NO_SHARES for each in opened), np.uint8)
        hashes = both_hashes(task, dealers, self.index, shares.reshape(-1, 2, field.SHARE_BYTES))
        return {
            dealer: both if hmac.compare_digest(bytes(found), signed) else None
            for (dealer, signed, _), both, found in zip(entries, opened, hashes, strict=True)
        }

    def _masks(self, present: Sequence[int]) -> list[Mask]:
        own = Mask(keys.self_key(self._self_seed, self.task.hash, self.index))
        return [own, *(Mask(self._pairs[each].mask, minus=each < self.index) for each in present)]

    def _consent(self, content: Buffer) -> bytes:
        """Answer the survivors with a signature over the round's sets."""
        message = Survivors.decode(content, self.task.hash)
        survivors = from_bitmap(message.survivors, self.task.roster_size)
        if not self._received:
            raise untrusted("This client gave no vector, so it takes no part in unmasking.")
        if not {self.index} <= set(survivors) <= set(self._shared):
            raise untrusted("The survivors are not some of those who shared, with this client.")
        self._check_enough(survivors)
        agreed = sets_digest(self.task, self._graph.advertised, self._shared, survivors)
        if not keys.signed(self._policy.server_key, message.signature, "survivors", agreed):
            raise untrusted("The server has not signed the same sets.")
        self._survivors, self._agreed_sets = survivors, agreed
        return Consistent(self.index, self.task.hash, keys.sign(self._signer, "surv", agreed)).encode()

    def _unmask(self, content: Buffer) -> bytes:
        """Answer a quorum of signatures with one share of each dealer, and forget every secret."""
        message = Quorum.decode(content, self.task.hash)
        if self.task.report_id in self._spent:
            raise answered("This client has helped to unmask another attempt of the round.")
        signers = {client for client, _ in message.signatures}
        allowed = set(self._graph.holders_within(self.index, self._survivors)) - {self.index}
        if len(signers) != len(message.signatures) or not signers <= allowed:
            raise untrusted("The signatures are not by different neighbours among the survivors.")
        if len(signers) + 1 != self._graph.threshold:
            raise untrusted("There are not as many signatures as shares give a secret back.")
        for client, signature in message.signatures:
            if not keys.signed(self._pairs[client].identity, signature, "surv", self._agreed_sets):
                raise untrusted("A neighbour has not signed the same sets.")
        alive, shares = set(self._survivors), b""
        for dealer in self._graph.holders_within(self.index, self._shared):
            both = self._own_share if dealer == self.index else self._received[dealer]
            shares += u32(dealer) + (both[: field.SHARE_BYTES] if dealer in alive else both[field.SHARE_BYTES :])
        unsigned = Unmask(self.index, self.task.hash, shares, b"")
        signature = keys.sign(self._signer, "unmask", *unsigned.signed_fields())
        self.revealed = True
        self._forget()
        return replace(unsigned, signature=signature).encode()


def _between(task: bytes, sender: int, receiver: int) -> bytes:
    return prefixed(task, u32(sender), u32(receiver))
