"""A dry run: what would leave the machine for an assignment. Nothing is reported or declined."""

from __future__ import annotations

import json
from typing import Any

from hansa.client.limits import Limits, require_fits
from hansa.client.policy import Asked, Policy, objections
from hansa.client.transport import Transport
from hansa.client.trust import id_of
from hansa.client.work import Workshop, about
from hansa.core.errors import HansaError
from hansa.wire.generated import federation_pb2 as wire
from hansa.wire.jobs import JobDescriptor


def offered(assigned: wire.Assignment) -> dict[str, Any]:
    """Return what an assignment says of itself."""
    return {
        "assignment": str(id_of(assigned)),
        "plan_sha256": assigned.plan_sha256,
        "cohort_size": assigned.cohort_size,
        "would_receive_bytes": assigned.model_size,
    }


def rehearsed(
    assigned: wire.Assignment, workshop: Workshop, transport: Transport, limits: Limits, policy: Policy
) -> dict[str, Any]:
    """Return why the site's policy declines an assignment, or what would be sent for it."""
    assignment, told = id_of(assigned), dict[str, Any](policy_objects=too_costly(assigned, workshop, limits))
    try:
        job = workshop.job(assigned, transport)
        told |= {"job": job.name, "operator": job.operator, "purpose": job.purpose}
        told["policy_objects"] += objections(policy, asked(assigned, job))
        if told["policy_objects"]:
            return told
        computed = workshop.answer(assigned, assignment, job, workshop.model(assigned, transport))
        require_fits(limits, workshop.state.room, computed, assigned.cohort_size)
    except HansaError as error:
        return {**told, "policy_objects": [*told["policy_objects"], f"{error} [{error.code}]"]}
    if computed.ring is not None:
        parts = {each.name: f"{each.length} integers of {each.bits} bits" for each in computed.ring.segments}
        return {**told, "would_send_bytes": len(computed.content), "would_send_masked": parts}
    return {**told, **_leaving(computed.content, workshop.lanes(assignment.kind))}


def asked(assigned: wire.Assignment, job: JobDescriptor) -> Asked:
    """Return what an assignment asks, as far as a policy judges it."""
    of = id_of(assigned)
    return Asked(of.kind, of.round, job, assigned.cohort_size, assigned.population)


def too_costly(assigned: wire.Assignment, workshop: Workshop, limits: Limits) -> list[str]:
    """Return why what an assignment brings, and about what it asks for, does not fit the policy's bytes and disk."""
    kind = id_of(assigned).kind
    return [
        *limits.objections(workshop.to_fetch(assigned), about(assigned, kind)),
        *workshop.objections(assigned, kind),
    ]


def _leaving(content: bytes, lanes: list[str]) -> dict[str, Any]:
    """Return what an update holds: its bytes, its tensors, and the names of its lanes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    tensors = {name: f"{each['dtype']} {each['shape']}" for name, each in header.items() if name != "__metadata__"}
    return {"would_send_bytes": len(content), "would_send_tensors": tensors, "would_send_lanes": lanes}
