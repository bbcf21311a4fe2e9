"""``oneshot-seeds``: one report a client, a sum for decryptors that agree, and one answer of each, whatever dies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.secagg.test_masks import SIZE, Ring, Segment, assert_random
from tests.secagg.test_tampering import bits_of, flipped

from hansa.core.errors import HansaError, RefusedError
from hansa.secagg import keys
from hansa.secagg.convention import register
from hansa.secagg.decryptor import Decryptor
from hansa.secagg.encoding import to_bitmap
from hansa.secagg.known import content_of
from hansa.secagg.masks import Mask, apply
from hansa.secagg.messages import Abort, Announcement, header_of
from hansa.secagg.oneshot_client import ReportingClient
from hansa.secagg.oneshot_messages import Answer, Batch, Report, Request, Valid
from hansa.secagg.oneshot_server import Phase, SummingServer
from hansa.secagg.roster import Roster
from hansa.secagg.sealing import Binding, open_seed, seed_key
from hansa.testing.secagg import Federation, OneShotFederation, coins, public, random_vector


def is_exact(one):
    return one.server.phase is Phase.DONE and all(
        np.array_equal(mine, plain) for mine, plain in zip(one.server.result, one.expected(), strict=True)
    )


def to_kind(kind, clients=5, **more):
    """Return a federation whose server has just sent messages of a kind, and these by decryptor."""
    one = OneShotFederation(clients, **more)
    step = one.start()
    while header_of(step.send[0].message).kind != kind:
        step = [one.deliver(one.ask(to, message)) for to, message in step.send][-1]
    return one, dict(step.send)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 8), st.sets(st.integers(0, 7), max_size=6), st.integers(2, 4))
def test_who_reports_is_in_the_sum_and_who_does_not_costs_nothing(clients, gone, operators):
    one = OneShotFederation(clients, operators=operators)
    one.run(drop={(client, "advertise") for client in gone})
    left = tuple(client for client in range(clients) if client not in gone)
    if len(left) >= 3:
        assert is_exact(one)
        assert one.server.survivors == left
    else:
        assert one.server.phase is Phase.ABORTED
        assert all(each.phase == 0 for each in one.decryptors.values())


@pytest.mark.parametrize("phase", ["check", "decrypt"])
def test_without_one_decryptor_there_is_no_sum(phase):
    one = OneShotFederation(5)
    assert one.run(drop={(1, phase)}) is None
    assert one.server.phase is Phase.ABORTED


def test_a_report_that_a_decryptor_cannot_open_is_taken_out_of_the_sum():
    one = OneShotFederation(6)

    def spoil(client, phase, answer):
        if (client, phase) != (2, "advertise"):
            return answer
        whole = Report.decode(answer, one.task.hash)
        seeds = whole.seeds[:80] + bytes(80)
        fields = keys.u32(2), content_of(answer), seeds
        signature = keys.sign(one.identities[2], "report", one.task.hash, *fields)
        return replace(whole, seeds=seeds, signature=signature).encode()

    one.run(tamper=spoil)
    assert is_exact(one)
    assert one.server.survivors == (0, 1, 3, 4, 5)


def test_every_report_is_as_long_and_looks_random():
    ring = Ring((Segment("params", SIZE, 12),))
    found = []
    for entry in (0, 4095):
        vectors = {each: (np.full(SIZE, entry, np.uint16),) for each in range(3)}
        one = OneShotFederation(3, ring=ring, vectors=vectors)
        assert one.run() is not None
        reports = [Report.decode(each, one.task.hash) for each in one.server_log if each[:4] == b"HSA1" and
                   header_of(each).kind == Report.kind]  # fmt: skip
        found.append([len(each.encode()) for each in reports])
        assert_random(ring.unpack(reports[1].vector)[0], 12, {0, 11})
    assert found[0] == found[1] == [ring.nbytes + 48 + 64 + 8 + 160] * 3


def test_all_decryptors_but_one_with_the_server_see_noise():
    ring = Ring((Segment("params", SIZE, 12),))
    one = OneShotFederation(3, ring=ring, operators=3, vectors={0: (np.full(SIZE, 7, np.uint16),)})
    report = Report.decode(one.ask(0, one.start().send[0].message), one.task.hash)
    content = content_of(report.encode())
    residue = tuple(row.copy() for row in ring.unpack(report.vector))
    for place in (0, 2):
        binding = Binding(one.task.hash, 0, place, content)
        seed = open_seed(report.seeds[80 * place : 80 * place + 80], one.secrets[place], binding)
        apply([Mask(seed_key(seed, one.task.hash, 0, place), minus=True)], residue)
    assert_random(ring.reduce(residue)[0], 12, {0, 11})


def test_noise_of_decryptors_is_in_the_sum():
    def seven(ring):
        return tuple(row + row.dtype.type(7) for row in ring.zeros())

    one = OneShotFederation(4, noise=seven)
    result = one.run()
    for mine, plain, segment in zip(result, one.expected(), one.ring.segments, strict=True):
        assert np.array_equal(mine, (plain + plain.dtype.type(14)) & plain.dtype.type(segment.mask))


# -- attacks


def refuses(machine, message, match):
    before = machine.phase
    with pytest.raises(RefusedError, match=match):
        machine.on_message(message)
    assert machine.phase == before


def request(one, members, signer=None, place=0):
    unsigned = Request(place, one.task.hash, to_bitmap(members, one.clients), b"")
    signature = keys.sign(signer or one.server_key, "request", *unsigned.signed_fields())
    return replace(unsigned, signature=signature).encode()


def test_a_decryptor_answers_once_and_over_enough_reports_that_it_can_open():
    one, _ = to_kind(Request.kind, floors={"minimum_survivors": 3})
    machine = one.decryptors[0]
    refuses(machine, request(one, [0, 1]), "2 reports, fewer than 3")
    refuses(machine, request(one, range(4), one.key("stranger")), "server's key")
    machine._seeds.pop(3)
    refuses(machine, request(one, range(4)), "cannot open")
    first = machine.on_message(request(one, range(3))).send[0].message
    assert machine.on_message(request(one, range(3))).send[0].message == first
    refuses(machine, request(one, [0, 1, 2, 4]), "one sum a task")


def test_a_decryptor_checks_one_batch_and_sums_nothing_before():
    one, sent = to_kind(Batch.kind)
    machine = one.decryptors[0]
    refuses(machine, request(one, range(3)), "before the batch")
    batch = Batch.decode(sent[0], one.task.hash)
    machine.on_message(replace(batch, reports=batch.reports[:4]).encode())
    refuses(machine, sent[0], "one sum a task")


def test_a_decryptor_demands_the_tasks_roster_and_each_report_once():
    one, sent = to_kind(Batch.kind)
    machine, batch = one.decryptors[0], Batch.decode(sent[0], one.task.hash)
    stranger = (public(one.key("stranger")), *batch.identities[1:])
    refuses(machine, replace(batch, identities=stranger).encode(), "not the task's")
    refuses(machine, replace(batch, reports=batch.reports[:1] * 2).encode(), "order of their indices")
    refuses(one.decryptors[1], sent[0], "another task or decryptor")


def test_reports_of_others_or_changed_ones_are_no_part_of_a_sum():
    one, sent = to_kind(Batch.kind)
    batch = Batch.decode(sent[0], one.task.hash)
    a, b, c, d, e = batch.reports
    swapped = (
        a._replace(seeds=b.seeds),
        b._replace(client=1, content=a.content),
        c._replace(signature=d.signature),
        d,
        e,
    )
    one.decryptors[0].on_message(replace(batch, reports=swapped).encode())
    assert set(one.decryptors[0]._seeds) == {3, 4}


def test_seeds_open_for_their_task_client_decryptor_and_vector_only():
    one, sent = to_kind(Batch.kind)
    report = Batch.decode(sent[0], one.task.hash).reports[1]
    binding = Binding(one.task.hash, 1, 0, report.content)
    seed = report.seeds[:80]
    assert open_seed(seed, one.secrets[0], binding) is not None
    for other in (Binding(bytes(32), *binding[1:]), binding._replace(client=2), binding._replace(decryptor=1),
                  binding._replace(content=bytes(32))):  # fmt: skip
        assert open_seed(seed, one.secrets[0], other) is None
    assert open_seed(report.seeds[80:], one.secrets[0], binding) is None


def test_lists_that_differ_between_decryptors_give_no_sum():
    one, _ = to_kind(Request.kind)
    one.deliver(one.decryptors[0].on_message(request(one, range(5))).send[0].message)
    lie = one.decryptors[1].on_message(request(one, range(4), place=1)).send[0].message
    with pytest.raises(RefusedError, match="over others"):
        one.server.on_message(lie)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"operators": 1}, "one decryptor"),
        ({"demands": {"minimum_operators": 3}}, "fewer decryptors"),
        ({"demands": {"decryptors": {}}}, "not among those"),
    ],
)
def test_clients_demand_decryptors_that_they_know_to_be_apart(change, match):
    def begin():
        one = OneShotFederation(4, **change)
        one.start_client(0, one.start().send[0].message)

    with pytest.raises(RefusedError, match=match):
        begin()


def test_two_decryptors_of_one_operator_or_key_are_refused():
    one = OneShotFederation(4)
    first, second = one.task.decryptors
    for bad, match in (
        (replace(second, operator=first.operator), "one operator"),
        (replace(second, sealing=first.sealing), "are the same"),
    ):
        with pytest.raises(RefusedError, match=match):
            OneShotFederation(4, settings={"decryptors": (first, bad)})


def test_clients_demand_the_signature_of_every_decryptor():
    one = OneShotFederation(4)
    message = Announcement.decode(one.start().send[0].message, one.task.hash)
    for signatures, match in (
        (message.decryptors[:1], "Not every decryptor"),
        ((message.decryptors[0], bytes(64)), "has not signed"),
    ):
        with pytest.raises(RefusedError, match=match):
            one.start_client(0, replace(message, decryptors=signatures).encode())


def test_decryptors_stand_ready_once_and_only_for_tasks_that_keep_their_floors():
    one = OneShotFederation(4)
    with pytest.raises(RefusedError, match="policy demands 4"):
        OneShotFederation(5, floors={"minimum_survivors": 4}).start()
    with pytest.raises(RefusedError, match="demands 'authority'"):
        OneShotFederation(5, floors={"registrar": "authority"}).start()
    mine = one._decryptor(0)
    start = one.task.content, one.convention.registration
    with pytest.raises(RefusedError, match="stood ready"):
        Decryptor.start(*start, secret=one.secrets[0], spent={one.task.hash}, **mine)
    with pytest.raises(RefusedError, match="two keys"):
        Decryptor.start(*start, secret=one.secrets[1], **mine)
    with pytest.raises(RefusedError, match="not signed by its registrar"):
        Decryptor.start(one.task.content, bytes(64), secret=one.secrets[0], **mine)


def test_a_task_whose_vector_no_memory_holds_is_refused():
    """A few bytes name 32 GB of zeros, which a decryptor would add masks to."""
    one = OneShotFederation(4)
    vast = replace(one.task, ring=Ring((Segment("params", 2**32 - 1, 64),)))
    with pytest.raises(RefusedError, match="1073741824 at most"):
        Decryptor.start(vast.content, one.convention.registration, secret=one.secrets[0], **one._decryptor(0))
    with pytest.raises(RefusedError, match="the policy takes 129 at most"):
        OneShotFederation(4, floors={"largest_vector": 129}).start()
    OneShotFederation(4, floors={"largest_vector": 130}).start()


def test_that_another_clients_task_is_over_is_no_news():
    one = OneShotFederation(4)
    one.ask(0, one.start().send[0].message)
    with pytest.raises(RefusedError, match="another client"):
        one.machines[0].on_message(Abort(1, one.task.hash).encode())
    assert one.machines[0].on_message(Abort(0, one.task.hash).encode()).send == ()


def test_seeds_that_are_drawn_again_mask_another_attempt_anew():
    """Where a machine's random numbers repeat (a copy of it was started), no two vectors share a mask."""
    sent = []
    for attempt in (1, 2):
        one = OneShotFederation(4, settings={"attempt": attempt}, ring=Ring((Segment("params", 500, 32),)))
        report = Report.decode(one.ask(0, one.start().send[0].message), one.task.hash)
        sent.append(one.ring.unpack(report.vector)[0])
    assert len(np.unique(sent[0] - sent[1])) > 490  # the vector and the coins were the same


def test_a_client_reports_once_a_task():
    one = OneShotFederation(4)
    announcement = one.start().send[0].message
    with pytest.raises(RefusedError, match="taken part"):
        ReportingClient.start(
            announcement, signer=one.identities[0], identity=one.roster.identities[0], policy=one.policy,
            given=one.given(0), random=coins("x"), spent={one.task.hash},
        )  # fmt: skip
    first = one.ask(0, announcement)
    one.deliver(first)
    assert one.server.on_message(first).persist == ()
    with pytest.raises(RefusedError, match="in two ways"):
        one.server.on_message(one.ask(0, announcement))


def test_flipped_bits_leave_a_report_out_and_change_nothing():
    one = OneShotFederation(4)
    step = one.start()
    answers = [one.ask(to, message) for to, message in step.send]
    for bit in bits_of(answers[0], 1, 61):
        with pytest.raises(HansaError):
            one.server.on_message(flipped(answers[0], bit))
    step = [one.deliver(each) for each in answers][-1]
    while step.send:
        replies = []
        for to, message in step.send:
            reply = one.ask(to, message)
            for bit in bits_of(reply, to, 61):
                with pytest.raises(HansaError):
                    one.server.on_message(flipped(reply, bit))
            replies.append(reply)
        step = [one.deliver(each) for each in replies][-1]
    assert is_exact(one)


def test_flipped_bits_in_a_request_are_refused():
    one, sent = to_kind(Request.kind)
    for bit in range(len(sent[0]) * 8):
        refuses(one.decryptors[0], flipped(sent[0], bit), ".")


def test_a_client_that_helped_to_unmask_a_round_reports_in_no_other_attempt_of_it():
    """Of another protocol, too: whatever the attempts of a round are, one of its sums holds the vector."""
    one = OneShotFederation(4, settings={"attempt": 2})
    masked = Federation(4)
    assert masked.task.report_id == one.task.report_id
    with pytest.raises(RefusedError, match="helped to unmask its round"):
        ReportingClient.start(
            one.start().send[0].message, signer=one.identities[0], identity=one.roster.identities[0],
            policy=one.policy, given=one.given(0), random=coins("x"), spent={masked.task.report_id},
        )  # fmt: skip


def test_one_peer_at_many_places_of_a_roster_is_refused_by_decryptors():
    one, sent = to_kind(Batch.kind)
    batch = Batch.decode(sent[0], one.task.hash)
    twice = (batch.identities[0], *batch.identities[:-1])
    with pytest.raises(RefusedError, match="a key twice"):
        one.decryptors[0].on_message(replace(batch, identities=twice).encode())


def test_sets_that_overlap_in_one_client_get_one_answer_over_attempts_and_groups():
    """Groups of a cohort have clients apart; a server that puts one into two of them learns one sum."""
    spent, answers = set(), []
    for attempt, clients in ((1, (0, 1, 2, 3)), (1, (3, 4, 5, 6)), (2, (4, 5, 6)), (3, (0, 5, 6))):
        one = OneShotFederation(len(clients), settings={"attempt": attempt})
        one.identities = [one.key(f"client {each}") for each in clients]
        one.roster = Roster(tuple(map(public, one.identities)))
        one.task = replace(one.task, roster_root=one.roster.root)
        one.policy = replace(one.policy, pinned=frozenset(one.roster.identities))
        one.convention = replace(
            one.convention, task=one.task, roster=one.roster, registration=register(one.server_key, one.roster)
        )
        step = one.start()
        while header_of(step.send[0].message).kind != Request.kind:
            step = [one.deliver(one.ask(to, message)) for to, message in step.send][-1]
        machine = one.decryptors[0]
        machine._spent = spent
        try:
            machine.on_message(dict(step.send)[0])
        except RefusedError:
            continue
        answers.append(clients)
        spent |= set(machine.uses)
    assert answers == [(0, 1, 2, 3), (4, 5, 6)]


def test_a_decryptor_that_excludes_clients_or_lies_about_them_gives_no_wrong_set():
    """Its set is bounded by the reports, and what it cannot have is not counted; too few left, and there is no sum."""
    for claim, survivors in (((0, 1, 2), (0, 1, 2)), (range(5), (0, 1, 2, 3)), ((0, 1), None), ((), None)):
        one, sent = to_kind(Batch.kind)
        step = one.start()
        step = [one.deliver(one.ask(to, message)) for to, message in step.send if to != 4][-1]
        step = step if step.send else one.logged(one.server.on_deadline())
        sent = dict(step.send)
        one.ask(0, sent[0])
        unsigned = Valid(0, one.task.hash, to_bitmap(claim, 5), b"")
        signature = keys.sign(one.decryptor_keys[0], "valid", *unsigned.signed_fields())
        one.deliver(replace(unsigned, signature=signature).encode())
        one.run(step=one.deliver(one.ask(1, sent[1])))
        if survivors is None:
            assert one.server.phase is Phase.ABORTED
            assert one.server.result is None
        else:
            assert is_exact(one)
            assert one.server.survivors == survivors


def test_an_answer_before_its_request_is_no_decryptors_record():
    one, sent = to_kind(Request.kind)
    one.ask(0, sent[0])
    whole = one.decryptor_logs[0]
    for kept in ([whole[0], *whole[2:]], [*whole[:2], whole[3]]):
        one.decryptor_logs[0] = kept
        with pytest.raises(RefusedError, match="before the answer"):
            one.kill_decryptor(0)


# -- deaths


def spoiled(one):
    def spoil(client, phase, answer):
        if (client, phase) != (2, "advertise"):
            return answer
        whole = Report.decode(answer, one.task.hash)
        fields = keys.u32(2), content_of(answer), bytes(160)
        signature = keys.sign(one.identities[2], "report", one.task.hash, *fields)
        return replace(whole, seeds=bytes(160), signature=signature).encode()

    return spoil


def test_a_server_that_dies_after_any_durable_write_goes_on_to_the_same_records():
    one = OneShotFederation(5)
    one.run(tamper=spoiled(one))
    log = one.server_log
    for durable in range(1, len(log) + 1):
        server, step = SummingServer.restore(one.convention, log[:durable])
        again = log[:durable] + [bytes(each) for each in step.persist]
        pending = list(step.again)
        for record in log[durable:]:
            while server.phase is Phase.EXCLUDE:
                client = (pending or list(server.waits_for))[0]
                report = next(
                    each for each in log if each[:4] == b"HSA1" and header_of(each)[:2] == (Report.kind, client)
                )
                again += [bytes(each) for each in server.on_message(report).persist]
            if record not in again:
                step = server.on_message(record) if record[:4] == b"HSA1" else server.on_deadline()
                again += [bytes(each) for each in step.persist]
        assert again == log
        assert is_exact(one)
        assert all(np.array_equal(a, b) for a, b in zip(server.result, one.server.result, strict=True))


def test_decryptors_and_clients_that_die_after_every_durable_write_give_the_same_bytes():
    one = OneShotFederation(5, noise=lambda ring: random_vector(ring, str(np.random.default_rng().integers(2**60))))
    ask = one.ask

    def deadly(client, message):
        answer = ask(client, message)
        if header_of(message).kind in {Batch.kind, Request.kind}:
            step = one.kill_decryptor(client)
            assert ask(client, message) == answer
        else:
            step = one.kill_client(client)
        assert step.persist == ()
        assert [each.message for each in step.send] == [answer]
        return answer

    one.ask = deadly
    assert one.run() is not None


def test_a_decryptor_that_died_between_request_and_answer_answers_now():
    one, sent = to_kind(Request.kind)
    one.ask(0, sent[0])
    log = one.decryptor_logs[0]
    assert header_of(log[-1]).kind == Answer.kind
    one.decryptor_logs[0] = log[:-1]
    one.kill_decryptor(0)
    assert one.ask(0, sent[0]) == log[-1]


def test_a_server_whose_frozen_set_is_lost_gives_up():
    one = OneShotFederation(4)
    one.run()
    frozen = [place for place, each in enumerate(one.server_log) if each[:4] == b"HSS1"]
    for lost in frozen[1:-1]:
        server, _ = SummingServer.restore(one.convention, one.server_log[:lost] + one.server_log[lost + 1 :])
        assert server.phase is Phase.ABORTED


def test_no_vector_goes_into_two_sums_of_one_round():
    """A sum over A and one over A with somebody more would give that client away."""
    spent = set()
    answers = 0
    for attempt in (1, 2):
        one, sent = to_kind(Request.kind, settings={"attempt": attempt})
        one.decryptors[0]._spent = spent
        try:
            one.decryptors[0].on_message(sent[0])
        except RefusedError as error:
            assert "another sum of the round" in str(error)  # noqa: PT017 - the first is answered
            assert one.decryptors[0].uses == ()
        else:
            answers += 1
            spent |= set(one.decryptors[0].uses)
    assert answers == 1


def test_one_client_in_common_is_enough_to_refuse_and_groups_apart_have_a_sum_each():
    one, sent = to_kind(Request.kind)
    machine = one.decryptors[0]
    machine._spent = {one.task.given_by(one.roster.identities[4])}
    refuses(machine, sent[0], "another sum of the round")
    machine._spent = {one.task.given_by(one.key("somebody of another group").public_key().public_bytes_raw())}
    assert machine.on_message(sent[0]).send
    assert machine.uses == tuple(map(one.task.given_by, one.roster.identities))
