"""``hansa ledger``, against a real server."""

from __future__ import annotations

import asyncio
import json
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest
from tests.governance.spending import Clock, key_of, origin_of, outcome_of, release_of

from hansa.cli.local_federation import LocalFederation
from hansa.core.ledger import Refusal
from hansa.governance.ledger import StoreLedger
from hansa.store.store import Store

NEW = ("--epsilon", 4, "--delta", "1e-5", "--unit", "client", "--adjacency", "zero-out")


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with LocalFederation(tmp_path_factory.mktemp("federation")) as started:
        started.start_server()
        yield started


@pytest.fixture
def operate(federation, hansa, monkeypatch):
    """Run a command as the owner; return its JSON."""
    monkeypatch.setenv("HANSA_SERVER", federation.url)
    monkeypatch.setenv("HANSA_CA", str(federation.ca))
    monkeypatch.setenv("HANSA_TOKEN", federation.token_file.read_text())

    def run(*words, status=0):
        found = hansa(*words, "--json")
        assert found.status == status, found.err
        run.said = found.said
        return found.json

    return run


def spend(federation, population):
    """Spend what a coordinator would, from another process's view of the server's database."""

    async def whole():
        (path,) = federation.folder.rglob("*.sqlite")
        store = await Store.open(f"sqlite+aiosqlite:///{path}", migrate=False)
        async with store.reading() as rows:
            tenant = (await rows.tenants.all())[0]
            found = await rows.populations.named(tenant.id, population)
        seed = SimpleNamespace(
            tenant=tenant,
            population=found,
            run=SimpleNamespace(id=f"run-{population}"),
            job=SimpleNamespace(id="job-1"),
        )
        ledger = StoreLedger(store, tenant.id, Clock())
        for number in (1, 2, 3):
            told = await ledger.reserve(key_of(seed, number), release_of(3.0), origin_of(seed))
            assert not isinstance(told, Refusal)
        await ledger.commit(key_of(seed, 1), outcome_of())
        await ledger.void(key_of(seed, 3), "nobody came")
        await store.close()

    asyncio.run(whole())


def test_a_budget_is_set_spent_shown_exported_and_verified(federation, operate, tmp_path):
    operate("populations", "create", "wards")
    made = operate("ledger", "limit", "wards", *NEW)
    assert (made["epsilon_limit"], made["populations"], made["remaining"]) == (4.0, ["wards"], 4.0)
    spend(federation, "wards")
    (shown,) = operate("ledger", "show")["scopes"]
    assert 0 < shown["epsilon_committed"] < shown["epsilon_charged"] < 4.0
    assert shown["epsilon_reference"] < shown["epsilon_charged"]
    assert "reference epsilon is for comparison, no guarantee" in operate.said
    found = operate("ledger", "show", "wards", "--picture", "spent.svg")
    assert [each["state"] for each in found["spent"]] == ["committed", "reserved", "void"]
    assert found["runs"][0]["states"] == {"committed": 1, "reserved": 1, "void": 1}
    picture = (tmp_path / "spent.svg").read_text()
    assert ET.fromstring(picture).tag.endswith("svg")  # noqa: S314 - Hansa wrote it
    assert all(text in picture for text in ("Privacy budget of wards", "run-wards by itself", "limit", "70%"))

    head = operate("ledger", "export", "--out", "kept.jsonl")["heads"]["wards"]
    assert head == shown["head"]
    (verified,) = operate("ledger", "verify")["verified"]
    assert verified == {"scope": "wards", "rows": 6, "head": head, "epsilon_charged": shown["epsilon_charged"]}
    assert operate("ledger", "verify", "--file", "kept.jsonl")["verified"] == [verified]
    raised = operate("ledger", "limit", "wards", "--epsilon", 5)
    assert raised["rows"] == 7
    assert operate("ledger", "verify", "wards", "--known", head)["verified"][0]["rows"] == 7

    lines = (tmp_path / "kept.jsonl").read_text().splitlines()
    row = json.loads(lines[3])
    row["row"]["release"]["clip_norm"] = 0.1
    (tmp_path / "changed.jsonl").write_text("\n".join([*lines[:3], json.dumps(row), *lines[4:]]))
    assert operate("ledger", "verify", "--file", "changed.jsonl", status=4)["error"]["code"] == "HANSA-LEDGER-CHANGED"
    assert "Row 3: its content has another hash" in operate.said
    operate("ledger", "verify", "wards", "--known", "0" * 64, status=4)


def test_what_is_refused_is_a_sentence(operate, tmp_path):
    operate("populations", "create", "clinics")
    assert operate("ledger", "limit", "clinics", "--epsilon", 3, status=2)["error"]["code"] == "HANSA-BUDGET-SCOPE"
    assert "the privacy unit is missing" in operate.said
    operate("ledger", "limit", "nowhere", *NEW, status=2)
    operate("ledger", "limit", "clinics", *NEW)
    operate("ledger", "limit", "clinics", "--epsilon", 3, "--adjacency", "replace-one", status=2)
    assert "one adjacency for ever: zero-out" in operate.said
    operate("ledger", "limit", "other", *NEW, "--population", "clinics", status=2)
    assert "second budget" in operate.said
    operate("ledger", "show", "nowhere", status=2)
    operate("ledger", "show", "--picture", "spent.svg", status=2)
    operate("ledger", "show", "clinics", "--picture", "spent.png", status=2)
    operate("ledger", "verify", "--file", "nowhere.jsonl", status=3)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    operate("ledger", "verify", "--file", "bytes.jsonl", status=3)


def test_auditors_read_and_only_owners_set(operate, monkeypatch):
    operate("populations", "create", "homes")
    operate("ledger", "limit", "homes", *NEW)
    for role, reads in (("auditor", True), ("operator", True), ("analyst", False)):
        operate("tokens", "create", role, "--role", role, "--out", f"{role}.token")
        words = ("--token-file", f"{role}.token")
        operate("ledger", "show", *words, status=0 if reads else 3)
        operate("ledger", "limit", "homes", "--epsilon", 9, *words, status=3)
        assert "ledger.limit" in operate.said or not reads
    assert operate("ledger", "show", "homes")["epsilon_limit"] == 4.0
