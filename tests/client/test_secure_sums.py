"""A client in secure sums: it gives its vector to no other sum than its policy and the plan allow, and once."""

from __future__ import annotations

import json
import os
import signal
from base64 import b64encode

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fake_server import SECURE, TOKEN, job_of, refused
from fake_sum import FakeSum
from test_killed import start, stop

from hansa.client import Agent
from hansa.client.policy import Policy, SecureSums
from hansa.client.records import Id
from hansa.client.state import DECLINED
from hansa.client.sum_folder import Begun, SumFolder
from hansa.core.errors import RunError
from hansa.secagg.messages import Masked, header_of
from hansa.wire.generated import federation_pb2 as wire


def text(key):
    return b64encode(key.public_key().public_bytes_raw()).decode()


def peers(server):
    return tuple(map(text, server.peers))


@pytest.fixture
def site(server, data, tmp_path):
    """Make an enrolled agent with a policy for secure sums."""
    made = []

    def make(**demands):
        policy = Policy(secure_sums=SecureSums(**{"peers": peers(server), **demands}))
        agent = Agent(server.url, data, tmp_path / "state", policy, wait=0.0)
        made.append(agent)
        agent.enrol(TOKEN)
        return agent

    yield make
    for agent in made:
        agent.close()


def work(agent, until, steps=60):
    for _ in range(steps):
        if until():
            return
        agent.step()
    raise TimeoutError("it did not come to an end")


def sent(server, call):
    """Return how often the client made a call."""
    return sum(path.startswith(call) for _, path in server.requests)


def left(agent):
    """Return the code for which the client left or declined last."""
    return json.loads((agent.state.path / DECLINED).read_text().splitlines()[-1])["code"]


def declines(server, agent, path):
    """Let the client work until it has told that it does not answer; make sure that nothing of its vector has left."""
    work(agent, lambda: path in server.declined)
    assert server.reports == {}
    assert all(header_of(each).kind != Masked.kind for one in server.sums.values() for each in one.taken)
    assert not (agent.state.path / "sum").exists()


def test_a_client_gives_its_update_to_the_sum_and_in_no_other_way(server, site):
    agent, path = site(), server.assign_sum(job_of(SECURE))
    work(agent, lambda: path in server.sums and server.sums[path].result is not None)
    (report,) = server.reports.values()
    assert header_of(report).kind == Masked.kind
    kinds = [header_of(each).kind for each in server.sums[path].taken]
    assert kinds == [2, 4, 6, 9, 11]
    result = server.sums[path].result
    assert any(np.any(each) for each in result), "the others give zeros: it is the client's own vector"
    packed = server.wanted_sums[path]["ring"].pack(result)
    assert packed not in report
    server.outcomes[path] = wire.OUTCOME_INCLUDED
    work(agent, lambda: [each.outcome for each in agent.state.reports()] == ["included"])
    assert not (agent.state.path / "sum").exists()
    assert len(SumFolder(agent.state).spent()) == 2, "the task, and the round that it helped to unmask"


@pytest.mark.parametrize(
    ("demands", "task"),
    [
        ({}, {"registrar": "server"}),
        ({"registrar": "server"}, {"registrar": "pinned"}),
        ({"minimum_cohort": 4}, {}),
        ({"minimum_survivors": 4}, {"minimum_cohort": 4}),
        ({}, {"protocol": "secagg-plus", "neighbours": 2, "threshold": 2}),
        ({}, {"model_sha256": bytes(32)}),
        ({}, {"plan_sha256": bytes(32)}),
        ({}, {"round": 9}),
        ({}, {"attempt": 2}),
        ({}, {"run": "run-1/evaluation"}),
    ],
    ids=lambda each: "-".join(each) or "as it is",
)
def test_an_announcement_that_is_not_what_plan_or_policy_demand_is_declined(server, site, demands, task):
    agent, path = site(**demands), server.assign_sum(job_of(SECURE), **task)
    declines(server, agent, path)
    assert sent(server, "/hansa.v1.Federation/Exchange") == 0
    assert left(agent).startswith("HANSA-SECAGG-")


def test_a_sum_over_other_integers_than_the_plans_is_declined(server, site):
    from hansa.core.ring import Ring, Segment

    agent = site()
    path = server.assign_sum(job_of(SECURE), ring=Ring((Segment("params", 3, 20),)))
    declines(server, agent, path)
    assert sent(server, "/hansa.v1.Federation/Exchange") == 0


def test_the_plans_own_floor_holds_where_the_server_announces_a_lower_one(server, site):
    tables = {**SECURE, "secure_aggregation": {"maximum_cohort": 4, "minimum_cohort": 4}}
    agent, path = site(), server.assign_sum(job_of(tables))
    declines(server, agent, path)
    assert sent(server, "/hansa.v1.Federation/Exchange") == 0


@pytest.mark.parametrize("known", [0, 2], ids=["none", "all but one"])
def test_peers_that_are_not_pinned_get_no_shares(server, site, known):
    agent, path = site(peers=peers(server)[:known]), server.assign_sum(job_of(SECURE))
    declines(server, agent, path)
    assert [header_of(each).kind for each in server.sums[path].taken] == [2], "its advert, and nothing after it"
    assert left(agent) == "HANSA-SECAGG-REFUSED"


def test_with_the_server_as_registrar_no_peers_need_be_known(server, site):
    agent = site(peers=(), registrar="server", server="curious")
    path = server.assign_sum(job_of(SECURE), registrar="server")
    work(agent, lambda: path in server.sums and server.sums[path].result is not None)


def test_a_roster_that_the_policys_authority_vouches_for_needs_no_peers(server, site):
    authority = Ed25519PrivateKey.generate()
    agent = site(peers=(), registrar="authority", authority_key=text(authority))
    path = server.assign_sum(job_of(SECURE), registrar="authority", authority=authority)
    work(agent, lambda: path in server.sums and server.sums[path].result is not None)


@pytest.mark.parametrize("vouched", ["by another", "by the server", "for pinned keys"])
def test_a_roster_that_the_policys_authority_does_not_vouch_for_is_declined(server, site, vouched):
    authority = Ed25519PrivateKey.generate()
    agent = site(registrar="authority", authority_key=text(authority))
    forger = {"by another": Ed25519PrivateKey.generate(), "by the server": server.key}.get(vouched)
    task = {} if forger is None else {"registrar": "authority", "authority": authority, "forger": forger}
    path = server.assign_sum(job_of(SECURE), **task)
    declines(server, agent, path)
    assert sent(server, "/hansa.v1.Federation/Exchange") == 0
    assert left(agent) == "HANSA-SECAGG-REFUSED"


def test_a_policy_whose_authority_is_the_server_protects_nobody_and_is_declined(server, site):
    agent = site(registrar="authority", authority_key=text(server.key))
    path = server.assign_sum(job_of(SECURE), registrar="authority", authority=Ed25519PrivateKey.generate())
    declines(server, agent, path)


def test_a_plan_without_a_secure_sum_is_declined_where_the_policy_requires_one(server, site):
    agent, path = site(required=True), server.assign(job_of())
    declines(server, agent, path)
    assert left(agent) == "HANSA-POLICY-REFUSED"


def test_a_plan_with_a_secure_sum_whose_server_announces_none_gets_nothing(server, site):
    agent, path = site(), server.assign(job_of(SECURE))
    declines(server, agent, path)
    assert left(agent) == "HANSA-REQUEST-INVALID"


def test_a_message_that_was_changed_on_its_way_makes_the_client_leave(server, site):
    agent, path = site(), server.assign_sum(job_of(SECURE))
    work(agent, lambda: path in server.sums)
    server.sums[path].change = lambda message: message[:60] + bytes([message[60] ^ 1]) + message[61:]
    declines(server, agent, path)


def test_a_sum_that_the_server_gave_up_is_left_and_never_taken_up_again(server, site):
    agent, path = site(), server.assign_sum(job_of(SECURE))
    work(agent, lambda: path in server.sums and server.sums[path].taken)
    begun = server.sums.pop(path)
    work(agent, lambda: not (agent.state.path / "sum").exists())
    assert SumFolder(agent.state).spent() == {begun.server.task.hash}
    server.sums[path] = begun  # the same announcement again
    declines(server, agent, path)
    assert left(agent) == "HANSA-SECAGG-ANSWERED"


@pytest.mark.parametrize("code", ["HANSA-SECAGG-REFUSED", "HANSA-RING-INVALID"])
def test_a_masked_vector_that_is_refused_for_good_is_not_sent_again(server, site, monkeypatch, code):
    agent, path = site(), server.assign_sum(job_of(SECURE))
    take = FakeSum.take

    def refusing(self, message):
        if header_of(message).kind == Masked.kind:
            raise refused(code)
        take(self, message)

    monkeypatch.setattr(FakeSum, "take", refusing)
    work(agent, lambda: sent(server, "/v1/updates/") > 0)
    assert [each.outcome for each in agent.state.reports()] == ["refused"]
    assert agent.state.pending() is None
    server.sums.pop(path)  # the round goes on without it, and is over
    work(agent, lambda: not (agent.state.path / "sum").exists())
    assert sent(server, "/v1/updates/") == 1


# Killed


def start_site(server, data, state, **environment):
    policy = state.parent / "policy.toml"
    policy.write_text(f"[secure_sums]\npeers = {json.dumps(peers(server))}\n")
    return start(server, data, state, "--policy", str(policy), **environment)


@pytest.mark.parametrize("point", ["client.sum-answered", "client.sum-recorded"])
@pytest.mark.parametrize("time", [1, 2, 3, 4, 5])
def test_a_client_killed_within_a_sum_goes_on_with_the_same_bytes(server, data, tmp_path, point, time):
    state, path = tmp_path / "state", server.assign_sum(job_of(SECURE))
    killed = start_site(server, data, state, HANSA_KILL_AT=f"{point}:{time}")
    _, told = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL, told
    taken = len(server.sums[path].taken)
    assert taken == time - 1, "what it was killed over has not left"
    again = start_site(server, data, state)
    try:
        server.wait_for(lambda: server.sums[path].result is not None, seconds=40)
    finally:
        told = stop(again)
    assert "HANSA-SECAGG" not in told
    by_kind = {}
    for each in server.sums[path].taken:
        by_kind.setdefault(header_of(each).kind, set()).add(each)
    assert sorted(by_kind) == [2, 4, 6, 9, 11]
    assert all(len(each) == 1 for each in by_kind.values()), "a phase was answered in two ways"


@pytest.mark.parametrize("torn", [1, 7, 8, 60])
def test_a_torn_record_is_dropped_and_what_it_held_is_asked_again(server, site, torn):
    """The power fails while the server's second message is written: nothing that answers it has left."""
    agent, path = site(), server.assign_sum(job_of(SECURE))
    records = SumFolder(agent.state)
    work(agent, lambda: len(records.records()) == 2)
    assert len(server.sums[path].taken) == 1
    first, _ = records.records()
    agent.close()
    os.truncate(agent.state.path / "sum" / "records", 8 + len(first) + torn)
    again = site()
    assert SumFolder(again.state).records() == [first]
    work(again, lambda: server.sums[path].result is not None)
    assert [header_of(each).kind for each in server.sums[path].taken] == [2, 4, 6, 9, 11]


@pytest.mark.parametrize("time", [2, 3, 4, 5])
@pytest.mark.parametrize("written", [0, 3, 40])
def test_what_could_not_be_written_is_no_answer_whatever_is_in_memory(server, site, monkeypatch, time, written):
    """The disk is full as the client answers: it must not give that answer from memory when it is asked again."""
    agent, path = site(), server.assign_sum(job_of(SECURE))
    append, calls = SumFolder.append, []

    def full(self, records):
        calls.append(records)
        if not time <= len(calls) < time + 3:
            append(self, records)
            return
        with (self._path / "records").open("ab") as file:
            file.write(((1000).to_bytes(8, "big") + bytes(40))[:written])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SumFolder, "append", full)
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            work(agent, lambda: False, steps=30)
        assert len(SumFolder(agent.state).records()) == time - 1
        kinds = {header_of(each).kind for each in server.sums[path].taken}
        assert len(kinds) <= time - 1, "an answer left without its record"
    work(agent, lambda: server.sums[path].result is not None)


def test_a_folder_that_fails_within_a_sum_is_told_as_such(site):
    folder = SumFolder(site().state)
    (folder._path / "records").mkdir(parents=True)
    for call in (folder.records, folder.vector, lambda: folder.append([b"record"])):
        with pytest.raises(RunError) as caught:
            call()
        assert caught.value.code == "HANSA-CLIENT-FOLDER"


def test_a_name_that_was_cut_short_hides_no_later_one(server, site):
    """The disk was full as a sum ended: the names of sums that end later are found still."""
    agent = site()
    (agent.state.path / "spent-sums").write_bytes(bytes(32) + b"cut short")
    path = server.assign_sum(job_of(SECURE))
    work(agent, lambda: path in server.sums and server.sums[path].result is not None)
    task = server.sums[path].server.task
    server.outcomes[path] = wire.OUTCOME_INCLUDED
    work(agent, lambda: not (agent.state.path / "sum").exists())
    assert {task.hash, task.report_id} <= SumFolder(agent.state).spent()


def test_a_vector_that_was_changed_on_disk_is_not_given(server, site, tmp_path):
    agent, path = site(), server.assign_sum(job_of(SECURE))
    work(agent, lambda: path in server.sums and server.sums[path].taken)
    agent.close()
    kept = tmp_path / "state" / "sum" / "vector"
    content = kept.read_bytes()
    kept.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    declines(server, site(), path)


def test_records_are_read_back_and_an_ended_sum_leaves_only_its_name(agent):
    folder = SumFolder(agent.state)
    begun = Begun(
        Id("r", "training", 1, 1),
        b"announced",
        b"k" * 32,
        "00" * 32,
        "11" * 32,
        (("params", 3, 20),),
        {"protocol": "secagg-full"},
    )
    assert folder.begun() is None
    folder.begin(begun, b"packed")
    folder.append([b"one", b""])
    folder.append([b"three" * 1000])
    assert (folder.begun(), folder.vector()) == (begun, b"packed")
    assert folder.records() == [b"one", b"", b"three" * 1000]
    for part in ("records", "vector", "head.json"):
        assert (agent.state.path / "sum" / part).stat().st_mode & 0o077 == 0
    folder.end()
    assert (folder.begun(), folder.spent()) == (None, frozenset()), "what was announced was no task"
