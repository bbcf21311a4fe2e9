"""Machines that die at any durable write: the same bytes again, the exact sum, no second answer (gate 11)."""

from __future__ import annotations

import numpy as np
import pytest

from hansa.core.errors import RefusedError
from hansa.secagg.messages import header_of
from hansa.secagg.server import MaskingServer, Phase, compact
from hansa.testing.secagg import Federation, random_vector

DROP = {(4, "mask"), (0, "unmask")}


PLUS = {"neighbours": 4, "threshold": 3}
ROUNDS = {
    "secagg-full": ("secagg-full", {}),
    "secagg-plus": ("secagg-plus", PLUS),
    "beacon": ("secagg-plus", {**PLUS, "registrar": "authority", "beacon": "authority"}),
}


def begun(kind):
    protocol, settings = ROUNDS[kind]
    return Federation(7, protocol=protocol, settings=settings)


def whole_round(kind="secagg-full"):
    one = begun(kind)
    one.run(drop=DROP)
    assert one.server.phase is Phase.DONE
    return one


def same(one, other):
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


@pytest.fixture(scope="module", params=list(ROUNDS))
def reference(request):
    return whole_round(request.param)


def test_a_server_killed_after_any_durable_write_goes_on_to_the_same_records(reference):
    """Only the first n records are durable: the server is made anew from them, and the round goes on."""
    log = reference.server_log
    for durable in range(1, len(log) + 1):
        server, step = MaskingServer.restore(reference.convention, log[:durable])
        again = log[:durable] + [bytes(each) for each in step.persist]
        for record in log[durable:]:
            if record not in again:
                step = server.on_message(record) if record[:4] == b"HSA1" else server.on_deadline()
                again += [bytes(each) for each in step.persist]
        assert again == log
        assert same(server.result, reference.expected())


@pytest.mark.parametrize("kind", ROUNDS)
def test_a_server_that_dies_before_every_answer_gives_the_same_messages_and_sum(kind):
    """The live thing: before each delivery the server is thrown away, and once more before what it sends is read."""
    one = begun(kind)
    whole = whole_round(kind)
    deliver = one.deliver

    def deadly(message):
        one.kill_server()
        step = deliver(message)
        if step.send:
            again = one.kill_server()
            assert again.send == step.send
            assert again.persist == ()
        return step

    one.deliver = deadly
    result = one.run(drop=DROP)
    assert one.server_log == whole.server_log
    assert same(result, one.expected())


@pytest.mark.parametrize("kind", ROUNDS)
def test_a_client_that_dies_after_every_durable_write_gives_the_same_bytes(kind):
    one = begun(kind)
    ask = one.ask

    def deadly(client, message):
        answer = ask(client, message)
        if client == one.clients:  # the authority
            return answer
        step = one.kill_client(client)
        assert step.persist == ()
        assert [each.message for each in step.send] == [answer]
        if len(one.client_logs[client]) > 1:  # the same request, once more, of the client that is new
            assert ask(client, message) == answer
        return answer

    one.ask = deadly
    assert same(one.run(drop=DROP), one.expected())
    assert one.server_log == whole_round(kind).server_log


def test_a_client_that_died_before_its_record_was_durable_answers_anew():
    """What was not durable was not sent: another answer to another request is no second answer."""
    one = Federation(5)
    step = one.start()
    for to, message in step.send:
        one.deliver(one.ask(to, message))
    durable = list(one.client_logs[0])
    keys = dict(one.kill_server().send)[0]
    first = one.ask(0, keys)
    one.client_logs[0] = durable
    one.kill_client(0)
    assert one.ask(0, keys) == first


def test_a_client_never_answers_twice_differently_whatever_it_forgot_in_memory():
    one = Federation(7)
    one.run(drop=DROP)
    client = 1
    for durable in range(2, len(one.client_logs[client]) + 1):
        log = one.client_logs[client][:durable]
        one.client_logs[client], kept = log, one.client_logs[client]
        one.kill_client(client)
        one.client_logs[client] = kept
        asked = header_of(log[-1])
        for settings in ({"round": 9}, {}):
            other = Federation(7, seed="another", settings=settings)
            other.run()
            different = next(each for each in other.client_logs[client] if header_of_or(each).kind == asked.kind)
            with pytest.raises(RefusedError):
                one.machines[client].on_message(different[:16] + one.task.hash + different[48:])


def header_of_or(record):
    """Return a record's header; the first one is no message."""
    if record[:4] != b"HSA1":
        return header_of(b"HSA1" + bytes(44))
    return header_of(record)


def test_a_client_that_comes_back_with_another_vector_is_refused():
    """The same masks over two vectors would give their difference away."""
    one = Federation(5)
    one.run()
    one.vectors[2] = random_vector(one.ring, "another")
    with pytest.raises(RefusedError, match="not the one that this client began"):
        one.kill_client(2)


def test_masked_vectors_are_needed_no_more_once_their_total_is_durable(reference):
    log = list(reference.server_log)
    for durable in range(1, len(log) + 1):
        small, whole = compact(log[:durable], reference.task), log[:durable]
        first, one = MaskingServer.restore(reference.convention, whole)
        second, other = MaskingServer.restore(reference.convention, small)
        assert one == other
        assert (first.phase, first.waits_for, first.survivors) == (second.phase, second.waits_for, second.survivors)
    assert len(compact(log, reference.task)) == 2
    assert len(b"".join(compact(log[:-1], reference.task))) < len(b"".join(log[:-1]))


def test_a_server_whose_frozen_set_is_lost_gives_up():
    one = Federation(7)
    one.run(drop=DROP)
    frozen = [place for place, each in enumerate(one.server_log) if each[:4] == b"HSS1"]
    for lost in frozen[1:-1]:
        server, step = MaskingServer.restore(one.convention, one.server_log[:lost] + one.server_log[lost + 1 :])
        assert server.phase is Phase.ABORTED
        assert server.result is None
        assert len(step.persist) == 1


def test_a_server_that_gave_up_stays_so_and_tells_again():
    one = Federation(7)
    one.run(drop={(each, "mask") for each in range(5)})
    assert one.server.phase is Phase.ABORTED
    reason = one.server.abort_reason
    step = one.kill_server()
    assert (one.server.phase, one.server.abort_reason) == (Phase.ABORTED, reason)
    assert sorted(each.to for each in step.send) == list(range(7))
    for client in (0, 6):
        assert one.machines[client].on_message(dict(step.send)[client]).send == ()
        assert one.machines[client].done
        with pytest.raises(RefusedError, match="has left"):
            one.machines[client].on_message(one.client_logs[client][1])


def test_records_of_another_task_are_refused():
    one, other = Federation(4), Federation(4, settings={"round": 9})
    one.run()
    server, _ = MaskingServer.restore(other.convention, one.server_log)
    assert server.phase is Phase.ABORTED
