"""A client's part in one secure sum: its machine, whose records are on disk before anything that follows from them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.client.policy import SecureSums
from hansa.client.records import Id
from hansa.client.sum_folder import Begun, SumFolder
from hansa.core.errors import PlanError, RefusedError
from hansa.core.killpoints import reached
from hansa.core.ring import Ring, Segment
from hansa.core.schema import build
from hansa.core.secure_aggregation import SecureAggregation
from hansa.secagg.contribution import Contribution
from hansa.secagg.messages import Announcement, Masked, header_of
from hansa.secagg.oneshot_messages import Report
from hansa.secagg.planned import beacon_of, floors_of, graph_of
from hansa.secagg.policy import ClientPolicy
from hansa.secagg.protocols import Client, restore_client, start_client
from hansa.secagg.step import Step
from hansa.secagg.task import Task, read_task
from hansa.wire.generated import federation_pb2 as wire


@dataclass
class SumPart:
    """One secure sum that this client takes part in. Made by :meth:`resume`, also after :meth:`SumFolder.begin`."""

    id: Id
    machine: Client
    folder: SumFolder
    reply: bytes = b""
    """The last message to the server."""
    seen: int = Announcement.kind
    """The kind of the server's message that it answers."""

    @classmethod
    def resume(cls, folder: SumFolder, begun: Begun, demands: SecureSums, key: Ed25519PrivateKey) -> SumPart:
        """Return the part as its records have it. Raises RefusedError for a task that the site does not accept."""
        ring = Ring(tuple(Segment(*each) for each in begun.ring))
        given = Contribution(
            bytes.fromhex(begun.plan_sha256), bytes.fromhex(begun.model_sha256), ring.unpack(folder.vector())
        )
        section, identity, records = _section(begun), key.public_key().public_bytes_raw(), folder.records()
        policy = _policy(begun, section, demands, key)
        _require_this(_announced(begun), begun, section, ring)
        if records:
            machine, step = restore_client(
                records, signer=key, identity=identity, policy=policy, given=given, spent=folder.spent()
            )
            part = cls(begun.id, machine, folder)
            if len(records) > 1:
                part.seen = header_of(records[-1]).kind
        else:
            machine, step = start_client(
                begun.announcement, signer=key, identity=identity, policy=policy, given=given,
                random=secrets.token_bytes, spent=folder.spent(),
            )  # fmt: skip
            part = cls(begun.id, machine, folder)
        part._keep(step)
        return part

    @property
    def gives_vector(self) -> bool:
        """Return True where the next message is the masked vector, which travels as a report."""
        return bool(self.reply) and header_of(self.reply).kind in (Masked.kind, Report.kind)

    @property
    def done(self) -> bool:
        """Return True where nothing more is asked of this client."""
        return self.machine.done

    def next_request(self, assignment: wire.AssignmentId, wait: float) -> wire.ExchangeRequest:
        """Return the next call: with the last message, or asking what comes next."""
        message = b"" if self.gives_vector else self.reply
        seconds = 0.0 if self.done else wait
        return wire.ExchangeRequest(id=assignment, message=message, seen=self.seen, wait_seconds=seconds)

    def take(self, message: bytes) -> None:
        """Answer a message of the server. Raises RefusedError where a check fails: the client leaves the sum then."""
        step = self.machine.on_message(message)
        self.seen = header_of(message).kind
        self._keep(step)

    def _keep(self, step: Step) -> None:
        if step.persist:
            reached("client.sum-answered")
            self.folder.append([bytes(each) for each in step.persist])
            reached("client.sum-recorded")
        self.reply = step.send[-1].message if step.send else b""


def _section(begun: Begun) -> SecureAggregation:
    section, problems = build(SecureAggregation, begun.section)
    if problems:
        raise PlanError(problems)
    built: SecureAggregation = section
    return built


def _policy(begun: Begun, section: SecureAggregation, demands: SecureSums, key: Ed25519PrivateKey) -> ClientPolicy:
    own = key.public_key().public_bytes_raw()
    return ClientPolicy(
        server_key=begun.server_key,
        registrar=demands.registrar,
        authority_key=demands.authority(),
        pinned=frozenset({own, *demands.keys()}),
        server="malicious" if "malicious" in {section.server, demands.server} else "curious",
        assumed_colluding=max(section.assumed_colluding, demands.assumed_colluding),
        minimum_cohort=max(section.minimum_cohort, demands.minimum_cohort),
        minimum_survivors=max(section.minimum_survivors, demands.minimum_survivors),
        decryptors=demands.decryptor_keys(),
    )


def _announced(begun: Begun) -> Task:
    """Return the task that was announced, whoever signed it."""
    message = Announcement.decode(begun.announcement, header_of(begun.announcement).task)
    return read_task(message.descriptor)


def _require_this(task: Task, begun: Begun, section: SecureAggregation, ring: Ring) -> None:
    """Raise RefusedError unless a task is that of the assignment, as the plan says: protocol, floors, integers."""
    named = (f"{begun.id.run}/{begun.id.kind}", begun.id.round, begun.id.attempt)
    protocol, graph = graph_of(section, task.roster_size)
    same = (task.protocol, task.neighbours, task.threshold) == (protocol, graph.neighbours, graph.threshold)
    same &= task.beacon == beacon_of(section, protocol)
    same &= [(each.operator, each.identity) for each in task.decryptors] == [
        (each.operator, each.identity) for each in section.decryptors
    ]
    floors = floors_of(section, task.roster_size)
    same &= task.minimum_cohort >= floors[0] and task.minimum_survivors >= floors[1]
    if not same or (task.run, task.round, task.attempt) != named or task.ring != ring:
        raise RefusedError(
            "HANSA-SECAGG-REFUSED",
            rule="A secure sum is that of its assignment, in the protocol and the integers of its plan.",
            found="The server has announced another.",
            action="Tell the operator of the server; nothing was sent.",
        )
