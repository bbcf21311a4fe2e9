"""What a site demands of a sum with decryptors, whatever plan and server say."""

from __future__ import annotations

import base64
from contextlib import closing
from dataclasses import replace

import pytest

from hansa.client.policy import SecureSums, TrustedDecryptor
from hansa.client.records import Id
from hansa.client.state import StateFolder
from hansa.client.sum_folder import Begun, SumFolder
from hansa.client.sum_part import SumPart
from hansa.core.errors import RefusedError
from hansa.core.schema import Unsound
from hansa.secagg.messages import header_of
from hansa.secagg.oneshot_messages import Report
from hansa.testing.secagg import OneShotFederation, public


def text(key):
    return base64.b64encode(key).decode()


@pytest.fixture
def site(tmp_path):
    """A client's folder and key, and a sum that it is asked to take part in."""
    one = OneShotFederation(4, settings={"run": "run-1/training"})
    named = one.task.decryptors
    begun = Begun(
        id=Id("run-1", "training", one.task.round, one.task.attempt),
        announcement=bytes(one.start().send[0].message),
        server_key=public(one.server_key),
        plan_sha256=one.task.plan_sha256.hex(),
        model_sha256=one.task.model_sha256.hex(),
        ring=tuple((each.name, each.length, each.bits) for each in one.ring.segments),
        section={
            "protocol": "oneshot-seeds",
            "decryptors": [
                {"name": each.operator, "operator": each.operator, "url": "https://x", "key": text(each.identity)}
                for each in named
            ],
        },
    )
    with closing(StateFolder(tmp_path / "state")) as state:
        folder = SumFolder(state)
        folder.begin(begun, one.ring.pack(one.vectors[0]))
        yield one, begun, folder


def trusted(one, **changes):
    keys = {each.operator: text(each.identity) for each in one.task.decryptors} | changes
    return SecureSums(decryptors=tuple(TrustedDecryptor(operator=name, key=key) for name, key in keys.items() if key))


def test_a_site_that_trusts_the_plans_decryptors_reports_and_gives_the_same_bytes_after_a_restart(site):
    one, begun, folder = site
    part = SumPart.resume(folder, begun, trusted(one), one.identities[0])
    assert part.gives_vector
    assert header_of(part.reply).kind == Report.kind
    assert SumPart.resume(folder, begun, trusted(one), one.identities[0]).reply == part.reply


@pytest.mark.parametrize("key", ["", text(bytes(range(32)))], ids=["unknown", "another-key"])
def test_a_decryptor_that_the_site_does_not_know_by_that_key_is_refused(site, key):
    one, begun, folder = site
    with pytest.raises(RefusedError, match="not among those that the policy names"):
        SumPart.resume(folder, begun, trusted(one, **{"operator 1": key}), one.identities[0])
    assert folder.records() == []


def test_decryptors_that_are_trusted_but_not_the_plans_are_refused(site):
    one, begun, folder = site
    key = text(bytes(range(32)))
    others = [{**each, "key": key} if each["name"] == "operator 1" else each for each in begun.section["decryptors"]]
    begun = replace(begun, section={**begun.section, "decryptors": others})
    with pytest.raises(RefusedError, match="announced another"):
        SumPart.resume(folder, begun, trusted(one), one.identities[0])
    assert folder.records() == []


def test_a_policy_that_names_an_operator_twice_or_no_key_is_told():
    twice = TrustedDecryptor(operator="north", key=text(bytes(32)))
    with pytest.raises(Unsound, match="names an operator twice"):
        SecureSums(decryptors=(twice, replace(twice, key=text(bytes(range(32))))))
    with pytest.raises(Unsound, match="no key as `hansa decryptor key` prints it"):
        TrustedDecryptor(operator="north", key="short")
