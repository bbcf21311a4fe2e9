"""A client keeps count of the rounds of a private run by itself, and answers no more of them than the noise is for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fake_server import PLAN, job_of

from hansa.client.agent import DECLINED
from hansa.client.participations import PARTICIPATIONS
from hansa.client.records import Id
from hansa.wire.generated import federation_pb2 as wire

PRIVATE = {
    **PLAN,
    "rounds": 9,
    "features": {**PLAN["features"], "scaling": "declared"},
    "evaluation": {"federated": False},
    "cohort": {"kind": "min-separation", "size": 4, "rounds": 3, "max_participations": 2},
    "aggregator": {"kind": "fixed-mean", "divisor": 4},
    "privacy": {"clip_norm": 0.5, "delta": 1e-5, "epsilon": 8.0},
}


def asked(server, agent, number, outcome=wire.OUTCOME_INCLUDED, attempt=1, job=None):
    """Ask for a round; return whether the client answered."""
    path = server.assign(job or job_of(PRIVATE), round=number, attempt=attempt)
    agent.step()
    if outcome is not None:
        server.outcomes[path] = outcome
    server.assigned = None
    agent.step()
    return path in server.reports


def test_a_client_takes_part_no_more_often_than_the_plan_allows(server, agent):
    assert asked(server, agent, 1)
    assert asked(server, agent, 4)
    assert not asked(server, agent, 7)
    assert agent.state.read_json(PARTICIPATIONS) == {"run-1": [1, 4]}
    assert "noise is for 2" in (agent.state.path / DECLINED).read_text()


def test_a_client_rests_as_long_as_the_plan_says(server, agent):
    assert asked(server, agent, 1)
    assert not asked(server, agent, 3)
    assert asked(server, agent, 4)


def test_a_round_that_did_not_include_it_does_not_count(server, agent):
    assert asked(server, agent, 1, wire.OUTCOME_NOT_INCLUDED)
    assert agent.state.read_json(PARTICIPATIONS) == {"run-1": []}
    assert asked(server, agent, 2)


def test_a_second_attempt_of_a_round_is_the_same_round(server, agent):
    assert asked(server, agent, 1, wire.OUTCOME_NOT_INCLUDED)
    assert asked(server, agent, 1, attempt=2)
    assert agent.state.read_json(PARTICIPATIONS) == {"run-1": [1]}


@pytest.mark.parametrize("outcome", [None])
def test_a_round_of_which_nobody_tells_counts(server, agent, outcome):
    assert asked(server, agent, 1, outcome)
    assert not asked(server, agent, 2)


def test_plans_without_privacy_are_not_counted(server, agent):
    plain = {key: value for key, value in PRIVATE.items() if key != "privacy"}
    assert asked(server, agent, 1, job=job_of(plain))
    assert asked(server, agent, 2, job=job_of(plain))
    assert agent.state.read_json(PARTICIPATIONS) is None


@pytest.mark.parametrize("sent", [False, True])
def test_leaving_a_sum_takes_a_round_back_only_before_the_vector_was_sent(agent, monkeypatch, sent):
    """Afterwards the others can unmask the sum without the client, and it is in it."""
    of = Id("run-1", "training", 1, 1)
    agent._participations.note(job_of(PRIVATE), of)
    if sent:
        agent.state.acknowledged(agent.state.write_pending(of, b"masked", "0" * 64, {}), "open")
    monkeypatch.setattr(agent._sums, "step", lambda *_: 0.0)
    agent._sums.left = of
    agent._sum(SimpleNamespace(id=of))
    assert agent.state.read_json(PARTICIPATIONS) == {"run-1": [1] if sent else []}
