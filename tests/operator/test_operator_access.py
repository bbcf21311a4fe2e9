"""Who may call what: every operation of the OpenAPI document, tried without a token, with a stranger's and others."""

from __future__ import annotations

import asyncio

import pytest
from operating import MODEL, job
from tests.server.test_every_route import leaves

from hansa.server.operator_access import OPEN
from hansa.server.operator_api import build
from hansa.server.tokens import ROLES, new_secret

BUDGET = {"epsilon": 4.0, "delta": 1e-5, "unit": "client", "adjacency": "zero-out", "populations": ["hospitals"]}
BODIES = {
    "createToken": {"name": "x", "role": "auditor"},
    "createPopulation": {"name": "fresh"},
    "changePopulation": {},
    "invite": {},
    "submitJob": job(),
    "prioritiseRun": {"priority": 1},
    "stageModel": {"stage": "canary"},
    "setLimit": BUDGET,
}


def operations(world):
    """Return (method, path, operation) of everything that the document names."""
    document = build(world.services).openapi()
    return [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


@pytest.fixture
def full(released):
    """A world with something of every kind in the own tenant."""
    released.own_token = released.ok("POST", "/tokens", json={"name": "another", "role": "auditor"})["id"]
    released.ok("PUT", "/ledger/hospitals", json=BUDGET)
    return released


def call(world, method, path, operation, token):
    """Call an operation on what the own tenant has."""
    names = {"run": world.run_id, "job": world.taken["job"]["id"], "client": world.clients[0],
             "sha256": world.release, "population": "hospitals", "token_id": world.own_token, "scope": "hospitals",
             "kind": "training", "number": "1", "attempt": "1"}  # fmt: skip
    for name, value in names.items():
        path = path.replace("{" + name + "}", value)
    name = operation["operationId"]
    body = {"json": BODIES.get(name, {"why": "a test"})} if "requestBody" in operation else {}
    return world.call(method, path, by=token, **({"content": MODEL} if name == "uploadModel" else body))


def test_the_document_names_every_route_of_the_application(full):
    routes = {(method, path) for method, path in leaves(build(full.services).routes) if path not in OPEN}
    documented = {(method, path) for method, path, _ in operations(full)}
    assert routes == documented
    assert len(documented) > 30


@pytest.mark.parametrize(
    ("name", "code"),
    [("none", "HANSA-AUTH-MISSING"), ("malformed", "HANSA-AUTH-MISSING"), ("stranger", "HANSA-AUTH-UNKNOWN"),
     ("expired", "HANSA-AUTH-UNKNOWN"), ("revoked", "HANSA-AUTH-UNKNOWN")],
)  # fmt: skip
def test_no_operation_is_done_without_a_good_token(full, name, code):
    token = {"none": None, "malformed": "a b", "stranger": new_secret("token")}.get(name, "owner")
    if name == "expired":
        full.clock.ahead = 3601
    if name == "revoked":
        made = full.ok("POST", "/tokens", json={"name": "gone", "role": "owner"})
        full.ok("DELETE", f"/tokens/{made['id']}")
        token = made["token"]
    for method, path, operation in operations(full):
        answer = call(full, method, path, operation, token)
        assert answer.status_code == 401, (method, path, answer.text)
        assert answer.json()["error"]["code"] == code
        assert answer.headers["www-authenticate"] == "Bearer"


def test_what_is_another_tenants_is_not_there(full):
    for method, path, operation in operations(full):
        if "{" not in path or operation["operationId"] == "uploadModel":
            continue
        answer = call(full, method, path, operation, "other")
        assert answer.status_code == 404, (method, path, answer.text)
        assert answer.json()["error"]["code"] == "HANSA-NOT-FOUND"


def test_lists_hold_what_is_the_callers_tenants_only(full):
    for method, path, operation in operations(full):
        if method != "GET" or "{" in path or operation["operationId"] == "whoAmI":
            continue
        found = full.ok("GET", path, by="other")
        lists = [value for value in found.values() if isinstance(value, list)]
        assert all(len(each) <= (1 if path == "/tokens" else 0) for each in lists), (path, found)
        assert full.run_id not in str(found)
    assert full.call("POST", "/jobs", by="other", json=job()).status_code == 404
    assert full.call("GET", f"/models?run={full.run_id}", by="other").status_code == 404


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_do_what_its_table_says_and_nothing_else(full, role):
    needed = {
        "whoAmI": None, "listTokens": "tokens.manage", "createToken": "tokens.manage", "revokeToken": "tokens.manage",
        "listEvents": "events.read", "getUsage": "usage.read", "listPopulations": "populations.read",
        "createPopulation": "populations.change", "getPopulation": "populations.read",
        "changePopulation": "populations.change", "invite": "clients.change", "listClients": "clients.read",
        "countClients": "clients.read", "getClient": "clients.read", "suspendClient": "clients.change",
        "resumeClient": "clients.change", "retireClient": "clients.change", "submitJob": "jobs.submit",
        "listJobs": "jobs.read", "getJob": "jobs.read", "listRuns": "runs.read", "getRun": "runs.read",
        "pauseRun": "runs.control", "resumeRun": "runs.control", "cancelRun": "runs.control",
        "prioritiseRun": "runs.control", "listRounds": "runs.read", "listCohort": "clients.read",
        "listRunEvents": "runs.read", "listModels": "models.read", "uploadModel": "jobs.submit",
        "downloadModel": "models.download", "listScopes": "ledger.read", "getScope": "ledger.read",
        "setLimit": "ledger.limit", "listLedgerRows": "ledger.read", "stageModel": "models.stage",
    }  # fmt: skip
    found = operations(full)
    assert {operation["operationId"] for _, _, operation in found} == set(needed)
    for method, path, operation in found:
        permission = needed[operation["operationId"]]
        answer = call(full, method, path, operation, role)
        refused = answer.status_code == 403 and answer.json()["error"]["code"] == "HANSA-AUTH-ROLE"
        assert refused == (permission is not None and permission not in ROLES[role]), (role, method, path, answer.text)


def test_a_token_is_looked_at_before_a_body_is_read(world):
    answer = world.call("POST", "/jobs", by=None, content=b"{" * 100)
    assert answer.status_code == 401


def test_a_body_that_is_too_large_is_refused_announced_or_not(make_world):
    world = make_world(largest_request_bytes=4096)
    content = b'{"name": "' + b"x" * 5000 + b'"}'

    async def parts():
        yield content

    for method, path, body in (
        ("POST", "/populations", content),
        ("POST", "/populations", parts()),
        ("PUT", f"/models/{'0' * 64}/stage", content),
        ("PUT", f"/models/{'0' * 64}/stage", parts()),
    ):
        answer = world.call(method, path, content=body, headers={"Content-Type": "application/json"})
        assert answer.json()["error"]["code"] == "HANSA-REQUEST-TOO-LARGE"
        assert answer.status_code == 413


@pytest.mark.parametrize(("method", "path"), [("POST", "/populations"), ("PUT", f"/models/{'0' * 64}")])
@pytest.mark.parametrize("limit", ["_IDLE", "_STALL"])
def test_a_body_that_comes_too_slowly_ends(world, monkeypatch, method, path, limit):
    monkeypatch.setattr(f"hansa.serving.bodies.{limit}", 0.1)

    async def parts():
        yield b'{"name": "'
        await asyncio.sleep(5.0)

    headers = {"Content-Type": "application/json", "Content-Length": "1000"}
    answer = world.call(method, path, content=parts(), headers=headers)
    assert answer.json()["error"]["code"] == "HANSA-REQUEST-SLOW"


def test_malformed_requests_name_what_is_wrong_and_not_its_value(world):
    answer = world.call("POST", "/tokens", json={"name": "x", "role": "s3cret-role", "dayz": 3})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "HANSA-REQUEST-INVALID")
    assert {problem["path"] for problem in error["problems"]} == {"body.role", "body.dayz"}
    assert "s3cret-role" not in answer.text


def test_an_unforeseen_error_tells_nothing_of_the_inside(world, monkeypatch, capsys):
    async def broken(*_):
        raise ValueError("the inside")

    monkeypatch.setattr("hansa.server.usage.of_tenant", broken)
    answer = world.call("GET", "/usage")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "HANSA-INTERNAL")
    assert "inside" not in answer.text


def test_nobody_is_told_secrets_again(full):
    tokens = full.ok("GET", "/tokens")["tokens"]
    assert {"id", "name", "role", "expires_at", "revoked_at"} == set(tokens[0])
    assert not any(secret in str(tokens) for secret in full.tokens.values())
    assert "hansa_" not in str(full.ok("GET", "/events"))


def test_a_token_does_not_revoke_itself(world):
    own = next(each for each in world.ok("GET", "/tokens")["tokens"] if each["role"] == "owner")
    assert world.call("DELETE", f"/tokens/{own['id']}").status_code == 409
