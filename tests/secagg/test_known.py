"""What carriers compute before a server takes a message spares it work, and lets nothing in."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.errors import RefusedError
from hansa.secagg.known import MessageHash, content_of
from hansa.secagg.messages import Abort, Masked, header_of
from hansa.secagg.oneshot_messages import Report
from hansa.secagg.server import Phase
from hansa.testing.secagg import Federation, OneShotFederation


def answers(one, step):
    """Return what clients answer to the messages of a step."""
    return [one.ask(to, message) for to, message in step.send]


def test_hashes_of_carriers_give_the_same_sum():
    one = Federation(5)
    step = one.start()
    while one.server.phase < Phase.DONE:
        for message in answers(one, step):
            step = one.logged(one.server.on_message(message, content_of(message)))
    assert all(np.array_equal(*each) for each in zip(one.server.result, one.expected(), strict=True))


def test_a_wrong_hash_lets_no_vector_in():
    one = Federation(5)
    step = one.start()
    while one.server.phase is not Phase.MASK:
        for message in answers(one, step):
            step = one.logged(one.server.on_message(message))
    message = answers(one, step)[0]
    with pytest.raises(RefusedError, match="not signed"):
        one.server.on_message(message, hashlib.sha256(b"another").digest())
    assert len(one.server.waits_for) == 5


def test_only_messages_with_a_vector_have_a_hash():
    one, seeds = Federation(4), OneShotFederation(4)
    step = one.start()
    assert content_of(answers(one, step)[0]) == b""
    report = answers(seeds, seeds.start())[0]
    read = Report.decode(report, header_of(report).task)
    assert report.endswith(bytes(read.vector) + read.seeds + read.signature)
    assert content_of(report) == hashlib.sha256(report[: -len(read.seeds + read.signature)]).digest()
    masked = Masked(0, bytes(32), b"vector", bytes(64)).encode()
    assert content_of(masked) == hashlib.sha256(masked[:-64]).digest()
    with pytest.raises(RefusedError):
        content_of(masked[:-1])


def test_what_comes_in_pieces_is_hashed_once_whatever_the_pieces():
    messages = [Masked(1, bytes(32), bytes([7]) * size, bytes(64)).encode() for size in (0, 1, 300)]
    messages += [Report(1, bytes(32), b"v" * 5, bytes(160), bytes(64)).encode(), Abort(1, bytes(32)).encode()]
    for message in messages:
        for size in (1, 3, 55, 56, 57, 64, len(message)):
            hashed = MessageHash()
            for start in range(0, len(message), size):
                hashed.update(memoryview(message)[start : start + size])
            assert hashed.hexdigest() == hashlib.sha256(message).hexdigest()
            assert hashed.content == content_of(message)


@given(st.binary(max_size=80), st.binary(max_size=200), st.integers(1, 90))
def test_any_bytes_have_a_hash(front, rest, size):
    for head in (b"", b"HSA1\x06\0\0\0", b"HSA1\x0d\0\0\0"):
        content, hashed = head + front + rest, MessageHash()
        for start in range(0, len(content), size):
            hashed.update(content[start : start + size])
        assert hashed.hexdigest() == hashlib.sha256(content).hexdigest()
