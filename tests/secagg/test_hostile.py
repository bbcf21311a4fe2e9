"""Attacks on the machines of every party: a server, clients and decryptors that lie, alone and together, and die."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from tests.secagg.test_attacks import quorum_message, refuses, survivors_message, to_phase

from hansa.core.errors import RefusedError
from hansa.core.ring import Ring, Segment
from hansa.core.secure_aggregation import SecureAggregation
from hansa.secagg import field, keys, unmasking
from hansa.secagg.client import MaskingClient
from hansa.secagg.composing import deliveries, keys_of
from hansa.secagg.convention import Convention, register
from hansa.secagg.dealt import Dealt
from hansa.secagg.encoding import LARGEST_LIST, to_bitmap, u32
from hansa.secagg.graph import Graph, sets_digest
from hansa.secagg.messages import (
    Abort,
    Advert,
    Complaint,
    Masked,
    Quorum,
    SealedShares,
    Shares,
    Survivors,
    Unmask,
    answer_id,
    header_of,
)
from hansa.secagg.protocols import restore_client, start_client
from hansa.secagg.roster import Roster
from hansa.secagg.server import Phase
from hansa.secagg.task import Task, read_task
from hansa.testing.secagg import PHASE_OF, Federation, OneShotFederation, coins, public, random_vector


def is_exact(one):
    return one.server.phase is Phase.DONE and all(
        np.array_equal(mine, plain) for mine, plain in zip(one.server.result, one.expected(), strict=True)
    )


def signed_by(one, client, message, purpose):
    """Return a message as its sender signs it."""
    signature = keys.sign(one.identities[client], purpose, *message.signed_fields())
    return replace(message, signature=signature).encode()


# -- a server that lies


class Crooked(Roster):
    """A roster that nobody looked at: a server needs its root and proofs only."""

    def __post_init__(self):
        """Look at nothing."""


def with_roster(one, identities):
    """Return the federation with other places in its roster; the policy pins the same keys as before."""
    one.identities = identities
    one.roster = Crooked(tuple(map(public, identities)))
    one.task = replace(one.task, roster_root=one.roster.root)
    registration = register(one.server_key, one.roster)
    one.convention = Convention(task=one.task, roster=one.roster, signer=one.server_key, registration=registration)
    return one


def test_one_peer_that_is_pinned_cannot_take_the_places_of_all_others():
    """Server and one colluding peer would be everybody but the victim, and the sum would be its vector."""
    one = Federation(6)
    victim, peer = one.identities[:2]
    with_roster(one, [victim, *[peer] * 5])
    step = [one.deliver(one.ask(to, message)) for to, message in one.start().send][-1]
    refuses(one, 0, dict(step.send)[0], "two places in the roster")


def test_a_clients_own_key_has_one_place_in_the_roster():
    one = Federation(6)
    with_roster(one, [*one.identities[:5], one.identities[0]])
    step = [one.deliver(one.ask(to, message)) for to, message in one.start().send][-1]
    for client in range(6):
        refuses(one, client, dict(step.send)[client], "two places in the roster")


def test_places_beyond_the_field_are_in_no_roster():
    """At x = p a share is the secret itself; a lying server needs but a root and one proof to put a client there."""
    secret = bytes(range(32))
    share = field.share(secret, threshold=5, places=np.array([field.PRIME]), key=b"k" * 32)
    limbs = share.view("<u4").reshape(-1)
    assert b"".join(int(each).to_bytes(3, "little") for each in limbs)[:32] == secret
    for size, good in ((LARGEST_LIST, True), (LARGEST_LIST + 1, False), (field.PRIME, False), (2**32 - 1, False)):
        content = replace(Federation(6).task, roster_size=size).content
        if good:
            assert read_task(content).roster_size == size
            continue
        with pytest.raises(RefusedError, match="roster has more"):
            read_task(content)


@pytest.mark.parametrize("other", [{"attempt": 2}, {"minimum_cohort": 4, "minimum_survivors": 4}, {"attempt": 9}])
def test_two_attempts_or_groups_at_once_uncover_one_sum(other):
    """Both began before either was over: of one round, a client helps to unmask one."""
    spent = set()
    found = []
    for settings in ({}, other):
        one = Federation(5, settings=settings)
        begun = one.start_client

        def starts(client, announcement, one=one, begun=begun):
            if client:
                return begun(client, announcement)
            one.machines[0], step = start_client(
                announcement, signer=one.identities[0], identity=one.roster.identities[0], policy=one.policy,
                given=one.given(0), random=coins("both"), spent=spent,
            )  # fmt: skip
            return step

        one.start_client = starts
        step = one.start()
        while PHASE_OF[header_of(step.send[0].message).kind] != "unmask":
            step = [one.deliver(one.ask(to, message)) for to, message in step.send][-1]
        found.append((one, dict(step.send)))
    (first, asked), (second, again) = found
    assert first.machines[0].on_message(asked[0]).send
    assert first.machines[0].revealed
    spent.add(first.task.report_id)
    refuses(second, 0, again[0], "another attempt of the round")
    second.machines[0], _ = restore_client(
        second.client_logs[0], signer=second.identities[0], identity=second.roster.identities[0],
        policy=second.policy, given=second.given(0), spent=spent,
    )  # fmt: skip
    refuses(second, 0, again[0], "another attempt of the round")
    assert first.machines[0].on_message(asked[0]).send  # a repeat is no second answer


@pytest.mark.parametrize("end", ["abort", "deadline", "restore"])
def test_a_client_that_helped_to_unmask_knows_so_however_the_task_ends(end):
    """A server that has its shares and then gives up would get another sum of the round with the same vector."""
    one = Federation(5)
    one.run()
    machine = one.machines[0]
    if end == "deadline":
        machine.on_deadline()
    else:
        step = machine.on_message(Abort(0, one.task.hash).encode())
        one.client_logs[0] += [bytes(each) for each in step.persist]
    if end == "restore":
        one.kill_client(0)
    assert one.machines[0].done
    assert one.machines[0].revealed
    left = Federation(5)
    left.run(drop={(client, "mask") for client in (1, 2, 3)})
    left.machines[0].on_deadline()
    assert not left.machines[0].revealed


def test_one_who_is_told_that_fewer_advertised_finds_no_quorum():
    """A smaller set has a smaller threshold: the three whom the victim is shown have signed for another set."""
    one, sent = to_phase("share", 8)
    adverts, few = one.server._adverts, (0, 1, 2)
    lie = next(keys_of(one.convention, Graph(one.task, few), adverts, [0])).encode()
    answers = {to: one.ask(to, lie if to == 0 else message) for to, message in sent.items()}
    given = {dealer: Shares.decode(answers[dealer], one.task.hash) for dealer in few}
    asked = next(deliveries(one.task, Dealt.of(given), [0])).encode()
    complaint = one.machines[0].on_message(asked).send[0].message
    assert header_of(complaint).kind == Complaint.kind  # who advertised is in the key that seals shares
    digest = sets_digest(one.task, few, few, few)
    signature = keys.sign(one.server_key, "survivors", digest)
    told = Survivors(0, one.task.hash, to_bitmap(few, 8), signature).encode()
    refuses(one, 0, told, "gave no vector")


def test_one_who_is_told_that_fewer_shared_finds_no_quorum():
    """Its vector lacks masks of the others, who masked over all; its survivors are signed by nobody else."""
    one, sent = to_phase("mask", 8)
    few = tuple(range(6))
    lie = next(deliveries(one.task, Dealt.of({each: one.server._shares[each] for each in few}), [0])).encode()
    for to, message in sent.items():
        one.deliver(one.ask(to, lie if to == 0 else message))
    mine = sets_digest(one.task, range(8), few, few)
    told = Survivors(0, one.task.hash, to_bitmap(few, 8), keys.sign(one.server_key, "survivors", mine)).encode()
    assert one.machines[0].on_message(told).send
    for client in range(1, 8):
        one.machines[client].on_message(survivors_message(one, client, range(8)))
    theirs = sets_digest(one.task, range(8), range(8), range(8))
    refuses(one, 0, quorum_message(one, 0, few, [1, 2, 3, 4, 5], theirs), "has not signed the same sets")


def test_a_client_that_complained_takes_no_part_in_unmasking():
    """A server that spoils its shares gets neither a vector nor a share, and cannot name it alive."""
    one, sent = to_phase("mask")
    spoilt = bytearray(sent[0])
    spoilt[-1] ^= 1
    answer = one.machines[0].on_message(bytes(spoilt)).send[0].message
    assert header_of(answer).kind == Complaint.kind
    refuses(one, 0, sent[0], "answered")
    refuses(one, 0, survivors_message(one, 0, range(6)), "gave no vector")
    refuses(one, 0, quorum_message(one, 0, range(6), [1, 2, 3, 4]), "before the one that comes first")


def test_every_field_of_a_task_is_in_its_name():
    task = Federation(6).task
    other = {
        str: lambda value: {"secagg-full": "secagg-plus", "pinned": "server"}.get(value, f"{value}x"),
        int: lambda value: value + 1,
        bytes: lambda value: bytes(32),
        tuple: lambda value: (*value, *value),
        Ring: lambda value: Ring(value.segments[::-1]),
    }
    names = {task.hash}
    for each in fields(Task):
        value = getattr(task, each.name)
        if each.name == "decryptors":
            continue  # without any there is nothing to repeat; two of them are compared in test_oneshot
        names.add(replace(task, **{each.name: other[type(value)](value)}).hash)
    assert len(names) == len(fields(Task))


# -- clients that lie


def test_keys_that_are_written_in_another_way_are_refused():
    """x + p, and x with the highest bit, are the same point: two keys that differ and are one."""
    one = Federation(6)
    step = one.start()
    advert = Advert.decode(one.start_client(1, step.send[1].message).send[0].message, one.task.hash)
    high = advert.masking[:-1] + bytes([advert.masking[-1] | 128])
    nine = (9 + 2**255 - 19).to_bytes(32, "little")
    for key in (high, nine):
        assert not keys.usable(key)
        for name in ("masking", "sealing"):
            with pytest.raises(RefusedError, match="small order"):
                one.server.on_message(signed_by(one, 1, replace(advert, **{name: key}), "adv"))
    assert keys.usable((9).to_bytes(32, "little"))


def test_a_signature_has_one_form():
    """S and S + L satisfy the same equation; only the first is taken (RFC 8032, section 5.1.7)."""
    order = 2**252 + 27742317777372353535851937790883648493
    one = Federation(6)
    message = one.ask(0, one.start().send[0].message)
    scalar = int.from_bytes(message[-32:], "little") + order
    with pytest.raises(RefusedError, match="not signed by its sender"):
        one.server.on_message(message[:-32] + scalar.to_bytes(32, "little"))


def test_no_key_of_small_order_signs():
    """Under such a key (zeros are one) a signature fits many messages, whoever wrote them."""
    prime = 2**255 - 19
    eighth = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
    y = int.from_bytes(eighth, "little")
    universal = (1).to_bytes(32, "little") + bytes(32)
    for point in (0, 1, prime - 1, y, prime - y, prime, prime + 1):
        for sign in (0, 1):
            key = (point | sign << 255).to_bytes(32, "little")
            assert not any(keys.signed(key, universal, "surv", bytes([each])) for each in range(64))
    own = Federation(6).identities[0]
    assert keys.signed(public(own), keys.sign(own, "surv", b"x"), "surv", b"x")


def test_a_server_begins_with_as_few_as_clients_allow_and_so_many_may_collude():
    """Of ten, three that collude are less than a third; of the four that the server lets begin they are all but one."""
    one = Federation(10)
    result = one.run(drop={(client, "advertise") for client in range(1, 7)})
    known = [one.vectors[each] for each in (7, 8, 9)]
    found = [whole - sum(parts) for whole, *parts in zip(result, *known, strict=True)]
    mine = one.ring.reduce(found)
    assert all(np.array_equal(*pair) for pair in zip(mine, one.vectors[0], strict=True))
    section = SecureAggregation(minimum_cohort=3)
    assert [section.tolerated_colluders(clients) for clients in (3, 4, 5, 10)] == [1, 1, 2, 3]
    guarded = Federation(10, demands={"minimum_cohort": 8}, settings={"minimum_cohort": 8})
    assert guarded.run(drop={(client, "advertise") for client in range(1, 7)}) is None


def test_a_round_may_have_two_sums_of_clients_that_unmask_one_each():
    """Seven of ten unmask the sum of all; the others may still unmask another, of no fewer than the policy's floor."""
    first, again = Federation(10), Federation(10, settings={"attempt": 2})
    assert first.run(drop={(client, "unmask") for client in (7, 8, 9)}) is not None
    helped = {client for client, machine in first.machines.items() if machine.revealed}
    assert helped == set(range(7))
    assert again.run(drop={(client, "advertise") for client in helped}) is not None
    assert again.server.survivors == (7, 8, 9)
    fewer = Federation(10, settings={"attempt": 3}, demands={"minimum_cohort": 4})
    assert fewer.run(drop={(client, "advertise") for client in helped}) is None


def test_random_numbers_that_repeat_among_clients_let_one_of_them_in():
    """The keys of a round would be the same, and nobody else's mask would hide either."""
    one = Federation(6)
    one.start_client = lambda client, announcement: starts_with_the_same(one, client, announcement)
    assert one.run() is None
    assert one.refused.count(("server", "HANSA-SECAGG-REFUSED")) == 5


def starts_with_the_same(one, client, announcement):
    one.machines[client], step = start_client(
        announcement, signer=one.identities[client], identity=one.roster.identities[client], policy=one.policy,
        given=one.given(client), random=coins("the same for all"),
    )  # fmt: skip
    return step


def test_random_numbers_that_repeat_mask_another_attempt_anew():
    """The seed is the same, and every key of it is bound to the task."""
    sent = []
    for attempt in (1, 2):
        one, asked = to_phase("mask", 6, settings={"attempt": attempt}, ring=Ring((Segment("params", 500, 32),)))
        sent.append(one.ring.unpack(Masked.decode(one.ask(0, asked[0]), one.task.hash).vector)[0])
    assert len(np.unique(sent[0] - sent[1])) > 490  # the vector was the same


def test_a_machine_of_no_records_is_refused():
    one = Federation(5)
    who = {"signer": one.identities[0], "identity": one.roster.identities[0], "policy": one.policy}
    for restore in (restore_client, MaskingClient.restore):
        with pytest.raises(RefusedError, match="ends within a field"):
            restore([], given=one.given(0), **who)
    drawn = OneShotFederation(5)
    drawn.decryptor_logs[0] = []
    with pytest.raises(RefusedError, match="ends within a field"):
        drawn.kill_decryptor(0)


def test_another_vector_behind_the_same_signature_changes_nothing():
    one, sent = to_phase("mask")
    first = one.ask(0, sent[0])
    other = replace(Masked.decode(first, one.task.hash), vector=one.ring.pack(random_vector(one.ring, "x"))).encode()
    with pytest.raises(RefusedError, match="not signed by its sender"):
        one.server.on_message(other)
    one.deliver(first)
    assert one.server.on_message(other).persist == ()
    step = [one.deliver(one.ask(to, message)) for to, message in sent.items() if to][-1]
    one.run(step=step)
    assert is_exact(one)


def test_messages_are_told_apart_however_they_are_kept():
    one, sent = to_phase("mask")
    message = one.ask(0, sent[0])
    assert answer_id(memoryview(bytearray(message))) == answer_id(memoryview(message)) == answer_id(message)


def test_a_complaint_names_neighbours_each_once():
    one, sent = to_phase("mask")
    for accused in ((1,) * 1000, (1, 2, 1), (0,), (6,), (2**32 - 1,)):
        with pytest.raises(RefusedError, match="others than neighbours, or about one twice"):
            one.server.on_message(signed_by(one, 0, Complaint(0, one.task.hash, accused, b""), "complaint"))
    assert one.server.complaints == []
    one.deliver(one.ask(0, sent[0]))
    with pytest.raises(RefusedError, match="in two ways"):
        one.server.on_message(signed_by(one, 0, Complaint(0, one.task.hash, (1,), b""), "complaint"))


def test_a_dealer_whose_shares_nobody_can_open_stops_one_attempt_and_all_of_them_say_who():
    one = Federation(6)

    def spoil(client, phase, answer):
        if (client, phase) != (2, "share"):
            return answer
        whole = Shares.decode(answer, one.task.hash)
        entries = b"".join(each._replace(sealed=bytes(104)).encode() for each in whole.read_entries())
        return signed_by(one, 2, replace(whole, entries=entries), "shares")

    assert one.run(tamper=spoil) is None
    assert one.server.phase is Phase.ABORTED
    assert one.server.complaints == [(each, 2) for each in (0, 1, 3, 4, 5)]
    assert not any(machine.revealed for machine in one.machines.values())
    one.kill_server()
    assert len(one.server.complaints) == 5


def dealt(one, client, change):
    """Let a dealer share what it likes, sealed and hashed as is due: ``change`` gets its shares [holders, 2, 44]."""
    ask, real = one.ask, field.share

    def lying(to, message):
        with pytest.MonkeyPatch.context() as patch:
            if to == client and PHASE_OF.get(header_of(message).kind) == "share":
                patch.setattr(field, "share", lambda *args, **more: change(real(*args, **more)))
            return ask(to, message)

    one.ask = lying


def test_the_same_share_for_everybody_gives_its_dealer_away_and_nobody_else():
    """A polynomial of degree 0: each share is the secret."""
    one = Federation(6)
    real = field.share

    def same(shares):
        secrets = one.machines[2]._self_seed + one.machines[2]._mask_secret
        return real(secrets, threshold=1, places=np.arange(1, len(shares) + 1), key=b"k" * 32)

    dealt(one, 2, same)
    one.run(drop={(4, "mask")})
    assert is_exact(one)


@pytest.mark.parametrize("at", ["element", "limb", "swapped", "one holder", "many holders"])
def test_shares_that_are_no_secret_name_their_dealer_or_are_left_out(at):
    one = Federation(10)

    def change(shares):
        bad = shares.copy()
        words = bad.view("<u4")
        if at == "element":
            words[..., 0] = field.PRIME + 5
        elif at == "limb":
            words[..., 3] = 2**24
        elif at == "swapped":
            bad = bad[::-1].copy()
        else:
            words[: 1 if at == "one holder" else 5, :, 2] ^= 1
        return bad

    dealt(one, 2, change)
    one.run(drop={(5, "mask")})
    assert one.server._revealed == {}
    if at == "one holder":
        assert is_exact(one)
        return
    assert one.server.phase is Phase.ABORTED
    assert [each.client for each in one.server.blamed] == [2]


@pytest.mark.parametrize("liars", [2, 3, 4, 9])
def test_holders_that_lie_spoil_nothing_until_too_few_are_left_and_all_are_named(liars):
    """Ten share, seven of them give a secret back, one dropped out: two may lie, of three there is no sum."""
    one = Federation(10)

    def lie(client, phase, answer):
        if phase != "unmask" or client >= liars:
            return answer
        whole = Unmask.decode(answer, one.task.hash)
        zeros = b"".join(u32(dealer) + bytes(44) for dealer in whole.read_shares()[0].tolist())
        return signed_by(one, client, replace(whole, shares=zeros), "unmask")

    one.run(tamper=lie, drop={(9, "mask")})
    assert is_exact(one) if liars == 2 else one.server.phase is Phase.ABORTED
    assert [each.client for each in one.server.blamed] == list(range(liars))


def test_liars_of_every_kind_and_a_server_that_dies_before_every_message():
    one, plain = Federation(10), Federation(10)

    def lie(client, phase, answer):
        task = one.task.hash
        if (client, phase) == (1, "share"):
            whole = Shares.decode(answer, task)
            first = SealedShares(0, bytes(64), bytes(104)).encode()
            entries = first + whole.entries[len(first) :]
            return signed_by(one, 1, replace(whole, entries=entries), "shares")
        if (client, phase) == (3, "unmask"):
            whole = Unmask.decode(answer, task)
            first = u32(0) + bytes(44)
            return signed_by(one, 3, replace(whole, shares=first + whole.shares[len(first) :]), "unmask")
        return answer

    plain.run(tamper=lie, drop={(8, "mask")})
    deliver = one.deliver

    def deadly(message):
        one.kill_server()
        client = header_of(message).client
        if one.machines[client].phase < 4:
            one.kill_client(client)
        return deliver(message)

    one.deliver = deadly
    one.run(tamper=lie, drop={(8, "mask")})
    assert is_exact(one)
    assert one.server_log == plain.server_log
    assert one.server.complaints == plain.server.complaints == [(0, 1)]
    assert one.server.blamed == plain.server.blamed
    assert [each.client for each in one.server.blamed] == [3]


def test_a_client_whose_signer_fails_as_it_unmasks_can_answer_still():
    one, sent = to_phase("unmask")
    signer = one.machines[0]._signer

    class Broken:
        def sign(self, data):
            raise OSError("no token")

    one.machines[0]._signer = Broken()
    with pytest.raises(OSError, match="no token"):
        one.machines[0].on_message(sent[0])
    assert not one.machines[0].revealed
    one.machines[0]._signer = signer
    assert header_of(one.machines[0].on_message(sent[0]).send[0].message).kind == Unmask.kind


def test_a_machine_takes_no_task_of_another_protocol():
    one = Federation(4, protocol="secagg-plus", settings={"neighbours": 2, "threshold": 2})
    message = one.start().send[0].message
    assert isinstance(start_client(
        message, signer=one.identities[0], identity=one.roster.identities[0], policy=one.policy, given=one.given(0),
        random=coins("x"),
    )[0], MaskingClient)  # fmt: skip
    other = Federation(4)
    other.start_client(0, other.start().send[0].message)
    refuses(other, 0, Quorum(0, one.task.hash, ()).encode(), "another task")


def test_an_error_as_the_sum_is_unmasked_spoils_no_sum(monkeypatch):
    """The last message fails within the server: what it has added stays right."""
    one = Federation(6, threads=2)
    real = keys.pair_key
    failed = []

    def failing(*args):
        if not failed:
            failed.append(1)
            raise MemoryError
        return real(*args)

    deliver = one.deliver

    def trying(message):
        try:
            return deliver(message)
        except MemoryError:
            return one.logged(one.server.on_deadline())

    one.deliver = trying
    step = one.start()
    while PHASE_OF[header_of(step.send[0].message).kind] != "unmask":
        sent = [(to, message) for to, message in step.send
                if (to, PHASE_OF[header_of(message).kind]) != (5, "mask")]  # fmt: skip
        steps = [one.deliver(one.ask(to, message)) for to, message in sent]
        step = steps[-1] if steps[-1].send else one.logged(one.server.on_deadline())
    monkeypatch.setattr(unmasking.keys, "pair_key", failing)
    one.run(step=step)
    assert failed
    assert is_exact(one)
