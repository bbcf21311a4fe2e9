"""Bits that flip on the way, in every field of every message: refused, or the sender counts as dropped (gate 7)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import HansaError
from hansa.secagg.beacon import Beacon, Draw
from hansa.secagg.messages import (
    Abort,
    Advert,
    Announcement,
    Complaint,
    Consistent,
    Deliveries,
    Keys,
    Masked,
    Quorum,
    Shares,
    Survivors,
    Unmask,
    header_of,
)
from hansa.secagg.oneshot_messages import Answer, Batch, Report, Request, Valid
from hansa.secagg.server import Phase
from hansa.testing.secagg import PHASE_OF, Federation, OneShotFederation

KINDS = {each.kind: each for each in (
    Announcement, Advert, Keys, Shares, Deliveries, Masked, Complaint, Survivors, Consistent, Quorum, Unmask, Abort,
    Report, Batch, Valid, Request, Answer, Draw, Beacon,
)}  # fmt: skip


DRAWN = {"neighbours": 2, "threshold": 2, "registrar": "authority", "beacon": "authority"}
"""A task whose graph an authority draws."""


def flipped(message, bit):
    changed = bytearray(message)
    changed[bit // 8 % len(message)] ^= 1 << bit % 8
    return bytes(changed)


@pytest.fixture(scope="module")
def messages():
    """Every message of a round of either kind, by kind, with their task's hash; and a complaint and an abort."""
    found = {}
    for one in (OneShotFederation(4), Federation(5, protocol="secagg-plus", settings=DRAWN)):
        ask = one.ask

        def seen(client, message, ask=ask, task=one.task.hash):
            answer = ask(client, message)
            for each in (message, answer):
                found[header_of(each).kind] = task, each
            return answer

        one.ask = seen
        one.run(drop={(3, "mask")})
    task = one.task.hash
    found[Complaint.kind] = task, Complaint(1, task, (0, 2), bytes(64)).encode()
    found[Abort.kind] = task, Abort(1, task).encode()
    return found


def test_every_kind_comes_back_as_it_was_written(messages):
    assert set(messages) == set(KINDS)
    for kind, (task, message) in messages.items():
        assert KINDS[kind].decode(message, task).encode() == message


def test_too_short_too_long_or_another_kind_is_refused(messages):
    for kind, (task, message) in messages.items():
        for cut in [*range(min(len(message), 200)), len(message) - 1]:
            with pytest.raises(HansaError):
                KINDS[kind].decode(message[:cut], task)
        longer = bytearray(message + b"\0")
        longer[12:16] = (len(message) - 47).to_bytes(4, "little")
        for each in (message + b"\0", bytes(longer)):
            if (
                kind in {Masked.kind, Report.kind, Answer.kind} and each != message + b"\0"
            ):  # a vector is all the rest: the ring refuses it
                continue
            with pytest.raises(HansaError):
                KINDS[kind].decode(each, task)
        with pytest.raises(HansaError):
            KINDS[Advert.kind if kind != Advert.kind else Abort.kind].decode(message, task)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_bytes_after_a_header_never_crash_the_parser(messages, data):
    task, _ = messages[Advert.kind]
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    body = data.draw(st.binary(max_size=300))
    message = b"HSA1" + b"".join(each.to_bytes(4, "little") for each in (kind, 1, len(body))) + task + body
    try:
        read = KINDS[kind].decode(message, task)
    except HansaError as error:
        found = error.code
    else:
        found = "HANSA-SECAGG-" if read.encode() == message else ""
    assert found.startswith("HANSA-SECAGG-")


def bits_of(message, offset, stride):
    """Return bits to flip: all of the header's and first fields' bytes, and a walk through the rest."""
    near = range(0, min(len(message), 64) * 8, 7)
    return [*near, *range(64 * 8 + offset, len(message) * 8, stride)]


@pytest.mark.parametrize("kind", ["secagg-full", "beacon"])
def test_a_flipped_bit_in_any_answer_leaves_its_sender_out_or_changes_nothing(kind):
    """The server refuses it and changes nothing; the true answer still counts afterwards."""
    one = Federation(4) if kind == "secagg-full" else Federation(4, protocol="secagg-plus", settings=DRAWN)
    deliver = one.deliver

    def noisy(message):
        stride = 41 * max(1, len(message) // 200)
        for bit in bits_of(message, header_of(message).client, stride):
            before = (one.server.phase, one.server.waits_for, len(one.server_log))
            with pytest.raises(HansaError):
                one.server.on_message(flipped(message, bit))
            assert (one.server.phase, one.server.waits_for, len(one.server_log)) == before
        return deliver(message)

    one.deliver = noisy
    result = one.run(drop={(3, "mask")})
    assert all(np.array_equal(mine, plain) for mine, plain in zip(result, one.expected(), strict=True))


@pytest.mark.parametrize("kind", ["secagg-full", "beacon"])
def test_a_flipped_bit_in_any_question_is_refused_or_complained_about(kind):
    """The client changes nothing, but for sealed shares and their hashes: it complains, and gives no vector."""
    one = Federation(4) if kind == "secagg-full" else Federation(4, protocol="secagg-plus", settings=DRAWN)
    ask = one.ask
    complaints = 0

    def noisy(client, message):
        nonlocal complaints
        kind = header_of(message).kind
        if client != 1:
            return ask(client, message)
        for bit in bits_of(message, 3, 37 * max(1, len(message) // 150)):
            bad = flipped(message, bit)
            if kind == Announcement.kind:
                with pytest.raises(HansaError):
                    one.start_client(client, bad)
                continue
            machine, log = one.machines[client], one.client_logs[client]
            try:
                step = machine.on_message(bad)
            except HansaError:
                assert PHASE_OF[kind] != ""
                continue
            assert kind == Deliveries.kind
            assert header_of(step.send[0].message).kind == Complaint.kind
            complaints += 1
            one.client_logs[client] = log
            one.kill_client(client)  # nothing of it was durable
        return ask(client, message)

    one.ask = noisy
    result = one.run()
    assert one.server.phase is Phase.DONE
    assert complaints > 20
    assert all(np.array_equal(mine, plain) for mine, plain in zip(result, one.expected(), strict=True))
