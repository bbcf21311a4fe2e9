"""Whether a server lives, is ready, and what it counts."""

from __future__ import annotations

import re

import pytest


def test_a_living_server_says_so_without_a_token(world):
    assert world.call("GET", "/healthz", by=None, base="").json() == {"status": "alive"}
    assert world.call("GET", "/readyz", by=None, base="").json()["status"] == "ready"


def test_a_server_whose_store_is_away_lives_and_is_not_ready(world, monkeypatch):
    from hansa.core.errors import StoreError

    def gone():
        raise StoreError("HANSA-SERVER-BUSY", rule="a", found="/private/path", action="c")

    monkeypatch.setattr(world.services.store, "reading", gone)
    assert world.call("GET", "/healthz", by=None, base="").status_code == 200
    answer = world.call("GET", "/readyz", by=None, base="")
    assert (answer.status_code, answer.json()) == (503, {"status": "not ready", "why": "HANSA-SERVER-BUSY"})


@pytest.mark.parametrize("token", [None, "x" * 30])
def test_metrics_need_a_token(world, token):
    assert world.call("GET", "/metrics", by=token, base="").status_code == 401


def test_a_role_that_may_not_read_usage_reads_no_metrics(world):
    assert world.call("GET", "/metrics", by="site-administrator", base="").status_code == 403


def test_metrics_count_without_naming_clients_or_tenants(make_world):
    world = make_world(metrics_token="scrape" * 6)
    world.ok("POST", "/populations", json={"name": "hospitals"})
    client = world.ok("POST", "/populations/hospitals/invitations", json={"name": "cleveland"})["client"]
    answer = world.call("GET", "/metrics", by="scrape" * 6, base="")
    assert answer.status_code == 200
    assert 'hansa_clients{state="invited"} 1.0' in answer.text
    assert 'hansa_runs{state="running"} 0.0' in answer.text
    assert "process_resident_memory_bytes" in answer.text
    for private in (client, "cleveland", "hospitals", "own", *world.tenants.values()):
        assert not re.search(rf'"{private}"', answer.text)


def test_metrics_by_an_operators_token_count_its_tenant_only(world):
    for by in ("owner", "other"):
        world.ok("POST", "/populations", by=by, json={"name": "wards"})
    for name in ("a", "b"):
        world.ok("POST", "/populations/wards/invitations", by="other", json={"name": name})
    told = {by: world.call("GET", "/metrics", by=by, base="").text for by in ("owner", "other")}
    assert 'hansa_clients{state="invited"} 0.0' in told["owner"]
    assert 'hansa_clients{state="invited"} 2.0' in told["other"]
    for text in told.values():
        assert {line.partition("{")[0] for line in text.splitlines() if line[0] != "#"} == {
            "hansa_clients",
            "hansa_runs",
        }
