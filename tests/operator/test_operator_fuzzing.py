"""The operator API against its own OpenAPI document: whatever is sent is answered as it says, and never by a bug."""

from __future__ import annotations

from types import SimpleNamespace

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from operating import MODEL, MODEL_SHA256, job
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from hansa.cli.local_federation import LocalFederation
from hansa.server.operator_api import PREFIX, build

DOCUMENT = schemathesis.openapi.from_dict(build(SimpleNamespace()).openapi())
OPERATIONS = {found.ok().label: found.ok() for found in DOCUMENT.get_all_operations()}


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    options = {"tls": "off", "largest_request_bytes": 65536}
    with LocalFederation(tmp_path_factory.mktemp("federation"), options) as started:
        started.start_server()
        started.ids = _filled(started)
        yield started


def _filled(federation):
    """Put something of every kind onto the server; return path parameters that name it."""
    headers = {"Authorization": f"Bearer {federation.token_file.read_text().strip()}"}
    with httpx.Client(base_url=federation.url + PREFIX, headers=headers) as calls:

        def post(path, body):
            return calls.post(path, json=body).raise_for_status().json()

        post("/populations", {"name": "hospitals", "attributes": {"region": "string"}})
        client = post("/populations/hospitals/invitations", {"name": "one"})["client"]
        calls.put(f"/models/{MODEL_SHA256}", content=MODEL).raise_for_status()
        taken = post("/jobs", job())
        budget = {"epsilon": 4.0, "delta": 1e-5, "unit": "client", "adjacency": "zero-out"}
        calls.put("/ledger/hospitals", json={**budget, "populations": ["hospitals"]}).raise_for_status()
        token = post("/tokens", {"name": "another", "role": "auditor"})["id"]
    ids = {
        "population": "hospitals",
        "scope": "hospitals",
        "client": client,
        "run": taken["run"]["id"],
        "job": taken["job"]["id"],
    }
    return {**ids, "token_id": token, "sha256": MODEL_SHA256}


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_whatever_is_sent_is_answered_as_the_document_says(label, mode, federation):
    """But that what fits the document is accepted: a plan or model has rules that no JSON schema says."""
    headers = {"Authorization": f"Bearer {federation.token_file.read_text().strip()}"}

    @settings(
        max_examples=15,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    def send(case):
        url = federation.url + PREFIX
        if mode is GenerationMode.POSITIVE:
            ids = {name: value for name, value in federation.ids.items() if name in (case.path_parameters or {})}
            case.path_parameters.update(ids)
        case.call_and_validate(base_url=url, headers=headers, excluded_checks=[positive_data_acceptance])

    send()
