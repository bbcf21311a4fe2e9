"""Refusals of the machines. No sentence says anything about one client: what is refused is told, never whose."""

from __future__ import annotations

from hansa.core.errors import RefusedError


def malformed(found: str) -> RefusedError:
    """Return the refusal of bytes that are no message of this version."""
    return RefusedError(
        "HANSA-SECAGG-MESSAGE",
        rule="A message of a secure sum has exactly the form of its kind and version.",
        found=found,
        action="Write it as docs/reference/secure-sum-protocol.md says; the sender counts as not having answered.",
    )


def unexpected(found: str) -> RefusedError:
    """Return the refusal of a message for another task, role, client or phase."""
    return RefusedError(
        "HANSA-SECAGG-UNEXPECTED",
        rule="A machine of a secure sum takes messages of its own task, role and phase.",
        found=found,
        action="Nothing was changed; send what this phase asks for.",
    )


def answered(found: str) -> RefusedError:
    """Return the refusal of a second, different message for something that was answered."""
    return RefusedError(
        "HANSA-SECAGG-ANSWERED",
        rule="Each phase of a secure sum is answered once; a repeat gets the same bytes again.",
        found=found,
        action="Report it: somebody asks for two different answers, which could uncover one client.",
    )


def untrusted(found: str) -> RefusedError:
    """Return the refusal of what fails a check of keys, signatures, sets or floors."""
    return RefusedError(
        "HANSA-SECAGG-REFUSED",
        rule="A client takes part in a secure sum only while every check of keys, sets and floors holds.",
        found=found,
        action="Nothing was given away. Look at the federation's keys, or at the floors of the site's policy.",
    )


def unsound(found: str) -> RefusedError:
    """Return the refusal of a task whose parameters do not protect."""
    return RefusedError(
        "HANSA-SECAGG-TASK",
        rule="The task of a secure sum has parameters that protect and that can be met.",
        found=found,
        action="Change the plan's secure aggregation, its cohort or its decryptors.",
    )
