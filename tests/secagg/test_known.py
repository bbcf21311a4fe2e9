"""What carriers compute before a server takes a message spares it work, and lets nothing in."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from hansa.core.errors import RefusedError
from hansa.secagg.known import vector_sha256
from hansa.secagg.messages import Masked, header_of
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
            step = one.logged(one.server.on_message(message, vector_sha256(message)))
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
    assert vector_sha256(answers(one, step)[0]) == b""
    report = answers(seeds, seeds.start())[0]
    vector = Report.decode(report, header_of(report).task).vector
    assert vector_sha256(report) == hashlib.sha256(vector).digest()
    with pytest.raises(RefusedError):
        vector_sha256(Masked(0, bytes(32), bytes(64), b"vector").encode()[:-1])
