"""What lengths, errors and logs tell: nothing about one client (gate 15)."""

from __future__ import annotations

import logging
import traceback

import numpy as np
from tests.secagg.test_tampering import flipped

from hansa.core.errors import HansaError
from hansa.core.ring import Ring, Segment
from hansa.secagg.messages import header_of
from hansa.testing.secagg import Federation


def lengths(vectors, drop):
    one = Federation(6, ring=Ring((Segment("params", 30, 24),)), vectors=vectors)
    one.run(drop=drop)
    return [(header_of(each).kind, header_of(each).client, len(each)) for each in one.server_log if each[:4] == b"HSA1"]


def test_every_message_of_a_phase_is_as_long_whatever_is_in_it():
    drop = {(5, "mask")}
    zeros = {each: (np.zeros(30, np.uint32),) for each in range(6)}
    large = {each: (np.full(30, 2**24 - 1, np.uint32),) for each in range(6)}
    found = lengths(zeros, drop)
    assert found == lengths(large, drop)
    for kind in {kind for kind, _, _ in found}:
        assert len({length for each, _, length in found if each == kind}) == 1


def test_errors_and_logs_hold_no_secret_and_no_client(caplog):
    caplog.set_level(logging.DEBUG)
    one = Federation(4)
    ask = one.ask
    told = []

    def noisy(client, message):
        for bit in range(0, min(len(message), 400) * 8, 101):
            try:
                if client in one.machines and len(one.client_logs[client]) < 5:
                    one.machines[client].on_message(flipped(message, bit))
            except HansaError as error:
                told.append("".join(traceback.format_exception(error)))
            else:
                if client in one.machines:
                    one.kill_client(client)
        return ask(client, message)

    one.ask = noisy
    one.run()
    text = "\n".join(told) + caplog.text
    assert len(told) > 50
    for client in range(4):
        log = one.client_logs[client]
        seed = log[0][4:36]
        assert seed.hex() not in text
        assert repr(seed) not in text
        assert f"client {client}" not in text
        assert str(one.vectors[client][0][0]) not in text
