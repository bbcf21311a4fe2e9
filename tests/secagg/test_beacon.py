"""The beacon of a sparse graph: nobody but the authority draws it, for one task and one set of those who advertised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hansa.core.errors import RefusedError
from hansa.secagg import keys
from hansa.secagg.beacon import VALUE_BYTES, Beacon, Draw, signed_beacon
from hansa.secagg.composing import keys_of
from hansa.secagg.encoding import to_bitmap
from hansa.secagg.graph import Graph
from hansa.secagg.messages import Advert, Keys, header_of
from hansa.secagg.parameters import GraphParameters, protects
from hansa.secagg.server import MaskingServer, Phase
from hansa.testing.secagg import Federation

SPARSE = {
    "neighbours": 8, "threshold": 8, "minimum_cohort": 10, "minimum_survivors": 8, "registrar": "authority",
    "beacon": "authority",
}  # fmt: skip
LYING = {"server": "malicious"}


def federation(clients=10, *, seed="beacon", demands=LYING, **settings):
    return Federation(clients, protocol="secagg-plus", seed=seed, settings=SPARSE | settings, demands=demands)


def advertised(one):
    """Return the question to the authority, once everybody has advertised."""
    for to, message in one.start().send:
        step = one.deliver(one.ask(to, message))
    assert one.server.phase is Phase.DRAW
    (asked,) = step.send
    assert asked.to == one.clients
    return asked.message


def to_share(one):
    """Return what each client is told in the phase after."""
    step = one.deliver(one.draw(advertised(one)))
    assert one.server.phase is Phase.SHARE
    return dict(step.send)


def exact(one):
    return one.server.phase is Phase.DONE and all(map(np.array_equal, one.server.result, one.expected()))


def refuses(one, client, message, match):
    before = one.machines[client].phase
    with pytest.raises(RefusedError, match=match):
        one.machines[client].on_message(message)
    assert one.machines[client].phase == before


@pytest.mark.parametrize("drop", [(), {(3, "advertise")}, {(3, "share")}, {(3, "mask")}, {(3, "unmask")}])
def test_clients_that_assume_a_server_that_lies_give_their_sum_on_a_graph_that_the_authority_drew(drop):
    one = federation(11, threshold=8)
    one.run(drop=drop)
    assert exact(one)
    assert not one.server.graph.complete or drop == {(3, "advertise")}


def test_the_same_clients_have_another_graph_with_another_value():
    rows = set()
    for value in range(5):
        one = federation(30)
        rows.add(Graph(one.task, tuple(range(30)), bytes([value]) * VALUE_BYTES).neighbours(0))
    assert len(rows) == 5


def test_without_a_beacon_a_client_that_assumes_a_server_that_lies_refuses_as_before():
    one = federation(beacon="")
    with pytest.raises(
        RefusedError, match="protects against a curious server only; the policy assumes a malicious one"
    ):
        one.start_client(0, one.start().send[0].message)


@pytest.mark.parametrize(
    ("neighbours", "threshold", "colluding", "good"),
    [(8, 8, 1, True), (8, 8, 2, False), (8, 7, 0, False), (6, 6, 0, True), (6, 6, 1, False), (8, 6, 1, False)],
)
def test_a_graph_that_is_too_small_for_whom_a_site_suspects_is_refused(neighbours, threshold, colluding, good):
    one = federation(neighbours=neighbours, threshold=threshold, demands=LYING | {"assumed_colluding": colluding})
    graph = GraphParameters(neighbours, threshold)
    assert protects(graph, 10, corrupt=colluding, server="malicious") is good
    announcement = one.start().send[0].message
    if good:
        one.start_client(0, announcement)
    else:
        with pytest.raises(RefusedError, match="does not protect 10 clients from a malicious server"):
            one.start_client(0, announcement)


def test_a_cohort_so_small_that_all_are_neighbours_lets_no_larger_one_onto_a_weak_graph():
    """Of 11 all would be neighbours; of 40, two colluding clients cut off the arc between them, of 7 for example."""
    weak = {"neighbours": 10, "threshold": 7, "minimum_cohort": 11, "minimum_survivors": 10}
    demands = LYING | {"assumed_colluding": 2}
    one = federation(40, demands=demands, **weak)
    with pytest.raises(RefusedError, match="does not protect 12 clients from a malicious server with 2 of them"):
        one.start_client(0, one.start().send[0].message)
    full = federation(11, demands=demands, **weak)
    assert full.start_client(0, full.start().send[0].message).send


def test_a_site_that_suspects_more_than_take_part_refuses():
    one = federation(12, demands=LYING | {"assumed_colluding": 25})
    with pytest.raises(RefusedError, match="with 25 of them"):
        one.start_client(0, one.start().send[0].message)


def told(one, message, **changes):
    return replace(Keys.decode(message, one.task.hash), **changes).encode()


def test_a_beacon_is_of_one_value_one_set_and_one_task():
    """Wrong value, wrong set, another task's, another authority's, none at all, and every bit of it."""
    one, match = federation(12), "not the one that the authority drew"
    sent = to_share(one)
    right = Keys.decode(sent[0], one.task.hash).beacon
    others = [federation(12, round=4), federation(12, attempt=2), federation(12, run="run-2")]
    replayed = [Keys.decode(to_share(other)[0], other.task.hash).beacon for other in others]
    everybody, few = to_bitmap(range(12), 12), to_bitmap(range(11), 12)
    value = b"v" * VALUE_BYTES
    wrong = [
        b"", right[:-1], right + b"\0", value + right[VALUE_BYTES:],
        signed_beacon(one.server_key, one.task, everybody, value).content,
        signed_beacon(one.authority_key, one.task, few, value).content, *replayed,
    ]  # fmt: skip
    for beacon in wrong:
        refuses(one, 0, told(one, sent[0], beacon=beacon), match)
    for bit in range(0, 8 * len(right), 5):
        flipped = bytearray(right)
        flipped[bit // 8] ^= 1 << bit % 8
        refuses(one, 0, told(one, sent[0], beacon=bytes(flipped)), match)
    refuses(one, 0, told(one, sent[0], advertised=few), match)
    assert one.machines[0].on_message(sent[0]).send


def test_signatures_of_other_purposes_are_no_beacon():
    one = federation(12)
    sent, value = to_share(one), b"v" * VALUE_BYTES
    for purpose in ("roster", "graph", "adv"):
        signature = keys.sign(one.authority_key, purpose, one.task.hash, to_bitmap(range(12), 12), value)
        refuses(one, 0, told(one, sent[0], beacon=value + signature), "not the one that the authority drew")


def test_a_server_that_chooses_its_own_graph_is_refused():
    """It tries values until three colluding clients are the victim's neighbours; or it names neighbours at will."""
    one = federation(20)
    sent, everybody = to_share(one), tuple(range(20))
    chosen = next(
        graph for number in range(10**6)
        if {7, 8, 9} <= set((graph := Graph(one.task, everybody, number.to_bytes(VALUE_BYTES, "big"))).neighbours(0))
    )  # fmt: skip
    right = Keys.decode(sent[0], one.task.hash).beacon
    for beacon in (
        right, chosen.beacon + right[VALUE_BYTES:],
        signed_beacon(one.server_key, one.task, to_bitmap(everybody, 20), chosen.beacon).content,
    ):  # fmt: skip
        lie = next(keys_of(one.convention, chosen, one.server._adverts, [0], beacon)).encode()
        match = "not those of this client's neighbours" if beacon == right else "not the one that the authority drew"
        refuses(one, 0, lie, match)


def test_a_beacon_in_a_task_that_has_none_is_refused():
    one = federation(beacon="", demands={"server": "curious"})
    for to, message in one.start().send:
        step = one.deliver(one.ask(to, message))
    sent = dict(step.send)
    assert Keys.decode(sent[0], one.task.hash).beacon == b""
    refuses(one, 0, told(one, sent[0], beacon=bytes(96)), "a beacon in a task that has none")


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"registrar": "pinned"}, "drawn by the roster's authority"), ({"registrar": "server"}, "roster's authority")],
)
def test_a_beacon_without_an_authority_is_no_task(settings, match):
    with pytest.raises(RefusedError, match=match):
        federation(**settings)
    with pytest.raises(RefusedError, match="Only secagg-plus has"):
        Federation(6, settings={"registrar": "authority", "beacon": "authority"})


def test_the_server_takes_the_beacon_of_its_task_and_authority_only_and_says_an_advert_again_changes_nothing():
    one = federation(12)
    question = advertised(one)
    everybody, value = to_bitmap(range(12), 12), b"v" * VALUE_BYTES
    other = federation(12, round=4)
    wrong = [
        signed_beacon(one.server_key, one.task, everybody, value),
        signed_beacon(one.authority_key, one.task, to_bitmap(range(11), 12), value),
        signed_beacon(other.authority_key, other.task, everybody, value),
        Beacon(12, one.task.hash, value, bytes(64)),
        replace(Beacon.decode(one.draw(question), one.task.hash), client=3),
    ]
    log = len(one.server_log)
    for each in wrong:
        with pytest.raises(RefusedError):
            one.server.on_message(each.encode())
    advert = next(each for each in one.server_log if each[:4] == b"HSA1" and header_of(each)[:2] == (Advert.kind, 2))
    assert one.server.on_message(advert).send == ()
    with pytest.raises(RefusedError, match="answered a phase in two ways"):
        one.server.on_message(advert[:-1] + b"\0")
    assert (one.server.phase, one.server.waits_for, len(one.server_log)) == (Phase.DRAW, (12,), log)
    assert one.deliver(one.draw(question)).send


def test_without_an_answer_of_the_authority_the_sum_is_given_up_and_nothing_was_shared():
    one = federation()
    assert one.run(drop={(10, "draw")}) is None
    assert one.server.phase is Phase.ABORTED
    assert one.server.abort_reason == "the authority has drawn no beacon"
    assert one.server.blamed == []
    assert all(each.done for each in one.machines.values())


def test_nobody_asks_the_authority_before_enough_have_advertised():
    one = federation()
    assert one.run(drop={(3, "advertise")}) is None
    assert "9 clients have answered in phase ADVERTISE" in one.server.abort_reason


def test_an_authority_draws_for_signed_adverts_of_enough_clients_only():
    one = federation(12)
    question = Draw.decode(advertised(one), one.task.hash)
    question.check(one.task, one.roster.identities)
    first, *others = question.adverts
    changed = [
        replace(question, adverts=question.adverts[1:]),
        replace(question, adverts=(b"x" * 32 + first[32:], *others)),
        replace(question, adverts=(question.adverts[1], question.adverts[0], *question.adverts[2:])),
        replace(question, advertised=to_bitmap(range(11), 12)),
        replace(question, advertised=to_bitmap(range(9), 12), adverts=question.adverts[:9]),
    ]
    for each in changed:
        with pytest.raises(RefusedError, match=r"adverts are not of|advert is not signed"):
            each.check(one.task, one.roster.identities)
    later = federation(12, round=4)
    with pytest.raises(RefusedError, match="not signed by its sender"):  # an advert of another round
        replace(question, task=later.task.hash).check(later.task, later.roster.identities)


def test_the_server_dies_before_and_after_it_knows_the_beacon():
    """The question is the same bytes; what was drawn is on disk before anybody is told of it."""
    one = federation(12)
    question = advertised(one)
    (again,) = one.kill_server().send
    assert again.message == question
    answer = one.draw(question)
    step = one.server.on_message(answer)
    assert bytes(step.persist[0]) == answer
    one.kill_server()  # nothing was durable: it asks again, and the authority gives the same bytes
    assert one.server.phase is Phase.DRAW
    assert one.server.on_message(one.draw(question)) == step
    one.logged(step)
    assert one.kill_server().send == step.send
    lost = MaskingServer.restore(one.convention, [each for each in one.server_log if bytes(each) != answer])[0]
    assert (lost.phase, lost.abort_reason) == (Phase.ABORTED, "records are missing or damaged")
