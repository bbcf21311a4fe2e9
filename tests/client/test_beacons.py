"""What a site demands of a sum whose graph an authority draws, whatever plan and server say."""

from __future__ import annotations

import base64
from contextlib import closing
from dataclasses import replace

import pytest

from hansa.client.policy import SecureSums
from hansa.client.state import Id, StateFolder
from hansa.client.sum_folder import Begun, SumFolder
from hansa.client.sum_part import SumPart
from hansa.core.errors import RefusedError
from hansa.secagg.messages import Advert, Keys, Shares, header_of
from hansa.testing.secagg import Federation, public

SECTION = {
    "protocol": "secagg-plus", "server": "malicious", "registrar": "authority", "beacon": "authority",
    "expected_dropout": 0.0,
}  # fmt: skip
TASK = {
    "run": "run-1/training", "neighbours": 8, "threshold": 8, "minimum_cohort": 10, "minimum_survivors": 8,
    "registrar": "authority", "beacon": "authority",
}  # fmt: skip


def begun_by(one, **section):
    return Begun(
        id=Id("run-1", "training", one.task.round, one.task.attempt),
        announcement=bytes(one.start().send[0].message),
        server_key=public(one.server_key),
        plan_sha256=one.task.plan_sha256.hex(),
        model_sha256=one.task.model_sha256.hex(),
        ring=tuple((each.name, each.length, each.bits) for each in one.ring.segments),
        section={**SECTION, **section},
    )


def demands(one, **more):
    key = base64.b64encode(public(one.authority_key)).decode()
    return SecureSums(registrar="authority", authority_key=key, **more)


@pytest.fixture
def site(tmp_path):
    """Return what begins a client's part in a sum: its vector is on disk."""
    with closing(StateFolder(tmp_path / "state")) as state:
        folder = SumFolder(state)

        def resumed(one, begun, policy):
            folder.begin(begun, one.ring.pack(one.vectors[0]))
            return SumPart.resume(folder, begun, policy, one.identities[0])

        resumed.folder = folder
        yield resumed


def federation(**changes):
    return Federation(10, protocol="secagg-plus", settings={**TASK, **changes})


def test_a_site_advertises_and_shares_on_the_graph_of_the_beacon_and_refuses_another(site):
    one = federation()
    part = site(one, begun_by(one), demands(one))
    assert header_of(part.reply).kind == Advert.kind
    told = {}
    for to, message in one.start().send:
        answer = part.reply if to == 0 else one.ask(to, message)
        for asked, question in one.deliver(answer).send:
            told |= {each.to: each.message for each in one.deliver(one.ask(asked, question)).send}
    whole = Keys.decode(told[0], one.task.hash)
    with pytest.raises(RefusedError, match="not the one that the authority drew"):
        part.take(replace(whole, beacon=bytes(96)).encode())
    part.take(told[0])
    assert header_of(part.reply).kind == Shares.kind
    again = SumPart.resume(site.folder, begun_by(one), demands(one), one.identities[0])
    assert again.reply == part.reply


@pytest.mark.parametrize(
    ("changes", "section", "match"),
    [
        ({"beacon": ""}, {}, "announced another"),
        ({}, {"server": "curious", "beacon": None}, "announced another"),
        ({"neighbours": 6, "threshold": 6}, {}, "announced another"),
        ({"threshold": 7}, {}, "announced another"),
    ],
)
def test_a_task_without_the_plans_beacon_or_with_a_smaller_graph_is_refused(site, changes, section, match):
    one = federation(**changes)
    with pytest.raises(RefusedError, match=match):
        site(one, begun_by(one, **section), demands(one))
    assert site.folder.records() == []


def test_a_task_that_begins_with_fewer_than_the_plan_gives_is_refused(site):
    """Of 9, a full graph stands four clients that work with the server; of 8 it stands three."""
    settings = {"registrar": "authority", "run": TASK["run"], "minimum_survivors": 8}
    plan = {"minimum_cohort": 7, "minimum_survivors": 7, "assumed_colluding": 4}
    few, enough = (Federation(9, settings={**settings, "minimum_cohort": cohort}) for cohort in (8, 9))
    with pytest.raises(RefusedError, match="announced another"):
        site(few, begun_by(few, **plan), demands(few))
    assert site(enough, begun_by(enough, **plan), demands(enough)).reply


def test_a_plan_without_a_beacon_is_refused_where_the_policy_suspects_the_server(site):
    one = Federation(
        10, protocol="secagg-plus",
        settings={**TASK, "beacon": "", "neighbours": 2, "threshold": 2, "minimum_survivors": 3},
    )  # fmt: skip
    begun = begun_by(one, server="curious", beacon=None)
    with pytest.raises(RefusedError, match="protects against a curious server only"):
        site(one, begun, demands(one))


def test_a_site_that_suspects_more_clients_than_the_plan_refuses_its_graph(site):
    one = federation()
    with pytest.raises(RefusedError, match="from a malicious server with 2 of them"):
        site(one, begun_by(one), demands(one, assumed_colluding=2))
    assert site.folder.records() == []
