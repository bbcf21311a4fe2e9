"""Messages that no honest party makes, signed by one that may: refused with a code, or taken with no harm.

Every field of every message is changed in ways that parsers get wrong, the sender signs what comes of it, and the
machine that gets it must refuse it or go on; it never stops with another error, and refusing changes nothing.
"""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import fields, replace
from random import Random

import numpy as np
import pytest
from tests.secagg.test_tampering import KINDS

from hansa.core.errors import HansaError
from hansa.core.ring import Ring, Segment
from hansa.secagg import keys
from hansa.secagg.beacon import Beacon, Draw
from hansa.secagg.decryptor import Decryptor
from hansa.secagg.known import content_of
from hansa.secagg.messages import Advert, Announcement, Complaint, Masked, Shares, Unmask, header_of
from hansa.secagg.oneshot_messages import Answer, Batch, Report, Request, Valid
from hansa.secagg.protocols import restore_client, restore_server
from hansa.secagg.task import Task, read_task
from hansa.testing.secagg import Federation, OneShotFederation

NUMBERS = (0, 1, 2, 5, 2**16, 2**31 - 2, 2**31 - 1, 2**32 - 1)
PURPOSES = {Advert: "adv", Shares: "shares", Complaint: "complaint", Unmask: "unmask", Valid: "valid",
            Request: "request"}  # fmt: skip
MOST = 32 << 20
"""Bytes that reading a message may take at most."""
ROUNDS = {
    "secagg-full": (Federation, {}, {(4, "mask"), (0, "unmask")}),
    "secagg-plus": (Federation, {"settings": {"neighbours": 4, "threshold": 3}}, {(4, "mask")}),
    "beacon": (
        Federation,
        {
            "protocol": "secagg-plus",
            "settings": {"neighbours": 4, "threshold": 3, "registrar": "authority", "beacon": "authority"},
        },
        {(4, "mask")},
    ),
    "oneshot-seeds": (OneShotFederation, {}, ()),
}


def begun(protocol):
    made, more, drop = ROUNDS[protocol]
    more = {"protocol": protocol} | more
    return made(7, ring=Ring((Segment("params", 9, 20), Segment("w", 1, 40))), **more), drop


def changed_bytes(coins, value):
    content = bytearray(value)
    if not content:
        return coins.randbytes(coins.randrange(5))
    match coins.randrange(7):
        case 0:
            content[coins.randrange(len(content))] ^= 1 << coins.randrange(8)
        case 1:
            del content[coins.randrange(len(content)) :]
        case 2:
            content += coins.randbytes(coins.randrange(1, 9))
        case 3:
            content = bytearray(len(content))
        case 4:
            content = bytearray(b"\xff" * len(content))
        case 5:
            content = bytearray(coins.randbytes(len(content)))
        case _:
            content = bytearray()
    return bytes(content)


def changed_list(coins, value):
    items = list(value)
    place = coins.randrange(len(items)) if items else 0
    match coins.randrange(6) if items else 5:
        case 0 | 1:
            items[place] = changed(coins, items[place])
        case 2:
            items.pop(place)
        case 3:
            items.append(items[place])
        case 4:
            coins.shuffle(items)
        case _:
            items = items * coins.choice((0, 2, 30))
    return tuple(items)


def changed(coins, value):
    """Return a value of the same type that is another, or wrong."""
    if isinstance(value, bytes | memoryview):
        return changed_bytes(coins, value)
    if isinstance(value, int):
        return coins.choice((*NUMBERS, max(0, value - 1), value + 1)) % 2**32
    if len(set(map(type, value))) > 1:  # the record of a list
        place = coins.randrange(len(value))
        record = [*value[:place], changed(coins, value[place]), *value[place + 1 :]]
        return value._make(record) if hasattr(value, "_make") else tuple(record)
    return changed_list(coins, value)


def signed(message, signer, masked_with=b""):
    """Return a message with the signature of whoever sends it; ``masked_with``: the keys behind a masked vector."""
    kind, content = type(message), content_of(message.encode())
    own = message.task, keys.u32(message.client)
    if kind in PURPOSES:
        return replace(message, signature=keys.sign(signer, PURPOSES[kind], *message.signed_fields()))
    if kind is Masked:
        return replace(message, signature=keys.sign(signer, "masked", *own, masked_with, content))
    if kind is Beacon:
        return replace(message, signature=keys.sign(signer, "beacon", message.task, b"\x7f", message.value))
    if kind is Report:
        return replace(message, signature=keys.sign(signer, "report", *own, content, message.seeds))
    if kind is Answer:
        fields = message.members, hashlib.sha256(message.vector).digest()
        return replace(message, signature=keys.sign(signer, "answer", *own, *fields))
    return message


def hostile(coins, message, signer, count, masked_with=b""):
    """Yield changed messages, most of them signed by their sender, then cut ones and those of every other kind."""
    header = header_of(message)
    whole = KINDS[header.kind].decode(message, header.task)
    names = [each.name for each in fields(whole) if each.name != "task"]
    for _ in range(count):
        bad = whole
        for _ in range(coins.choice((1, 1, 2))):
            name = coins.choice(names)
            bad = replace(bad, **{name: changed(coins, getattr(bad, name))})
        yield (signed(bad, signer, masked_with) if coins.random() < 0.8 else bad).encode()
    for kind in KINDS:
        yield message[:4] + kind.to_bytes(4, "little") + message[8:]
    for size in coins.sample(range(len(message)), 8):
        yield message[:12] + max(0, size - 48).to_bytes(4, "little") + message[16:size]


def takes(call, state):
    """Say whether a message is taken; one that is refused has changed nothing."""
    before = state()
    try:
        call()
    except HansaError:
        assert state() == before
        return False
    return True


def asks(one, coins, count, found):
    """Return a way to ask a client or decryptor that asks in many wrong ways before."""
    ask = one.ask

    def asked(to, message):
        kind = header_of(message).kind
        of_decryptor = kind in {Batch.kind, Request.kind}
        for bad in hostile(coins, message, one.server_key, count):
            if kind == Draw.kind:
                found.append(takes(lambda bad=bad: one.draw(bad), lambda: 0))
                continue
            if kind == Announcement.kind:
                takes(lambda bad=bad: one.start_client(to, bad), lambda: 0)
                continue
            machine = (one.decryptors if of_decryptor else one.machines)[to]
            taken = takes(lambda bad=bad: machine.on_message(bad), lambda: getattr(machine, "phase", 0))  # noqa: B023
            found.append(taken)
            if taken:
                (one.kill_decryptor if of_decryptor else one.kill_client)(to)
        return ask(to, message)

    return asked


def masked_with(one, client):
    """Return the keys that a client's vector is masked with, as it signs them."""
    server = one.server
    return b"".join(server._adverts[each].masking for each in server.graph.neighbours(client) if each in server._shares)


def delivers(one, coins, count, found):
    """Return a way to deliver to the server that delivers many wrong messages before."""
    deliver = one.deliver

    def delivered(message):
        header = header_of(message)
        authorities = {one.clients: one.authority_key}
        signers = one.decryptor_keys if header.kind in {Valid.kind, Answer.kind} else one.identities
        signer = authorities.get(header.client) or signers[header.client]
        keys_used = masked_with(one, header.client) if header.kind == Masked.kind else b""
        for bad in hostile(coins, message, signer, count, keys_used):
            server = one.server
            taken = takes(lambda bad=bad: one.server.on_message(bad), lambda: (one.server.phase, one.server.waits_for))
            found.append(taken)
            if taken:
                assert one.server is server
                one.server, _ = restore_server(one.convention, one.server_log)
        return deliver(message)

    return delivered


def fuzz_round(protocol, seed, count):
    """Run a round in which every message comes in many wrong forms before it comes as it is."""
    coins, (one, drop) = Random(seed), begun(protocol)  # noqa: S311 - for a test that repeats
    found: list[bool] = []
    one.ask, one.deliver = asks(one, coins, count, found), delivers(one, coins, count, found)
    one.run(drop=drop)
    assert found.count(False) > 10 * count
    assert any(found)
    assert one.server.phase.name == "DONE"
    assert all(np.array_equal(mine, plain) for mine, plain in zip(one.server.result, one.expected(), strict=True))


@pytest.mark.parametrize("protocol", ROUNDS)
def test_messages_of_liars_stop_no_machine_and_spoil_no_sum(protocol):
    fuzz_round(protocol, seed=1, count=25)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ROUNDS)
@pytest.mark.parametrize("seed", range(2, 8))
def test_many_more_messages_of_liars_stop_no_machine_and_spoil_no_sum(protocol, seed):
    fuzz_round(protocol, seed=seed, count=200)


@pytest.fixture(scope="module", params=list(ROUNDS))
def logs(request):
    one, drop = begun(request.param)
    one.run(drop=drop)
    assert one.server.phase.name == "DONE"
    return one


def damaged(coins, log, count):
    """Yield logs with a record missing, cut, doubled, moved or changed, and whether one is changed."""
    for _ in range(count):
        records, way = list(log), coins.randrange(6)
        place, other = coins.randrange(len(records)), coins.randrange(len(records))
        match way:
            case 0:
                records.pop(place)
            case 1:
                records[place] = records[place][: coins.randrange(len(records[place]))]
            case 2:
                records.insert(other, records[place])
            case 3:
                records[place], records[other] = records[other], records[place]
            case 4:
                records = records[: max(1, place)]
            case _:
                records[place] = changed_bytes(coins, records[place])
        if records:
            yield records, way == 5


def test_a_server_of_damaged_records_gives_up_and_never_gives_another_sum(logs):
    for records, is_changed in damaged(Random(5), logs.server_log, 300):  # noqa: S311 - for a test that repeats
        server, _ = restore_server(logs.convention, records)
        if server.result is not None and not is_changed:
            assert all(
                np.array_equal(mine, theirs) for mine, theirs in zip(server.result, logs.server.result, strict=True)
            )
        if server.phase.name == "ABORTED":
            assert server.result is None
            assert restore_server(logs.convention, records)[0].phase.name == "ABORTED"


def test_clients_and_decryptors_of_damaged_records_refuse_or_go_on(logs):
    for client in (1, 4):
        mine = {"signer": logs.identities[client], "identity": logs.roster.identities[client], "policy": logs.policy,
                "given": logs.given(client)}  # fmt: skip
        for records, _ in damaged(Random(6), logs.client_logs[client], 60):  # noqa: S311 - for a test that repeats
            try:
                restore_client(records, **mine)
            except HansaError:
                continue
    for place, log in getattr(logs, "decryptor_logs", {}).items():
        for records, _ in damaged(Random(7), log, 60):  # noqa: S311 - for a test that repeats
            try:
                Decryptor.restore(records, **logs._decryptor(place))
            except HansaError:
                continue


def test_tasks_of_any_bytes_and_fields_are_read_or_refused():
    coins = Random(8)  # noqa: S311 - for a test that repeats
    tasks = [begun(each)[0].task for each in ROUNDS]
    for number in range(3000):
        task = tasks[number % len(tasks)]
        for _ in range(coins.choice((1, 2, 3))):
            name = coins.choice([each.name for each in fields(Task)])
            value = getattr(task, name)
            if isinstance(value, Ring):
                value = Ring(tuple(Segment("é", changed(coins, each.length), changed(coins, each.bits))
                                   for each in value.segments))  # fmt: skip
            elif isinstance(value, str):
                value = coins.choice(("", "x" * 100, "secagg-plus", "oneshot-seeds", "server", "authority", "\0"))
            elif name == "decryptors":
                value = value[::-1]
            else:
                value = changed(coins, value)
            task = replace(task, **{name: value})
        for content in (task.content, changed_bytes(coins, task.content)):
            try:
                read = read_task(content)
            except HansaError:
                continue
            assert read.content == content


def test_no_count_within_a_small_message_takes_much_memory(logs):
    """Each four bytes in turn claim to be a count or a length near the largest there is."""
    seen = {header_of(each).kind: each for log in (logs.server_log, *logs.client_logs.values()) for each in log
            if each[:4] == b"HSA1"}  # fmt: skip
    contents = [(KINDS[kind].decode, message, (logs.task.hash,)) for kind, message in seen.items()]
    contents.append((read_task, logs.task.content, ()))
    tracemalloc.start()
    try:
        for read, content, more in contents:
            for start in range(16, min(len(content), 1200) - 4):
                for claim in (b"\xff\xff\x0f\0", b"\xff\xff\xff\xff"):
                    bad = content[:start] + claim + content[start + 4 :]
                    try:
                        read(bad, *more)
                    except HansaError:
                        continue
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
