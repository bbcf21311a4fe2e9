from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from fake_server import PLAN, SCAFFOLD, TOKEN, digest, first_model, job_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.algorithms.plan import plan_from_mapping
from hansa.algorithms.prologue import statistics_layout
from hansa.algorithms.rounds import travelling_layout
from hansa.client import Agent
from hansa.client.learner import Learner, Request, SiteExamples
from hansa.client.records import Id
from hansa.client.state import OWN_METRICS
from hansa.client.trust import with_new_keys
from hansa.core.errors import RefusedError
from hansa.wire import signatures
from hansa.wire.generated import federation_pb2 as wire
from hansa.wire.server_models import ServedModel
from hansa.wire.updates import decode_tallies, decode_update


def layout_of(job):
    return travelling_layout(plan_from_mapping(job.plan), job.layout)


def test_a_client_enrols_answers_and_learns(server, agent):
    job = job_of()
    path = server.assign(job)
    assert agent.step() == 0.0
    update = decode_update(server.reports[path], layout_of(job))
    assert update.lane("count")[0] == 1
    assert np.abs(update.values).max() > 0
    assert agent.state.open_report().id == Id("run-1", "training", 1, 1)
    server.outcomes[path] = wire.OUTCOME_INCLUDED
    agent.step()
    assert agent.state.open_report() is None
    assert [each.outcome for each in agent.state.reports()] == ["included"]
    assert server.answers == 1


def test_enrolment_sends_the_token_once_and_is_repeated_with_the_same_key(server, data, tmp_path):
    server.refuse = ["HANSA-SERVER-BUSY"]
    agent = Agent(server.url, data, tmp_path / "state", attributes={"region": "EU", "beds": 4})
    agent.enrol(TOKEN)
    agent.close()
    again = Agent(server.url, data, tmp_path / "state")
    assert again.identity.client == "client-1"
    again.enrol("something else")
    again.close()
    assert len(server.enrolments) == 1
    assert dict(server.enrolments[0].attributes) == {"region": '"EU"', "beds": "4"}
    (tmp_path / "state" / "identity.json").unlink()  # killed before the answer was on disk
    third = Agent(server.url, data, tmp_path / "state")
    third.enrol(TOKEN)
    third.close()
    assert len({each.public_key for each in server.enrolments}) == 1


def test_a_wrong_token_is_refused_with_the_servers_code(server, data, tmp_path):
    agent = Agent(server.url, data, tmp_path / "state")
    with pytest.raises(RefusedError) as error:
        agent.enrol("wrong")
    agent.close()
    assert error.value.code == "HANSA-ENROL-TOKEN"


def test_a_client_rotates_its_key(server, agent):
    before = server.public_key
    agent.rotate_key()
    assert server.public_key != before
    assert agent.state.key().public_key().public_bytes_raw() == server.public_key
    server.assign(job_of())
    agent.step()
    assert len(server.reports) == 1


def test_a_rotation_whose_answer_was_lost_is_ended_by_the_next_start(server, agent, data, tmp_path):
    folder, before = agent.state.path, server.public_key
    server.lose_answers = ["HANSA-STATE"]
    with pytest.raises(RefusedError):
        agent.rotate_key()
    after = server.public_key
    assert after != before == agent.state.key().public_key().public_bytes_raw()  # the server is ahead
    agent.close()
    again, stop = Agent(server.url, data, folder, wait=0.0), threading.Event()
    threading.Timer(1.0, stop.set).start()
    again.run(stop)
    assert server.public_key == after == again.state.key().public_key().public_bytes_raw()
    assert again.state.next_key(make=False) is None
    assert server.check_ins
    again.close()


def test_statistics_travel_as_lanes_only(server, agent):
    job = job_of()
    path = server.assign(job, kind=wire.KIND_STATISTICS, round=0)
    agent.step()
    lanes = decode_update(server.reports[path], statistics_layout(plan_from_mapping(job.plan).features))
    assert lanes.lane("n.age")[0] == 16


def test_own_figures_of_an_evaluation_stay_with_the_client(server, agent, caplog):
    job = job_of()
    path = server.assign(job, kind=wire.KIND_EVALUATION, round=0)
    agent.step()
    tallies = decode_tallies(server.reports[path])
    assert tallies["accuracy"][1] == 7
    [line] = (agent.state.path / OWN_METRICS).read_text().splitlines()
    assert json.loads(line)["examples"] == 7
    assert "accuracy" in json.loads(line)
    assert "accuracy" not in caplog.text


def test_a_client_without_test_examples_reports_zeros(server, data, tmp_path):
    (data / "test.csv").unlink()
    agent = Agent(server.url, data, tmp_path / "state", wait=0.0)
    agent.enrol(TOKEN)
    path = server.assign(job_of(), kind=wire.KIND_EVALUATION)
    agent.step()
    agent.close()
    assert all(not tally.any() for tally in decode_tallies(server.reports[path]).values())


@pytest.mark.parametrize("kind", [wire.KIND_TRAINING, wire.KIND_EVALUATION])
def test_late_reports_are_said_to_be_late(server, agent, kind):
    server.verdict = "VERDICT_LATE"
    server.assign(job_of(), kind=kind)
    agent.step()
    assert [each.outcome for each in agent.state.reports()] == ["late"]
    assert agent.state.pending() is None


@pytest.mark.parametrize(
    ("outcome", "kept"), [(wire.OUTCOME_INCLUDED, True), (wire.OUTCOME_NOT_INCLUDED, False), (wire.OUTCOME_OPEN, None)]
)
def test_rows_become_current_only_when_the_report_was_included(server, agent, outcome, kept):
    job = job_of(SCAFFOLD)
    path = server.assign(job)
    agent.step()
    assert agent.state.rows("run-1") == {}
    waiting = list((agent.state.path / "rows").glob("*.next"))
    assert len(waiting) == 1
    server.outcomes[path] = outcome
    agent.step()
    assert bool(agent.state.rows("run-1")) == bool(kept)
    assert len(list((agent.state.path / "rows").glob("*.next"))) == (1 if kept is None else 0)


def test_the_second_round_starts_from_the_current_rows(server, agent):
    job = job_of(SCAFFOLD)
    first = server.assign(job)
    agent.step()
    server.outcomes[first] = wire.OUTCOME_INCLUDED
    second = server.assign(job, round=2)
    agent.step()
    rows = agent.state.rows("run-1")
    assert rows["client_control"].any()
    learner = Learner(job)
    examples = agent._workshop.data.examples(learner.plan.features, job.signature)
    model = ServedModel.from_bytes(first_model(job), learner.layout.size)
    answer = learner.answer(Request("training", 2, 5, 9), model, examples, rows)
    assert server.reports[second] == answer.content


@given(st.integers(0, 10**6), st.integers(1, 50))
@settings(max_examples=10, deadline=None)
def test_answers_do_not_depend_on_the_place_in_the_datasets(number, round_number):
    """The number of a client in the population is its part of every stream, wherever its examples lie."""
    from hansa.data.clients import ClientExamples
    from hansa.data.rows import ClientRows, Names
    from hansa.data.stores import ArrayStore

    x = np.linspace(0, 9, 40, dtype=np.float32).reshape(20, 2)
    store = ArrayStore(x, np.arange(20) % 2)
    many = ClientExamples(Names.dealt(2), store, ClientRows.contiguous(np.array([8, 12])))
    alone = ClientExamples(
        Names.dealt(1), ArrayStore(x[8:], np.arange(8, 20) % 2), ClientRows.contiguous(np.array([12]))
    )
    learner = Learner(job_of())
    model = ServedModel(np.zeros(3, dtype=np.float32), None)
    request = Request("training", round_number, number, number + 1)
    one = learner.answer(request, model, SiteExamples(many, None, 1), {})
    other = learner.answer(request, model, SiteExamples(alone, None, 0), {})
    assert one.content == other.content


def test_an_assignment_that_no_key_of_the_server_signed_is_refused(server, agent):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = server.assign(job_of())
    server.key = Ed25519PrivateKey.generate()
    with pytest.raises(RefusedError) as error:
        agent.step()
    assert error.value.code == "HANSA-SERVER-KEY"
    server.key_id = "unknown"
    with pytest.raises(RefusedError, match="server") as error:
        agent.step()
    assert error.value.code == "HANSA-SERVER-KEY"
    assert path not in server.reports
    assert not any("/v1/" in path for _, path in server.requests)


def endorsed(by, by_id, key, key_id):
    public = key.public_key().public_bytes_raw()
    voucher = by.sign(signatures.server_key(key_id, public))
    return wire.ServerKey(key_id=key_id, public_key=public, endorsed_by=by_id, endorsement=voucher)


def test_an_agent_goes_on_where_an_assignment_comes_before_the_key_that_signed_it(server, agent):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    second = Ed25519PrivateKey.generate()
    key = endorsed(server.key, "first", second, "second")
    server.key, server.key_id = second, "second"
    path, stop = server.assign(job_of()), threading.Event()
    working = threading.Thread(target=agent.run, args=(stop,))
    working.start()
    server.wait_for(lambda: server.check_ins)
    server.keys = [*server.keys, key]
    server.wait_for(lambda: path in server.reports)
    stop.set()
    working.join()


def test_a_key_that_a_known_key_vouches_for_is_believed(server, agent):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    second, third = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    server.keys = [endorsed(second, "second", third, "third"), endorsed(server.key, "first", second, "second")]
    server.key, server.key_id = third, "third"
    path = server.assign(job_of())
    agent.step()
    assert path in server.reports
    assert set(agent.state.identity().server_keys) == {"first", "second", "third"}


def test_a_key_that_nobody_vouches_for_is_not_believed(server):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = server.key.public_key().public_bytes_raw()
    other = Ed25519PrivateKey.generate()
    stranger = wire.ServerKey(
        key_id="x",
        public_key=other.public_key().public_bytes_raw(),
        endorsed_by="first",
        endorsement=other.sign(signatures.server_key("x", other.public_key().public_bytes_raw())),
    )
    replaced = wire.ServerKey(key_id="first", public_key=other.public_key().public_bytes_raw())
    assert with_new_keys({"first": public}, [stranger, replaced]) == {"first": public}


def test_of_many_keys_each_is_looked_at_once(monkeypatch):
    from hansa.client import trust

    looked = []
    monkeypatch.setattr(trust, "_is_endorsed", lambda _, key: looked.append(key) or bool(key.endorsement))
    chain = [
        wire.ServerKey(key_id=f"{place + 1}", endorsed_by=f"{place}", public_key=b"k", endorsement=b"good")
        for place in range(100)
    ]
    bad = [wire.ServerKey(key_id=f"bad {place}", endorsed_by=f"{place}", public_key=b"k") for place in range(100)]
    assert len(with_new_keys({"0": b"k"}, [*bad, *reversed(chain)])) == 101
    assert len(looked) == 200


@pytest.mark.parametrize("changed", [{"client": "client-2"}, {"number": 6}])
def test_an_assignment_of_another_client_is_refused(server, agent, changed):
    server.assign(job_of(), **changed)
    with pytest.raises(RefusedError, match="for another client"):
        agent.step()
    assert server.reports == {}


def test_a_passed_deadline_is_not_worked_for(server, agent):
    server.assign(job_of(), deadline_ms=1000)
    assert agent.step() > 0
    assert server.reports == {}


@pytest.mark.parametrize("which", ["job", "model"])
def test_other_bytes_than_were_named_are_refused(server, agent, which):
    job = job_of()
    path = server.assign(job)
    name = digest(job.to_bytes()) if which == "job" else digest(first_model(job))
    server.blobs[name] = bytes(reversed(server.blobs[name]))
    agent.step()
    assert declined(agent)["code"] == "HANSA-UPLOAD-DIGEST"
    agent.step()
    assert server.declined == [path]
    assert not any(path.stat().st_size for path in (agent.state.path / "models").iterdir())


def declined(agent) -> dict:
    return json.loads((agent.state.path / "declined.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (job_of(plan_sha256="0" * 64), "HANSA-REQUEST-INVALID"),
        (job_of({**PLAN, "secure_aggregation": {"maximum_cohort": 5, "max_weight": 9}}), "HANSA-REQUEST-INVALID"),
        (job_of(signature=replace(job_of().signature, shape=(3,))), "HANSA-DATA-INVALID"),
        (job_of({**job_of().plan, "features": {**job_of().plan["features"], "label": "age2"}}), "HANSA-PLAN-INVALID"),
        (replace(job_of(), plan={**job_of().plan, "model": {"factory": "os:system"}}), "HANSA-CODE-FORBIDDEN"),
        (replace(job_of(), plan={**job_of().plan, "data": {"source": "os:system"}}), "HANSA-CODE-FORBIDDEN"),
    ],
)
def test_what_does_not_fit_is_declined_and_the_reason_stays_here(server, agent, job, code):
    path = server.assign(job, first_model(job_of()))
    agent.step()
    assert declined(agent)["code"] == code
    agent.step()
    assert server.declined == [path]
    assert server.reports == {}


def test_an_answered_assignment_is_never_answered_again(server, agent):
    path = server.assign(job_of())
    agent.step()
    content = server.reports.pop(path)  # a server that forgot, or wants a second answer
    assert agent.step() > 0
    assert path not in server.reports
    assert content


def test_consent_is_told_at_every_check_in(server, agent):
    agent.consent = False
    agent.step()
    assert server.check_ins[-1].consent is False


def test_rehearsing_sends_nothing(server, agent):
    path = server.assign(job_of())
    told = agent.rehearse()
    assert told["assignment"] == path
    assert told["would_send_tensors"] == {"lanes": "I64 [4]", "values": "F32 [3]"}
    assert told["would_send_lanes"][:2] == ["count", "non_finite"]
    assert not any(method == "PUT" for method, _ in server.requests)
    assert agent.state.pending() is None
    assert [each.looks for each in server.check_ins] == [True]


def test_rehearsing_says_that_the_client_would_rest(server, agent, monkeypatch):
    monkeypatch.setattr("hansa.client.limits.obstacles", lambda *_: ["it is not the hour"])
    assert agent.rehearse() == {"assignment": None, "rests_because": ["it is not the hour"]}
    server.assign(job_of())
    assert agent.rehearse()["rests_because"] == ["it is not the hour"]


def test_rehearsing_tells_of_a_secure_sum_what_is_masked(server, agent):
    server.assign(job_of({**PLAN, "secure_aggregation": {"maximum_cohort": 4, "max_weight": 300.0}}))
    told = agent.rehearse()
    assert "would_send_tensors" not in told
    assert all("integers of" in each for each in told["would_send_masked"].values())


def test_who_withdraws_consent_sends_nothing_of_before_and_learns_that_the_server_knows(
    server, agent, caplog, monkeypatch
):
    server.cut_uploads = ["before"] * 4
    path = server.assign(job_of())
    with pytest.raises(RefusedError):
        agent.step()
    assert agent.state.pending() is not None
    agent.consent = False
    monkeypatch.setattr("hansa.client.limits.obstacles", lambda *_: ["it is not the hour"])
    server.assignments.clear()
    server.outcomes[path] = wire.OUTCOME_NOT_INCLUDED
    with caplog.at_level("INFO", logger="hansa.client"):
        agent.step()
        agent.step()
    assert not server.check_ins[-1].consent
    assert server.reports == {}
    assert agent.state.pending() is None
    assert [each.outcome for each in agent.state.reports()] == ["not-included"]
    assert sum("the server knows" in line for line in caplog.messages) == 1
