"""The task of a round's secure sum: what the plan says of it, for the clients that were picked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hansa.algorithms.ring_plan import RingCode
from hansa.algorithms.rounds import clip_norm_of
from hansa.algorithms.secure_sums import round_code
from hansa.core.errors import RefusedError
from hansa.core.secure_aggregation import SecureAggregation
from hansa.evaluation.lanes import tally_layout
from hansa.secagg.convention import Convention, register
from hansa.secagg.encoding import Reader, prefixed
from hansa.secagg.keys import SIGNATURE_BYTES, Signer
from hansa.secagg.messages import FRONT_BYTES, SEALED_SEED_BYTES
from hansa.secagg.planned import task_of
from hansa.secagg.roster import Roster
from hansa.secagg.task import DecryptorKeys
from hansa.server.contexts import RunContext
from hansa.store.records import Kind, Round

MASKED_BYTES: Final = FRONT_BYTES + SIGNATURE_BYTES
"""Bytes of a masked vector's message beside those of the vector, and of sealed seeds."""


@dataclass(frozen=True)
class Prepared:
    """What others give to a task before it begins: decryptors that stand ready, an authority that vouches."""

    keys: tuple[DecryptorKeys, ...] = ()
    """The decryptors' keys for the task."""
    signatures: tuple[bytes, ...] = ()
    """Their signatures over it."""
    registration: bytes = b""
    """The authority's signature over its roster; none where the server is the registrar."""

    def encode(self) -> bytes:
        """Return it as a record."""
        parts = zip(self.keys, self.signatures, strict=True)
        each = (prefixed(each.operator.encode(), each.identity, each.sealing, made) for each, made in parts)
        return prefixed(self.registration) + b"".join(each)

    @classmethod
    def decode(cls, record: bytes) -> Prepared:
        """Return what a record says."""
        reader, keys, signatures = Reader(record), list[DecryptorKeys](), list[bytes]()
        registration = reader.blob()
        while not reader.ended:
            keys.append(DecryptorKeys(operator=reader.text(), identity=reader.blob(), sealing=reader.blob()))
            signatures.append(reader.blob())
        return cls(tuple(keys), tuple(signatures), registration)


def is_prepared(context: RunContext) -> bool:
    """Say whether others than the server and its clients are asked before a sum of a run begins."""
    section = context.plan.secure_aggregation
    return section is not None and (bool(section.decryptors) or section.registrar == "authority")


def not_prepared(context: RunContext) -> str:
    """Return why a sum of a run did not begin: whoever was asked has not answered, or refused."""
    section, reasons = context.plan.secure_aggregation, []
    if section is not None and section.registrar == "authority":
        reasons.append("the authority does not vouch for the roster")
    if section is None or section.decryptors:
        reasons.append("the decryptors do not stand ready")
    return ", or ".join(reasons)


def code_of(context: RunContext, kind: Kind, cohort: int) -> RingCode:
    """Return the integers of a round's sum over so many clients."""
    tallies = tally_layout(context.metrics)
    return round_code(
        context.plan, kind, cohort, updates=context.state.layout, tallies=tallies, clip_norm=clip_norm_of(context.state)
    )


def require_length(context: RunContext, round_: Round, size: int) -> None:
    """Raise RefusedError unless a masked vector of a round's sum has so many bytes."""
    section = context.plan.secure_aggregation
    expected = MASKED_BYTES + code_of(context, round_.id.kind, round_.cohort_size).ring.nbytes
    if section is not None and section.decryptors:
        expected += SEALED_SEED_BYTES * len(section.decryptors)
    if size != expected:
        raise RefusedError(
            "HANSA-RING-INVALID",
            rule=f"A masked vector of this sum has {expected} bytes.",
            found=f"This one has {size}.",
            action="Pack it as docs/reference/secure-sum-protocol.md says.",
        )


def convention_of(
    context: RunContext, round_: Round, *, identities: Sequence[bytes], signer: Signer, prepared: Prepared
) -> Convention:
    """Return what a sum is held with. ``identities`` are the public keys of its clients, in their order."""
    section = context.plan.secure_aggregation
    if section is None:
        raise LookupError("a plan without [secure_aggregation] has no secure sum")
    roster, code = Roster(tuple(identities)), code_of(context, round_.id.kind, round_.cohort_size)
    task = task_of(
        _with_minimum(section, context.plan.schedule, round_),
        code.ring,
        roster,
        run=f"{round_.id.run}/{round_.id.kind}",
        round_number=round_.id.round,
        attempt=round_.id.attempt,
        plan_sha256=context.job.plan_sha256,
        model_sha256=round_.model,
        first_phase=math.inf if round_.deadline is None else round_.deadline - round_.opened_at,
        decryptors=prepared.keys,
    )
    return Convention(
        task=task,
        roster=roster,
        signer=signer,
        registration=prepared.registration if section.registrar == "authority" else register(signer, roster),
        decryptors=prepared.signatures,
        authority=b"" if section.authority is None else section.authority.identity,
    )


def _with_minimum(section: SecureAggregation, schedule: Any, round_: Round) -> SecureAggregation:
    """Return a section whose sums are not shown of fewer clients than a round of training needs.

    A cohort in several groups has a sum for each, and no minimum of its own.
    """
    needed = getattr(schedule, "needed_reports", None)
    if needed is None or round_.id.kind != "training" or section.groups(round_.cohort_size) > 1:
        return section
    survivors = max(needed, section.minimum_survivors)
    cohort = max(survivors, section.minimum_cohort)
    return replace(section, minimum_survivors=survivors, minimum_cohort=cohort, group_size=None)
