"""Two implementations, numpy's and plain integers', agree on every byte and on the sum (gate 13)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.secagg import plain

from hansa.core.ring import Ring, Segment
from hansa.secagg import field, keys
from hansa.secagg.beacon import Beacon
from hansa.secagg.masks import Mask, apply
from hansa.secagg.messages import Advert, Masked, Unmask, header_of
from hansa.secagg.server import Phase
from hansa.testing.secagg import Federation

SHAPE = ((9, 20), (1, 40), (3, 11))
RING = Ring(tuple(Segment(f"s{place}", *each) for place, each in enumerate(SHAPE)))

SECRETS = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=3)


@settings(max_examples=30, deadline=None)
@given(
    SECRETS,
    st.integers(2, 9),
    st.sets(st.integers(0, 400), min_size=9, max_size=14),
    st.binary(min_size=32, max_size=32),
)
def test_shares_and_secrets_are_the_same(secrets, threshold, holders, key):
    holders = sorted(holders)
    mine = field.share(b"".join(secrets), threshold=threshold, places=np.array(holders) + 1, key=key)
    theirs = plain.shares(secrets, threshold, holders, key)
    assert [each.tobytes() for each in mine.reshape(len(holders), -1)] == [theirs[each] for each in holders]
    chosen = holders[-threshold:]
    for place, secret in enumerate(secrets):
        found = field.combine(np.array([chosen]) + 1, mine[-threshold:, place][None])
        points = {each: theirs[each][44 * place : 44 * place + 44] for each in chosen}
        assert found == [secret]
        assert plain.combine(points) == secret


@settings(max_examples=20, deadline=None)
@given(
    st.binary(min_size=32, max_size=32),
    st.lists(st.tuples(st.integers(0, 30), st.integers(8, 64)), min_size=1, max_size=4),
)
def test_masks_are_the_same(key, shape):
    ring = Ring(tuple(Segment(f"s{place}", *each) for place, each in enumerate(shape)))
    total = ring.zeros()
    apply([Mask(key)], total)
    assert [row.tolist() for row in ring.reduce(total)] == plain.mask(key, shape)


def test_the_ladder_is_that_of_the_library():
    for number in range(5):
        secret, other = bytes([number]) * 32, plain.public(bytes([77]) * 32)
        assert plain.x25519(secret, other) == keys.agree(keys.private_key(secret), other)


PLUS = {"neighbours": 4, "threshold": 3}


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [("secagg-full", {}), ("secagg-plus", PLUS),
     ("secagg-plus", {**PLUS, "registrar": "authority", "beacon": "authority"})],
)  # fmt: skip
def test_a_whole_round_is_the_same_byte_for_byte(protocol, settings):
    one = Federation(7, protocol=protocol, ring=RING, settings=settings)
    one.run(drop={(2, "share"), (5, "mask")})
    assert one.server.phase is Phase.DONE
    task = one.task.hash
    sent = {(header_of(each).kind, header_of(each).client): each for each in one.server_log if each[:4] == b"HSA1"}
    clients = {
        each: plain.Client(each, one.client_logs[each][0][4:36], [row.tolist() for row in one.vectors[each]], task,
                           SHAPE, 7, one.identities[each].sign)
        for each in range(7)
    }  # fmt: skip
    adverts = {each: Advert.decode(sent[2, each], task) for each in range(7)}
    around = {
        each: {other: (adverts[other].sealing, adverts[other].masking) for other in one.server.graph.neighbours(each)}
        for each in range(7)
    }
    if settings:
        drawn = Beacon.decode(sent[19, 7], task).value if one.task.beacon else b""
        assert {each: list(found) for each, found in around.items()} == plain.circle(task, range(7), 7, drawn, 4)
    for index, client in clients.items():
        assert client.advert() == sent[2, index]
        if index == 2:
            continue
        assert client.shares(range(7), around[index], one.server.graph.threshold) == sent[4, index]
        if index != 5:
            assert client.masked({other: each for other, each in around[index].items() if other != 2}) == sent[6, index]
    assert unmasked(one, clients, sent, around) == [row.tolist() for row in one.server.result]


def unmasked(one, clients, sent, around):
    """Unmask with plain integers: from the masked vectors, the revealed shares and the adverts alone."""
    task, alive, threshold = one.task.hash, [0, 1, 3, 4, 6], one.server.graph.threshold
    given = {each: Unmask.decode(sent[11, each], task).read_shares() for each in alive}
    revealed = {
        each: dict(zip(dealers.tolist(), map(bytes, shares), strict=True)) for each, (dealers, shares) in given.items()
    }
    total = [[0] * length for length, _ in SHAPE]
    for each in alive:
        vector = RING.unpack(Masked.decode(sent[6, each], task).vector)
        total = plain.added(total, [row.tolist() for row in vector], SHAPE)

    def secret(dealer):
        points = {holder: got[dealer] for holder, got in revealed.items() if dealer in got}
        return plain.combine(dict(list(points.items())[-threshold:]))

    for each in alive:
        own = plain.derive(secret(each), "self", task, plain.u32(each))
        total = plain.added(total, plain.mask(own, SHAPE), SHAPE, -1)
    clients[5].mask_secret = secret(5)
    for other in set(around[5]) & set(alive):
        pair = clients[5].pair(other, around[5][other][1])
        total = plain.added(total, plain.mask(pair, SHAPE), SHAPE, -1 if other < 5 else 1)
    assert total == [
        [sum(column) % 2**bits for column in zip(*(one.vectors[each][place].tolist() for each in alive), strict=True)]
        for place, (_, bits) in enumerate(SHAPE)
    ]
    return total
