"""The client of ``oneshot-seeds``: one report, and nothing more to do."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from hansa.secagg import keys
from hansa.secagg.contribution import Contribution
from hansa.secagg.encoding import Buffer, u32
from hansa.secagg.masks import Mask, masked
from hansa.secagg.messages import SEALED_SEED_BYTES, Abort, Announcement, header_of, vector_front
from hansa.secagg.oneshot_messages import Report
from hansa.secagg.policy import ClientPolicy, announced
from hansa.secagg.refusals import answered, unexpected, untrusted
from hansa.secagg.sealing import Binding, seal_seed, seed_key
from hansa.secagg.step import Outgoing, Step
from hansa.secagg.task import Task


class ReportingClient:
    """A client of one task. Made by :meth:`start` and :meth:`restore`."""

    def __init__(self, report: bytes) -> None:
        header = header_of(report)
        self.index, self.task_hash = header.client, header.task
        self.done = True
        self._report = report

    @classmethod
    def start(  # noqa: PLR0913 - a client is what it is, what it demands and what it gives
        cls,
        announcement: bytes,
        *,
        signer: keys.Signer,
        identity: bytes,
        policy: ClientPolicy,
        given: Contribution,
        random: keys.Random,
        spent: Container[bytes] = (),
    ) -> tuple[ReportingClient, Step]:
        """Return a client that has accepted a task, and its report. Arguments are those of ``MaskingClient.start``.

        The ephemeral keys of HPKE are drawn by the library, so the record of this client is the report itself. Who
        signed the task is checked while the masked vector is hashed, before a seed is sealed or anything is signed.
        """
        header = header_of(announcement)
        message = Announcement.decode(announcement, header.task)
        task = announced(message)
        if task.protocol != "oneshot-seeds":
            raise unexpected("The task is of another protocol.")
        policy.check_terms(task, message, identity)
        if (given.plan_sha256, given.model_sha256) != (task.plan_sha256, task.model_sha256):
            raise untrusted("The task is for another plan or model than the vector was computed for.")
        if task.hash in spent or task.report_id in spent:
            raise answered("This client has taken part in the task before, or helped to unmask its round.")
        given.check(task.ring)
        report = _report(task, header.client, signer, given, random, lambda: policy.check_signatures(task, message))
        return cls(report), Step(persist=(report,), send=(Outgoing(header.client, report),))

    @classmethod
    def restore(cls, records: Sequence[Buffer]) -> tuple[ReportingClient, Step]:
        """Return the client of its one record, and its report again."""
        client = cls(bytes(records[0]))
        return client, Step(send=(Outgoing(client.index, client._report),))

    def on_message(self, message: Buffer) -> Step:
        """Take the news that a task was given up; there is nothing else to answer."""
        if Abort.decode(message, self.task_hash).client != self.index:
            raise unexpected("A message came that is for another client.")
        self._report = b""
        return Step()

    def on_deadline(self) -> Step:
        """Do nothing: the report is all that a client has to say."""
        return Step()


def _report(  # noqa: PLR0913, PLR0917 - a task, whose report, what it gives, and what is checked before it is signed
    task: Task,
    client: int,
    signer: keys.Signer,
    given: Contribution,
    random: keys.Random,
    check: Callable[[], None],
) -> bytes:
    seeds = [random(keys.KEY_BYTES) for _ in task.decryptors]
    masks = [Mask(seed_key(seed, task.hash, client, place)) for place, seed in enumerate(seeds)]

    def end(content: bytes) -> bytes:
        try:
            sealed = b"".join(
                seal_seed(seed, each.sealing, Binding(task.hash, client, place, content))
                for place, (seed, each) in enumerate(zip(seeds, task.decryptors, strict=True))
            )
        except ValueError:
            raise untrusted("A decryptor's key is of small order.") from None
        return sealed + keys.sign(signer, "report", task.hash, u32(client), content, sealed)

    behind = len(seeds) * SEALED_SEED_BYTES + keys.SIGNATURE_BYTES
    front = vector_front(Report.kind, client, task.hash, task.ring.nbytes, behind)
    return masked(task.ring, given.vector, masks, front=front, behind=behind, end=end, meanwhile=check)
