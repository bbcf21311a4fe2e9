"""Random numbers as a function of (seed, purpose, round, client)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import HansaError
from hansa.core.streams import PURPOSES, Coins, Stream, Streams, mix

REFERENCE = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
GAMMA, MASK = 0x9E3779B97F4A7C15, 2**64 - 1
PUBLIC = [purpose for purpose, kind in PURPOSES.items() if kind == "public"]
SECRET = [purpose for purpose, kind in PURPOSES.items() if kind == "secret"]


def splitmix64(seed):
    """SplitMix64 as published, in Python integers."""
    while True:
        seed = (seed + GAMMA) & MASK
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def test_the_reference_vector_of_splitmix64():
    assert list(itertools.islice(splitmix64(1234567), 5)) == REFERENCE
    states = np.array([(1234567 + k * GAMMA) & MASK for k in range(1, 6)], dtype=np.uint64)
    assert mix(states).tolist() == REFERENCE


@settings(max_examples=50, deadline=None)
@given(st.integers(0, MASK), st.integers(0, 40))
def test_each_clients_words_are_the_sequence_seeded_by_its_element_of_the_streams_sequence(key, client):
    seed = next(itertools.islice(splitmix64(key), client, None))
    expected = list(itertools.islice(splitmix64(seed), 6))
    assert Stream(key).bits(np.array([client]), 6)[0].tolist() == expected


def test_mixing_leaves_its_argument_alone():
    values = np.array([1, 2], dtype=np.uint64)
    mix(values)
    assert values.tolist() == [1, 2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=8), st.integers(1, 9), st.integers(0, MASK))
def test_a_clients_numbers_do_not_depend_on_the_batch(clients, count, key):
    stream, numbers = Stream(key), np.array(clients)
    for draw in (stream.bits, stream.uniform):
        together = draw(numbers, count)
        assert together.shape == (len(clients), count)
        for row, client in zip(together, clients, strict=True):
            np.testing.assert_array_equal(row, draw(np.array([client]), count)[0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 30)), min_size=1, max_size=6), st.integers(0, 5))
def test_shuffles_are_permutations_that_do_not_depend_on_the_batch(clients, draw):
    stream = Streams(3).of("order", 2)
    ordinals, sizes = np.array([c for c, _ in clients]), np.array([s for _, s in clients])
    together = stream.permutations(ordinals, sizes, draw=draw)
    assert together.shape == (len(clients), sizes.max())
    for row, (client, size) in zip(together, clients, strict=True):
        assert sorted(row[:size].tolist()) == list(range(size))
        assert (row[size:] == -1).all()
        alone = stream.permutations(np.array([client]), np.array([size]), draw=draw, width=size + 3)
        np.testing.assert_array_equal(alone[0, :size], row[:size])


def test_shuffles_are_uniform():
    counts = {}
    count = 24_000
    for row in Streams(0).of("order", 1).permutations(np.arange(count), np.full(count, 4)).tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert len(counts) == 24
    assert sum((seen - 1000) ** 2 / 1000 for seen in counts.values()) < 24 + 6 * np.sqrt(48)


def test_shuffles_of_different_epochs_rounds_and_clients_differ():
    sizes = np.array([50])
    rows = {
        tuple(Streams(0).of("order", number).permutations(np.array([client]), sizes, draw=draw)[0].tolist())
        for number, client, draw in itertools.product(range(1, 4), range(3), range(3))
    }
    assert len(rows) == 27


def test_uniform_numbers_fill_the_unit_interval():
    numbers = Streams(0).of("dropout").uniform(np.arange(2000), 50)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert ((counts - 5000) ** 2 / 5000).sum() < 20 + 6 * np.sqrt(40)


def test_the_extreme_words_stay_within_the_unit_interval():
    words = Coins(lambda count: np.full(count, MASK, dtype=np.uint64))
    assert words.uniform(3).max() < 1
    for high in (1, 3, 10**9, 10**12 + 7):
        assert (words.integers(high, 3) == high - 1).all()


def test_neighbouring_clients_and_words_are_not_correlated():
    bits = Stream(5).bits(np.arange(4096), 8)
    ones = np.unpackbits(bits.view(np.uint8)).mean()
    assert ones == pytest.approx(0.5, abs=0.005)
    numbers = Stream(5).uniform(np.arange(20_000), 2)
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 0.03


def test_streams_of_other_seeds_purposes_and_rounds_never_share_a_key():
    keys = {
        Streams(seed).of(purpose, number).key
        for seed, purpose, number in itertools.product(range(30), PURPOSES, range(30))
    }
    assert len(keys) == 30 * 30 * len(PURPOSES)
    assert Streams(1).of("order", 11).key != Streams(11).of("order", 1).key


def test_coins_are_read_on_and_are_no_clients_words():
    stream = Streams(0).of("cohort", 1)
    coins = stream.coins()
    together = stream.coins().words(5).tolist()
    assert [*coins.words(2).tolist(), *coins.words(3).tolist()] == together
    assert not set(together) & set(stream.bits(np.arange(1000), 5).ravel().tolist())
    assert stream.coins().generator().random() == stream.coins().generator().random()


def test_a_seed_for_a_library_fits_a_signed_word():
    seeds = [Streams(seed).of("model").seed() for seed in range(200)]
    assert len(set(seeds)) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("purpose", SECRET)
def test_a_federation_refuses_secret_numbers_from_the_seed(purpose):
    with pytest.raises(HansaError, match=f"asked for '{purpose}'") as error:
        Streams(0, "federation").of(purpose, 1)
    assert error.value.code == "HANSA-STREAM-SECRET"
    assert "secret generator of the party" in error.value.action
    assert Streams(0).of(purpose, 1)


@pytest.mark.parametrize("purpose", PUBLIC)
def test_a_federation_and_a_simulation_share_public_numbers(purpose):
    assert Streams(0, "federation").of(purpose, 3) == Streams(0).of(purpose, 3)


def test_what_protects_people_or_decides_who_takes_part_is_secret():
    assert {"cohort", "noise", "rounding", "example-sampling", "example-noise"} == set(SECRET)


def test_the_numbers_of_a_seed_do_not_change_between_versions():
    stream = Streams(7).of("order", 3)
    assert stream.key == 0xE943303C05A41864
