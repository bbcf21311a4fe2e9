"""A dry run: what would leave the machine for an assignment. Nothing is reported or declined."""

from __future__ import annotations

import json
from typing import Any

from hansa.client.policy import Asked, Policy, objections
from hansa.client.transport import Transport
from hansa.client.trust import id_of
from hansa.client.work import Workshop
from hansa.core.errors import HansaError
from hansa.wire.generated import federation_pb2 as wire
from hansa.wire.jobs import JobDescriptor


def rehearsed(assigned: wire.Assignment, workshop: Workshop, transport: Transport, policy: Policy) -> dict[str, Any]:
    """Return what an assignment asks, why the site's policy declines it, or what would be sent."""
    assignment, job = id_of(assigned), workshop.job(assigned, transport)
    told: dict[str, Any] = {
        "assignment": str(assignment),
        "job": job.name,
        "plan_sha256": job.plan_sha256,
        "operator": job.operator,
        "purpose": job.purpose,
        "cohort_size": assigned.cohort_size,
        "would_receive_bytes": assigned.model_size,
        "policy_objects": objections(policy, asked(assigned, job)),
    }
    if told["policy_objects"]:
        return told
    try:
        computed = workshop.answer(assigned, assignment, job, workshop.model(assigned, transport))
    except HansaError as error:
        return {**told, "policy_objects": [f"{error} [{error.code}]"]}
    if computed.ring is not None:
        parts = {each.name: f"{each.length} integers of {each.bits} bits" for each in computed.ring.segments}
        return {**told, "would_send_bytes": len(computed.content), "would_send_masked": parts}
    return {**told, **_leaving(computed.content, workshop.lanes(assignment.kind))}


def asked(assigned: wire.Assignment, job: JobDescriptor) -> Asked:
    """Return what an assignment asks, as far as a policy judges it."""
    of, size = id_of(assigned), assigned.cohort_size
    return Asked(of.kind, of.round, job, size, assigned.population, assigned.model_size)


def _leaving(content: bytes, lanes: list[str]) -> dict[str, Any]:
    """Return what an update holds: its bytes, its tensors, and the names of its lanes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    tensors = {name: f"{each['dtype']} {each['shape']}" for name, each in header.items() if name != "__metadata__"}
    return {"would_send_bytes": len(content), "would_send_tensors": tensors, "would_send_lanes": lanes}
