"""Masks look random in every way that told weak ones apart, and what colluders can compute is masked still."""

from __future__ import annotations

import ast
import hashlib
from importlib import resources

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hansa.core.ring import Ring, Segment
from hansa.secagg import field, keys
from hansa.secagg.masks import BLOCK, CHUNK, TOGETHER, Mask, apply, apply_on_threads, masked, stream
from hansa.secagg.messages import Masked, header_of
from hansa.testing.secagg import Federation

SIZE = 42_000


def linear_complexity(bits):
    """Return the length of the shortest linear recurrence of bits (Berlekamp 1968, Massey 1969)."""
    connection = previous = 1
    window = length = 0
    since = -1
    for place, bit in enumerate(bits):
        window = window << 1 | bit
        if (connection & window).bit_count() & 1:
            kept = connection
            connection ^= previous << place - since
            if 2 * length <= place:
                length, since, previous = place + 1 - length, place, kept
    return length


def assert_random(entries, bits, planes):
    """Assert what a uniform vector of 42,000 entries fulfils but once in some thousand seeds (ours are fixed)."""
    values = entries.astype(np.uint64)
    octets = np.bincount((values & np.uint64(255)).astype(np.int64), minlength=256)
    chi_square = ((octets - SIZE / 256) ** 2 / (SIZE / 256)).sum()
    assert 255 - 4 * np.sqrt(510) < chi_square < 255 + 4 * np.sqrt(510)
    for plane in range(bits):
        column = (values >> np.uint64(plane) & np.uint64(1)).astype(np.int64)
        assert abs(column.sum() - SIZE / 2) < 4 * np.sqrt(SIZE) / 2
        signs = 2 * column - 1
        assert abs((signs[1:] * signs[:-1]).sum()) < 4 * np.sqrt(SIZE)
        if plane in planes:
            assert abs(linear_complexity(column.tolist()) - SIZE / 2) <= 20


def masked_vectors(entry, clients=4, bits=12, drop=()):
    """Return the masked vectors of a round in which every entry of every client is ``entry``, and the federation."""
    ring = Ring((Segment("params", SIZE, bits),))
    vectors = {each: (np.full(SIZE, entry, ring.segments[0].dtype),) for each in range(clients)}
    one = Federation(clients, ring=ring, vectors=vectors)
    kept = {}
    mask = one.ask

    def ask(client, message):
        if client in one.machines and one.machines[client].phase == 1:
            kept[client] = dict(one.machines[client]._pairs), one.machines[client]._self_seed
        return mask(client, message)

    one.ask = ask
    assert one.run(drop=drop) is not None
    found = {
        header_of(each).client: ring.unpack(Masked.decode(each, one.task.hash).vector)
        for each in one.server_log
        if each[:4] == b"HSA1" and header_of(each).kind == Masked.kind
    }
    return one, found, kept


@pytest.mark.parametrize(("entry", "planes"), [(0, range(12)), (2**12 - 1, range(12))])
def test_a_masked_vector_looks_random_whatever_is_in_it(entry, planes):
    _, found, _ = masked_vectors(entry)
    assert_random(found[1][0], 12, planes)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_every_plane_of_a_masked_vector_looks_random(bits):
    _, found, _ = masked_vectors(0, bits=bits)
    assert_random(found[2][0], bits, range(bits))


def test_the_complexity_tells_what_chi_square_does_not():
    """A generator with linear low bits passes every other check here, and is found."""
    weak = np.random.RandomState(5).randint(0, 2**12, SIZE).astype(np.uint16)
    assert linear_complexity((weak & 1).tolist()) == 19937
    with pytest.raises(AssertionError):
        assert_random(weak, 12, {0})
    assert_random(weak, 12, set())


def test_the_server_with_all_but_two_learns_the_sum_of_the_two_only():
    """Colluders know every mask but the one between the two: each residue is random, their sum the sum of both."""
    one, found, kept = masked_vectors(3)
    residues = []
    for client, other in ((0, 1), (1, 0)):
        pairs, seed = kept[client]
        known = [Mask(keys.self_key(seed, one.task.hash, client), minus=True)]
        known += [Mask(each.mask, minus=client < peer) for peer, each in pairs.items() if peer != other]
        residue = tuple(row.copy() for row in found[client])
        apply(known, residue)
        residues.append(one.ring.reduce(residue)[0])
    assert_random(residues[0], 12, {0})
    assert set(((residues[0] + residues[1]) & 4095).tolist()) == {6}


def test_what_a_dropped_client_sent_too_late_stays_masked_by_its_own_seed():
    """Its pair masks are known once its key is: its vector, should it arrive, is random still."""
    one, found, kept = masked_vectors(3, drop={(2, "consist")})
    pairs, _ = kept[2]
    late = tuple(row.copy() for row in found[2])
    apply([Mask(each.mask, minus=peer > 2) for peer, each in pairs.items()], late)
    assert_random(one.ring.reduce(late)[0], 12, {3})


def test_fewer_shares_than_the_threshold_fit_every_secret():
    holders, threshold = np.arange(1, 8), 4
    shares = field.share(b"s" * 32, threshold=threshold, places=holders, key=b"k" * 32)[:, 0]
    for other in (b"o" * 32, bytes(32)):
        # a polynomial through t - 1 of the shares and another secret at 0: it has a share for every other holder
        values = shares[: threshold - 1].copy().view("<u4").astype(object)
        limbs = [int.from_bytes(other, "little") >> 24 * place & 0xFFFFFF for place in range(11)]
        points = [0, *range(1, threshold)]
        rows = [limbs, *values.tolist()]
        fourth = []
        for place in range(11):
            value = 0
            for x, row in zip(points, rows, strict=True):
                weight = 1
                for y in points:
                    if y != x:
                        weight = weight * (4 - y) * pow(x - y, -1, field.PRIME) % field.PRIME
                value += weight * row[place]
            fourth.append(value % field.PRIME)
        forged = np.concatenate([shares[: threshold - 1], np.array([fourth], "<u4").view(np.uint8)])
        assert field.combine(holders[None, :threshold], forged[None]) == [other]


def test_shares_of_one_secret_look_random():
    shares = field.share(b"\0" * 32, threshold=3, places=np.arange(1, 4001), key=b"k" * 32).view("<u4").reshape(-1)
    counts = np.bincount(shares >> 23, minlength=256)
    expected = len(shares) / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 4 * np.sqrt(510)


def test_limbs_and_elements_out_of_range_fit_no_secret():
    places = np.array([[1, 2]])
    whole = np.zeros((1, 2, 11), "<u4")
    for value, good in ((2**24 - 1, True), (2**24, False), (field.PRIME, False)):
        whole[:] = 0
        whole[0, :, 0] = value  # a constant polynomial
        assert (field.combine(places, whole.view(np.uint8).reshape(1, 2, 44)) != [None]) == good
    whole[:] = 0
    whole[0, :, 10] = 1 << 16
    assert field.combine(places, whole.view(np.uint8).reshape(1, 2, 44)) == [None]
    assert field.combine(np.zeros((0, 2), int), np.zeros((0, 2, 44), np.uint8)) == []


def test_every_bit_of_derived_keys_is_used():
    derived = [
        int.from_bytes(keys.pair_key(bytes(32), bytes(32), (one, 3000), (b"a" * 32, b"b" * 32)), "big")
        for one in range(3000)
    ]
    some, every = 0, 2**256 - 1
    for key in derived:
        some, every = some | key, every & key
    assert some == 2**256 - 1
    assert every == 0
    assert len(set(derived)) == 3000


def test_masks_longer_than_a_block_go_on_where_it_ended():
    length = BLOCK // 4 + 77
    total = (np.zeros(length, np.uint32), np.zeros(3, np.uint16))
    apply([Mask(b"k" * 32)], total)
    content = stream(b"k" * 32, 4 * length + 6)
    assert total[0].tobytes() + total[1].tobytes() == content
    apply([Mask(b"k" * 32, minus=True)], total)
    assert not total[0].any()
    assert not total[1].any()


def test_more_masks_than_are_open_at_once_all_count():
    keys_of_masks = [number.to_bytes(32, "big") for number in range(TOGETHER + 3)]
    length = BLOCK // 8 + 5
    total = (np.zeros(length, np.uint64),)
    apply((Mask(key, minus=number % 3 == 0) for number, key in enumerate(keys_of_masks)), total)
    expected = np.zeros(length, np.uint64)
    for number, key in enumerate(keys_of_masks):
        words = np.frombuffer(stream(key, 8 * length), "<u8")
        expected = expected - words if number % 3 == 0 else expected + words
    assert np.array_equal(total[0], expected)


def test_a_vector_that_is_masked_part_by_part_is_the_whole_one_packed_with_its_hash():
    lengths = (CHUNK // 4 + 13, 2 * (CHUNK // 2) + 3, 5, 0)
    ring = Ring(
        tuple(Segment(f"s{bits}", length, bits) for length, bits in zip(lengths, (32, 11, 40, 20), strict=True))
    )
    vector = tuple(np.arange(each.length).astype(each.dtype) & each.dtype.type(each.mask) for each in ring.segments)
    masks = [Mask(b"a" * 32), Mask(b"b" * 32, minus=True)]
    total = tuple(array.copy() for array in vector)
    apply(masks, total)
    hashes = []

    def end(content):
        hashes.append(content)
        return b"the end"

    message = masked(ring, vector, masks, front=b"the front", behind=7, end=end)
    assert message == b"the front" + ring.pack(total) + b"the end"
    assert hashes == [hashlib.sha256(message[:-7]).digest()]
    assert all(np.array_equal(array, np.arange(len(array)).astype(array.dtype) & array.dtype.type(segment.mask))
               for segment, array in zip(ring.segments, vector, strict=True))  # fmt: skip


def counter_mode(key, size):
    """Return AES-256 in counter mode from counter 0, by its blocks in codebook mode (SP 800-38A, section 6.5)."""
    blocks = b"".join(number.to_bytes(16, "big") for number in range(-(-size // 16)))
    return Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(blocks)[:size]  # noqa: S305 - each block once


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_masks_are_the_streams_of_counter_mode_in_every_length_and_type(dtype):
    """Lengths around the first two words of the cipher, which come apart, and around blocks; segments end anywhere."""
    size = BLOCK // np.dtype(dtype).itemsize
    lengths = [(each,) for each in (*range(36), size - 1, size, size + 1, 2 * size + 3)]
    lengths += [(0, 1, 0, 30, 3), (1, 1, 1, 1, 33), (size, 0, 5, size - 3, 17, 1), (15, size + 1, 16, 1)]
    for each in lengths:
        key = keys.digest("seed", bytes(each[0] % 251 for _ in each))
        total = tuple(np.zeros(length, dtype) for length in each)
        apply([Mask(key)], total)
        content = b"".join(array.tobytes() for array in total)
        assert content == counter_mode(key, len(content))
        apply([Mask(key, minus=True)], total)
        assert not any(array.any() for array in total)


def test_segments_of_every_type_take_one_stream_in_turn():
    total = tuple(np.zeros(length, dtype) for length in (7, 5, BLOCK // 8 + 1)
                  for dtype in (np.uint64, np.uint8, np.uint32, np.uint16))  # fmt: skip
    apply([Mask(b"k" * 32)], total)
    content = b"".join(array.tobytes() for array in total)
    assert content == counter_mode(b"k" * 32, len(content))


@pytest.mark.parametrize("threads", [1, 2, 3, 40])
def test_any_number_of_threads_gives_the_same(threads):
    ring = Ring(
        tuple(Segment(str(bits), length, bits) for bits, length in ((8, 5), (33, BLOCK // 8 + 1), (16, 0), (13, 9)))
    )
    for count in (0, 1, TOGETHER, TOGETHER + 1, 2 * TOGETHER + 3):
        masks = [Mask(keys.digest("seed", bytes([number])), minus=number % 3 == 0) for number in range(count)]
        plain, total = ring.zeros(), ring.zeros()
        apply(masks, plain)
        apply_on_threads(iter(masks), total, ring, threads)
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(total, plain, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_masks_that_cannot_be_made_leave_the_total_as_it_was(threads):
    ring = Ring((Segment("params", 100, 20),))
    total = ring.zeros()

    def some():
        for number in range(3 * TOGETHER):
            if number == 2 * TOGETHER + 5:
                raise ValueError("no more")
            yield Mask(keys.digest("seed", bytes([number])))

    with pytest.raises(ValueError, match="no more"):
        apply_on_threads(some(), total, ring, threads)
    assert not total[0].any()


def test_no_generator_but_the_ciphers_is_reachable_from_the_room():
    for file in resources.files("hansa.secagg").iterdir():
        if not file.name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module), *(each.name for each in node.names)]
            elif isinstance(node, ast.Attribute):
                names = [f"{getattr(node.value, 'id', '')}.{node.attr}"]
            else:
                continue
            assert not {"random", "secrets", "np.random", "numpy.random", "os.urandom", "os", "time"} & set(names), (
                file.name
            )
