"""The machines of a task's protocol: what carriers start and make anew, whichever protocol a plan names."""

from __future__ import annotations

from collections.abc import Container, Sequence

from hansa.secagg import keys
from hansa.secagg.client import MaskingClient
from hansa.secagg.contribution import Contribution
from hansa.secagg.convention import Convention
from hansa.secagg.encoding import Buffer
from hansa.secagg.messages import Announcement, header_of
from hansa.secagg.oneshot_client import ReportingClient
from hansa.secagg.oneshot_server import SummingServer
from hansa.secagg.policy import ClientPolicy
from hansa.secagg.records import is_message
from hansa.secagg.server import MaskingServer
from hansa.secagg.step import Step
from hansa.secagg.task import read_task

Client = MaskingClient | ReportingClient
Server = MaskingServer | SummingServer


def start_client(  # noqa: PLR0913 - a client is what it is, what it demands and what it gives
    announcement: bytes,
    *,
    signer: keys.Signer,
    identity: bytes,
    policy: ClientPolicy,
    given: Contribution,
    random: keys.Random,
    spent: Container[bytes] = (),
) -> tuple[Client, Step]:
    """Return the client of an announced task, and its first message. See :meth:`MaskingClient.start`."""
    message = Announcement.decode(announcement, header_of(announcement).task)
    one_shot = read_task(message.descriptor).protocol == "oneshot-seeds"
    start = ReportingClient.start if one_shot else MaskingClient.start
    return start(announcement, signer=signer, identity=identity, policy=policy, given=given, random=random, spent=spent)


def restore_client(  # noqa: PLR0913 - as for start_client
    records: Sequence[Buffer],
    *,
    signer: keys.Signer,
    identity: bytes,
    policy: ClientPolicy,
    given: Contribution,
    spent: Container[bytes] = (),
) -> tuple[Client, Step]:
    """Return the client of its records, and its last message again."""
    if records and is_message(records[0]):
        return ReportingClient.restore(records)
    return MaskingClient.restore(records, signer=signer, identity=identity, policy=policy, given=given, spent=spent)


def start_server(convention: Convention, *, threads: int = 1) -> tuple[Server, Step]:
    """Return the server of a task, and its announcements."""
    if convention.task.protocol == "oneshot-seeds":
        return SummingServer.start(convention)
    return MaskingServer.start(convention, threads=threads)


def restore_server(convention: Convention, records: Sequence[Buffer], *, threads: int = 1) -> tuple[Server, Step]:
    """Return the server of its records, and the messages of its phase again."""
    if convention.task.protocol == "oneshot-seeds":
        return SummingServer.restore(convention, records)
    return MaskingServer.restore(convention, records, threads=threads)
