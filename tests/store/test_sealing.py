"""Sealed bytes: whatever is done to them is refused."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import StoreError
from hansa.store.sealing import RECORD, Binding, plain_size, seal, sealed_records, unseal

KEY = bytes(range(32))
PLACE = Binding("run-training-1-1", "client", "a" * 64, "0")
HEADER, TAG = 47, 16
SIZES = st.sampled_from([0, 1, 100, RECORD - 1, RECORD, RECORD + 1, 2 * RECORD, 2 * RECORD + 77])


def sealed(content, key=KEY, place=PLACE):
    return b"".join(seal(key, place, [content]))


def opened(content, key=KEY, place=PLACE):
    return b"".join(unseal(key, place, [content]))


def refused(content, key=KEY, place=PLACE):
    with pytest.raises(StoreError) as caught:
        opened(content, key, place)
    assert caught.value.code == "HANSA-SEAL-BROKEN"


def cut(content, steps):
    place = 0
    for step in steps:
        yield content[place : place + step]
        place += step
    yield content[place:]


@settings(max_examples=40, deadline=None)
@given(SIZES, st.lists(st.integers(0, 2 * RECORD), max_size=6), st.lists(st.integers(0, 2 * RECORD), max_size=6))
def test_what_was_sealed_comes_back_however_it_is_cut_into_chunks(size, before, after):
    content = os.urandom(size)
    whole = b"".join(seal(KEY, PLACE, cut(content, before)))
    assert b"".join(unseal(KEY, PLACE, cut(whole, after))) == content
    assert plain_size(len(whole)) == size


@settings(max_examples=60, deadline=None)
@given(SIZES, st.data())
def test_a_changed_bit_is_refused(size, data):
    whole = bytearray(sealed(os.urandom(size)))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    refused(bytes(whole))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.data())
def test_a_truncated_blob_is_refused(size, data):
    whole = sealed(os.urandom(size))
    refused(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize("records", [1, 2, 3])
def test_a_blob_cut_between_records_is_refused(records):
    whole = sealed(os.urandom(3 * RECORD + 5))
    refused(whole[: HEADER + records * (RECORD + TAG)])


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=1, max_size=3 * TAG))
def test_a_lengthened_blob_is_refused(more):
    refused(sealed(b"an update") + more)


@given(st.permutations(range(4)).filter(lambda order: list(order) != [0, 1, 2, 3]))
@settings(max_examples=12, deadline=None)
def test_reordered_records_are_refused(order):
    whole = sealed(os.urandom(4 * RECORD))
    size = RECORD + TAG
    refused(whole[:HEADER] + b"".join(whole[HEADER + place * size : HEADER + (place + 1) * size] for place in order))


def test_records_of_two_blobs_of_one_place_cannot_be_mixed():
    content = os.urandom(2 * RECORD)
    first, second = sealed(content), sealed(content)
    refused(first[: HEADER + RECORD + TAG] + second[HEADER + RECORD + TAG :])


@given(st.sampled_from(["round", "client", "digest", "part"]), st.text(max_size=80))
@settings(max_examples=60, deadline=None)
def test_another_place_is_refused(field, value):
    other = replace(PLACE, **{field: value})
    if other != PLACE:
        refused(sealed(b"an update"), place=other)


@given(st.text(max_size=6), st.text(max_size=6), st.text(max_size=6), st.text(max_size=6))
def test_different_places_are_bound_differently(a, b, c, d):
    assert (Binding(a, b, "x").encoded() == Binding(c, d, "x").encoded()) == ((a, b) == (c, d))


def test_another_key_is_refused():
    refused(sealed(b"an update"), key=bytes(32))


def test_the_same_bytes_are_sealed_differently_each_time():
    assert sealed(b"an update")[HEADER:] != sealed(b"an update")[HEADER:]


def test_memory_is_flat():
    chunk = bytes(RECORD)

    def run(count):
        tracemalloc.start()
        total = sum(len(each) for each in unseal(KEY, PLACE, seal(KEY, PLACE, (chunk for _ in range(count)))))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert total == count * RECORD
        return peak

    assert run(64) < run(4) + RECORD


@settings(max_examples=20, deadline=None)
@given(SIZES, st.data())
def test_a_record_can_be_read_by_itself_and_by_no_other_number(size, data):
    content = os.urandom(size)
    whole = sealed(content)
    records = sealed_records(KEY, PLACE, whole[:HEADER], len(whole))
    pieces = [records.unseal(number, whole[slice(*records.span(number))]) for number in range(records.count)]
    assert b"".join(pieces) == content
    number, other = data.draw(st.tuples(st.integers(0, records.count - 1), st.integers(0, records.count)))
    if number != other:
        with pytest.raises(StoreError):
            records.unseal(other, whole[slice(*records.span(number))])


def test_records_of_a_blob_that_was_cut_between_them_are_refused():
    whole = sealed(os.urandom(2 * RECORD + 5))[: HEADER + 2 * (RECORD + TAG)]
    records = sealed_records(KEY, PLACE, whole[:HEADER], len(whole))
    records.unseal(0, whole[slice(*records.span(0))])
    with pytest.raises(StoreError):
        records.unseal(1, whole[slice(*records.span(1))])
    with pytest.raises(StoreError):
        sealed_records(KEY, PLACE, whole[: HEADER - 1], len(whole))
