"""A server, or clients, that lie: what is asked of a client beside the protocol is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hansa.core.errors import RefusedError
from hansa.core.ring import Ring, Segment
from hansa.secagg import keys
from hansa.secagg.client import MaskingClient
from hansa.secagg.contribution import Contribution
from hansa.secagg.convention import Convention, vouch
from hansa.secagg.encoding import to_bitmap, u32
from hansa.secagg.graph import sets_digest
from hansa.secagg.messages import (
    Advert,
    Announcement,
    Deliveries,
    Keys,
    Masked,
    Quorum,
    Shares,
    Survivors,
    Unmask,
    header_of,
)
from hansa.secagg.roster import Roster
from hansa.secagg.server import MaskingServer, Phase
from hansa.testing.secagg import PHASE_OF, Federation, coins, public, random_vector

SMALL_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]
"""Encodings of points whose order divides 8 (RFC 7748, section 6.1; Bernstein, https://cr.yp.to/ecdh.html)."""
SMALL_ORDER += [each[:-1] + bytes([each[-1] | 128]) for each in SMALL_ORDER]


def to_phase(phase, clients=6, drop=(), **more):
    """Return a federation whose server has just sent the messages of a phase, and these by client."""
    one = Federation(clients, **more)
    step = one.start()
    while True:
        sent = dict(step.send)
        if PHASE_OF[header_of(next(iter(sent.values()))).kind] == phase:
            return one, sent
        steps = []
        for to, message in sent.items():
            if (to, PHASE_OF[header_of(message).kind]) not in drop:
                steps.append(one.deliver(one.ask(to, message)))
        step = next((each for each in reversed(steps) if each.send), None) or one.logged(one.server.on_deadline())


def refuses(one, client, message, match):
    before = one.machines[client].phase
    with pytest.raises(RefusedError, match=match):
        one.machines[client].on_message(message)
    assert one.machines[client].phase == before


def survivors_message(one, client, members, shared=None):
    advertised = range(one.clients)
    digest = sets_digest(one.task, advertised, advertised if shared is None else shared, members)
    signature = keys.sign(one.server_key, "survivors", digest)
    return Survivors(client, one.task.hash, to_bitmap(members, one.clients), signature).encode()


def quorum_message(one, client, members, signers, digest=None):
    digest = digest or sets_digest(one.task, range(one.clients), range(one.clients), members)
    signatures = tuple((each, keys.sign(one.identities[each], "surv", digest)) for each in signers)
    return Quorum(client, one.task.hash, signatures).encode()


# -- survivor sets (gate 5)


def test_a_client_refuses_to_be_told_that_it_dropped_out():
    one, _ = to_phase("consist")
    refuses(one, 0, survivors_message(one, 0, [1, 2, 3, 4, 5]), "with this client")


def test_a_client_signs_one_set_of_survivors_only():
    one, _ = to_phase("consist")
    one.machines[0].on_message(survivors_message(one, 0, range(6)))
    refuses(one, 0, survivors_message(one, 0, range(5)), "answered")


def test_survivors_below_the_floor_are_refused():
    one, _ = to_phase("consist", settings={"minimum_survivors": 5, "minimum_cohort": 5})
    refuses(one, 0, survivors_message(one, 0, range(4)), "4 clients are left")


def test_the_floor_is_the_clients_own_even_where_the_task_asks_for_less():
    one = Federation(6, settings={"minimum_survivors": 4, "minimum_cohort": 5}, demands={"minimum_survivors": 5})
    with pytest.raises(RefusedError, match="4 survivors or more; the policy demands 3 and 5"):
        one.start_client(0, one.start().send[0].message)


def test_survivors_that_the_server_does_not_stand_for_are_refused():
    one, _ = to_phase("consist")
    forged = Survivors(0, one.task.hash, to_bitmap(range(5), 6), bytes(64)).encode()
    refuses(one, 0, forged, "has not signed the same sets")


def test_survivors_who_never_shared_are_refused():
    one, _ = to_phase("consist", drop={(5, "share")})
    refuses(one, 0, survivors_message(one, 0, range(6), shared=range(5)), "not some of those who shared")


def test_different_sets_for_different_clients_find_no_quorum():
    """Half is told that 5 is alive, half that it dropped out: neither half signs what the other needs."""
    one, _ = to_phase("consist")
    for client in range(5):
        one.machines[client].on_message(survivors_message(one, client, range(6) if client < 3 else range(5)))
    smaller = sets_digest(one.task, range(6), range(6), range(5))
    refuses(one, 0, quorum_message(one, 0, range(6), [1, 2, 3, 4], smaller), "has not signed the same sets")
    refuses(one, 3, quorum_message(one, 3, range(5), [0, 1, 2, 4], sets_digest(one.task, range(6), range(6), range(6))),
            "has not signed the same sets")  # fmt: skip


def test_fewer_signatures_than_a_quorum_are_refused():
    one, sent = to_phase("unmask")
    whole = Quorum.decode(sent[0], one.task.hash)
    refuses(one, 0, replace(whole, signatures=whole.signatures[1:]).encode(), "not as many signatures")
    twice = (whole.signatures[0], *whole.signatures[:-1])
    refuses(one, 0, replace(whole, signatures=twice).encode(), "by different neighbours")
    own = (0, keys.sign(one.identities[0], "surv", bytes(32)))
    refuses(one, 0, replace(whole, signatures=(own, *whole.signatures[1:])).encode(), "by different neighbours")


def test_a_second_request_for_shares_is_refused_and_the_same_gets_the_same_bytes():
    one, sent = to_phase("unmask")
    first = one.machines[0].on_message(sent[0]).send[0].message
    assert one.machines[0].on_message(sent[0]).send[0].message == first
    again = quorum_message(one, 0, range(6), [2, 3, 4, 5])
    refuses(one, 0, again, "answered")


def test_shares_are_of_one_kind_for_each_client():
    """Of the living the seed's share, of the dropped the key's: never both of one."""
    one, sent = to_phase("unmask", drop={(5, "mask")})
    holder = one.machines[0]
    received = dict(holder._received)
    answer = Unmask.decode(holder.on_message(sent[0]).send[0].message, one.task.hash)
    dealers, shares = answer.read_shares()
    assert dealers.tolist() == list(range(6))
    for dealer, share in zip(dealers.tolist(), shares, strict=True):
        if dealer:
            assert bytes(share) == (received[dealer][44:] if dealer == 5 else received[dealer][:44])


def test_no_message_carries_a_share_of_a_sealing_key_or_a_secret_in_the_clear():
    one, sent = to_phase("mask")
    secrets = [
        secret
        for client in one.machines.values()
        for secret in (client._seed, client._mask_secret, client._self_seed, client._sealing_key.private_bytes_raw())
    ]
    everything = b"".join([*one.server_log, *sent.values()])
    assert not any(secret in everything for secret in secrets)


def test_phases_cannot_be_skipped_or_asked_twice():
    one, sent = to_phase("mask")
    refuses(one, 0, survivors_message(one, 0, range(6)), "before the one that comes first")
    refuses(one, 0, Keys(0, one.task.hash, to_bitmap(range(6), 6), b"", ()).encode(), "answered")
    assert sent


# -- keys, rosters, Sybils (gate 8)


def changed_keys(one, message, change):
    whole = Keys.decode(message, one.task.hash)
    neighbours = whole.read_neighbours()
    neighbours[0] = change(neighbours[0])
    return replace(whole, neighbours=tuple(each.encode() for each in neighbours)).encode()


def test_a_neighbours_keys_are_signed_by_its_identity():
    one, sent = to_phase("share")
    swapped = changed_keys(one, sent[0], lambda each: each._replace(advert=replace(each.advert, masking=b"k" * 32)))
    refuses(one, 0, swapped, "not signed by its identity")


def test_an_identity_that_is_not_in_the_roster_is_refused():
    one, sent = to_phase("share")
    sybil = one.key("sybil")

    def substitute(each):
        advert = replace(each.advert, masking=b"k" * 32)
        advert = replace(advert, signature=keys.sign(sybil, "adv", *advert.signed_fields()))
        return each._replace(advert=advert, identity=public(sybil))

    refuses(one, 0, changed_keys(one, sent[0], substitute), "not in the roster")


def test_an_identity_in_the_roster_that_is_not_pinned_is_refused():
    one, sent = to_phase("share")
    one.machines[0]._policy = replace(one.policy, pinned=frozenset(one.roster.identities[:5]))
    refuses(one, 0, sent[0], "policy pins")


def test_keys_of_somebody_else_or_too_few_neighbours_are_refused():
    one, sent = to_phase("share")
    whole = Keys.decode(sent[0], one.task.hash)
    refuses(one, 0, replace(whole, neighbours=whole.neighbours[1:]).encode(), "not those of this client's neighbours")
    refuses(one, 0, replace(whole, advertised=to_bitmap([0, 1], 6)).encode(), "2 clients advertised")
    refuses(one, 0, replace(whole, advertised=to_bitmap(range(1, 6), 6)).encode(), "not among those")
    refuses(one, 0, replace(whole, client=1).encode(), "another task or client")


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_points_of_small_order_are_refused_by_server_and_client(point):
    one, sent = to_phase("share")
    liar = one.identities[1]

    def substitute(each):
        advert = replace(each.advert, masking=point)
        return each._replace(advert=replace(advert, signature=keys.sign(liar, "adv", *advert.signed_fields())))

    refuses(one, 0, changed_keys(one, sent[0], substitute), "of small order")
    other = Federation(6)
    step = other.start()
    advert = replace(Advert.decode(other.start_client(1, step.send[1].message).send[0].message, other.task.hash),
                     masking=point)  # fmt: skip
    signed = replace(advert, signature=keys.sign(other.identities[1], "adv", *advert.signed_fields()))
    with pytest.raises(RefusedError, match="small order"):
        other.server.on_message(signed.encode())


def test_keys_are_usable_that_give_a_secret_and_are_written_in_the_one_way():
    secret = keys.private_key(bytes(range(32)))
    near = [(2**255 - 19 + step).to_bytes(32, "little") for step in range(-4, 19)]
    for public_key in (*SMALL_ORDER, *near, *(bytes([number]) * 32 for number in range(256))):
        try:
            keys.agree(secret, public_key)
        except ValueError:
            assert not keys.usable(public_key)
        else:
            assert keys.usable(public_key) == (int.from_bytes(public_key, "little") < 2**255 - 19)


def test_the_same_key_twice_is_refused_by_server_and_client():
    one = Federation(6)
    step = one.start()
    adverts = [Advert.decode(one.ask(to, message), one.task.hash) for to, message in step.send]
    one.deliver(adverts[0].encode())
    copy = replace(adverts[1], masking=adverts[0].masking)
    copy = replace(copy, signature=keys.sign(one.identities[1], "adv", *copy.signed_fields()))
    with pytest.raises(RefusedError, match="there twice"):
        one.server.on_message(copy.encode())
    one, sent = to_phase("share")
    own = one.machines[0]._masking

    def mirror(each):
        advert = replace(each.advert, masking=own)
        return each._replace(
            advert=replace(advert, signature=keys.sign(one.identities[1], "adv", *advert.signed_fields()))
        )

    refuses(one, 0, changed_keys(one, sent[0], mirror), "are the same")


def test_a_roster_is_vouched_for_as_the_policy_demands():
    authority = Federation(4).key("another authority")
    demands = {"registrar": "authority", "authority_key": public(authority)}
    one = Federation(4, settings={"registrar": "authority"}, demands=demands)
    with pytest.raises(RefusedError, match="not signed by its registrar"):
        one.start_client(0, one.start().send[0].message)
    one.convention = replace(one.convention, registration=vouch(authority, one.task))
    assert one.run() is not None
    weaker = Federation(4, settings={"registrar": "server"})
    with pytest.raises(RefusedError, match="the policy demands 'pinned'"):
        weaker.start_client(0, weaker.start().send[0].message)


def test_a_roster_names_nobody_twice_and_is_the_tasks():
    one = Federation(4)
    with pytest.raises(RefusedError, match="a key twice"):
        Roster((*one.roster.identities, one.roster.identities[0]))
    with pytest.raises(RefusedError, match="not the task's"):
        Convention(task=one.task, roster=Roster(one.roster.identities[:3]), signer=one.server_key, registration=b"")


# -- tasks and models (gates 6 and 9)


def test_a_task_is_signed_by_the_server_and_is_the_one_that_is_named():
    one = Federation(4)
    message = Announcement.decode(one.start().send[0].message, one.task.hash)
    with pytest.raises(RefusedError, match="server's key that was pinned"):
        one.start_client(0, replace(message, signature=bytes(64)).encode())
    other = replace(one.task, minimum_survivors=4, minimum_cohort=4)
    with pytest.raises(RefusedError, match="not the one that its message names"):
        one.start_client(0, replace(message, descriptor=other.content).encode())


def test_a_client_takes_part_only_with_the_model_and_plan_that_it_trained():
    one = Federation(4)
    announcement = one.start().send[0].message
    for plan, model in ((b"p" * 32, b"x" * 32), (b"x" * 32, b"m" * 32)):
        given = Contribution(plan, model, one.vectors[0])
        one.given = lambda client, given=given: given
        with pytest.raises(RefusedError, match="another plan or model"):
            one.start_client(0, announcement)


def test_masks_of_different_models_never_cancel():
    """Two tasks that differ in the model's hash alone share no key: their masked vectors add to noise."""
    found = []
    for model in (b"m" * 32, b"n" * 32):
        one, _ = to_phase("mask", clients=4, settings={"model_sha256": model})
        pairs = one.machines[0]._pairs
        found.append({pair.mask for pair in pairs.values()} | {pair.sending for pair in pairs.values()})
    assert not found[0] & found[1]


def test_messages_of_another_round_run_attempt_or_protocol_are_refused():
    one, sent = to_phase("share")
    for settings in ({"round": 4}, {"run": "run-2"}, {"attempt": 2}, {"plan_sha256": b"q" * 32}):
        _, foreign = to_phase("share", settings=settings)
        refuses(one, 0, foreign[0], "another task")
    relabelled = bytearray(sent[0])
    relabelled[:4] = b"HSA2"
    refuses(one, 0, bytes(relabelled), "of this version")
    with pytest.raises(RefusedError, match="another task"):
        one.server.on_message(to_phase("share", settings={"round": 4})[0].server_log[1])


def test_an_advert_of_another_round_does_not_count_under_a_new_header():
    """The signature covers the task: a header that is changed does not make an old advert new."""
    old, _ = to_phase("share", settings={"round": 4})
    one = Federation(6)
    one.start()
    advert = Advert.decode(old.server_log[1], old.task.hash)
    with pytest.raises(RefusedError, match="not signed by its sender"):
        one.server.on_message(replace(advert, task=one.task.hash).encode())


def test_a_task_that_a_client_has_taken_part_in_is_spent():
    one = Federation(4)
    with pytest.raises(RefusedError, match="taken part in the task before"):
        MaskingClient.start(
            one.start().send[0].message, signer=one.identities[0], identity=one.roster.identities[0],
            policy=one.policy, given=one.given(0), random=coins("again"), spent={one.task.hash},
        )  # fmt: skip


def test_answers_count_once_and_for_their_sender_only():
    one, _ = to_phase("share")
    log = list(one.server_log)
    advert = log[1]
    with pytest.raises(RefusedError, match="no use in this phase"):
        one.server.on_message(advert)
    one = Federation(6)
    step = one.start()
    first = one.ask(0, step.send[0].message)
    assert one.deliver(first).persist == (first,)
    assert one.server.on_message(first).persist == ()
    one.seed = "other"
    other = one.start_client(0, step.send[0].message).send[0].message
    with pytest.raises(RefusedError, match="in two ways"):
        one.server.on_message(other)
    stolen = replace(Advert.decode(first, one.task.hash), client=1).encode()
    with pytest.raises(RefusedError, match="not signed by its sender"):
        one.server.on_message(stolen)


def test_clients_take_no_messages_of_clients_and_servers_none_of_servers():
    one, sent = to_phase("share")
    for recorded in one.server_log:
        if recorded[:4] == b"HSA1":
            with pytest.raises(RefusedError):
                one.machines[0].on_message(recorded)
    with pytest.raises(RefusedError, match="no use in this phase"):
        one.server.on_message(sent[0])


def test_after_unmasking_no_other_attempt_of_the_round_gets_the_vector():
    first, again = Federation(4), Federation(4, settings={"attempt": 2})
    first.run()
    assert first.machines[0].revealed
    with pytest.raises(RefusedError, match="helped to unmask its round"):
        MaskingClient.start(
            again.start().send[0].message, signer=again.identities[0], identity=again.roster.identities[0],
            policy=again.policy, given=again.given(0), random=coins("again"), spent={first.task.report_id},
        )  # fmt: skip
    given_up = Federation(4)
    given_up.run(drop={(client, "mask") for client in (1, 2)})
    assert not given_up.machines[0].revealed


# -- vectors and tasks that cannot be (gate 10)


def test_entries_beyond_the_ring_are_refused_and_the_largest_are_not():
    ring = Ring((Segment("params", 2, 20),))
    one = Federation(4, ring=ring)
    announcement = one.start().send[0].message
    for entry, good in ((2**20 - 1, True), (2**20, False)):
        one.vectors[0] = (np.array([0, entry], np.uint32),)
        if good:
            one.start_client(0, announcement)
        else:
            with pytest.raises(RefusedError, match="needs more than 20 bits"):
                one.start_client(0, announcement)
    one.vectors[0] = (np.zeros(3, np.uint32),)
    with pytest.raises(RefusedError, match="other segments"):
        one.start_client(0, announcement)


@pytest.mark.parametrize(
    ("protocol", "settings", "match"),
    [
        ("secagg-full", {"minimum_survivors": 2}, "at least 3 survivors"),
        ("secagg-full", {"minimum_cohort": 7}, "out of 6"),
        ("secagg-full", {"neighbours": 4}, "Only secagg-plus"),
        ("secagg-plus", {"neighbours": 3, "threshold": 2}, "even number"),
        ("secagg-plus", {"neighbours": 4, "threshold": 6}, "threshold is 2"),
        ("secagg-full", {"ring": Ring(())}, "empty"),
        ("secagg-full", {"ring": Ring((Segment("params", 2, 7),))}, "8 to 64"),
        ("secagg-full", {"round": -1}, "is -1"),
        ("oneshot-seeds", {}, "has decryptors"),
    ],
)
def test_tasks_that_do_not_protect_are_refused(protocol, settings, match):
    with pytest.raises(RefusedError, match=match):
        MaskingServer.start(Federation(6, protocol=protocol, settings=settings).convention)


def test_a_sparse_graph_is_refused_where_the_server_may_lie():
    settings = {"neighbours": 4, "threshold": 3}
    one = Federation(8, protocol="secagg-plus", settings=settings, demands={"server": "malicious"})
    with pytest.raises(RefusedError, match="curious server only"):
        one.start_client(0, one.start().send[0].message)


def test_a_threshold_below_the_policys_is_refused():
    settings = {"neighbours": 4, "threshold": 3}
    one, sent = to_phase("share", 8, protocol="secagg-plus", settings=settings, demands={"minimum_threshold": 4})
    refuses(one, 0, sent[0], "3 of 5 shares")


# -- lying clients: named, and never a wrong sum


def test_shares_that_cannot_be_opened_are_complained_about_and_the_sum_is_exact():
    one = Federation(8)

    def spoil(client, phase, answer):
        if (client, phase) != (2, "share"):
            return answer
        whole = Shares.decode(answer, one.task.hash)
        first, *rest = whole.read_entries()
        bad = first._replace(sealed=bytes(104))
        unsigned = replace(whole, entries=b"".join(each.encode() for each in (bad, *rest)))
        return replace(unsigned, signature=keys.sign(one.identities[2], "shares", *unsigned.signed_fields())).encode()

    result = one.run(tamper=spoil)
    assert one.server.complaints == [(0, 2)]
    assert one.server.survivors == (1, 2, 3, 4, 5, 6, 7)
    assert all((mine == plain).all() for mine, plain in zip(result, one.expected(), strict=True))


def test_a_holder_that_gives_a_wrong_share_is_named_and_the_sum_is_exact():
    one = Federation(8)

    def lie(client, phase, answer):
        if (client, phase) != (2, "unmask"):
            return answer
        whole = Unmask.decode(answer, one.task.hash)
        bad = u32(0) + bytes(44)
        unsigned = replace(whole, shares=bad + whole.shares[len(bad) :])
        return replace(unsigned, signature=keys.sign(one.identities[2], "unmask", *unsigned.signed_fields())).encode()

    result = one.run(tamper=lie, drop={(5, "mask")})
    assert [each.client for each in one.server.blamed] == [2]
    assert all((mine == plain).all() for mine, plain in zip(result, one.expected(), strict=True))


def test_a_dealer_whose_shares_give_no_secret_is_named_and_there_is_no_sum(monkeypatch):
    """It shares another seed than it committed to; hashes and seals are all right."""
    one = Federation(6)
    step = one.start()
    sent = [(to, one.ask(to, message)) for to, message in step.send]
    one.machines[3]._self_seed, kept = b"x" * 32, one.machines[3]._self_seed
    steps = [one.deliver(answer) for _, answer in sent]
    asked = steps[-1].send
    answers = {to: one.ask(to, message) for to, message in asked}
    one.machines[3]._self_seed = kept
    step = [one.deliver(answer) for answer in answers.values()][-1]
    assert one.run(step=step) is None
    assert one.server.phase is Phase.ABORTED
    assert [each.client for each in one.server.blamed] == [3]
    assert "3" not in one.server.abort_reason


def test_a_vector_that_is_not_what_was_signed_does_not_count():
    one = Federation(6)

    def swap(client, phase, answer):
        if (client, phase) != (1, "mask"):
            return answer
        return replace(
            Masked.decode(answer, one.task.hash), vector=one.ring.pack(random_vector(one.ring, "x"))
        ).encode()

    one.run(tamper=swap)
    assert one.refused == [("server", "HANSA-SECAGG-REFUSED")]
    assert one.server.survivors == (0, 2, 3, 4, 5)
    assert one.server.phase is Phase.DONE


def test_a_delivery_that_leaves_out_a_neighbour_is_refused():
    one, sent = to_phase("mask")
    whole = Deliveries.decode(sent[0], one.task.hash)
    size = len(whole.read_entries()[0].encode())
    refuses(one, 0, replace(whole, entries=whole.entries[size:]).encode(), "not those of this client's neighbours")
    refuses(
        one, 0, replace(whole, shared=to_bitmap([0, 1], 6), entries=whole.entries[:size]).encode(), "2 clients are left"
    )
