"""Named instants at which a test may kill this process, to show that nothing is lost there.

``HANSA_KILL_AT="server.report.recorded"`` kills the process, as ``kill -9`` does, when it gets there for the first
time; ``"server.report.recorded:3"`` at the third. Without the variable nothing happens.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Final

from hansa.core.settings import KILL_AT, value_of

KILL_POINTS: Final[dict[str, str]] = {
    "coordinator.leased": "a replica has taken the lease of a run and done nothing yet",
    "coordinator.round.opening": "a cohort is drawn, and nothing is committed",
    "coordinator.round.opened": "a round is committed, and nobody was told",
    "coordinator.round.collecting": "the first report of a round is known, and that is committed",
    "coordinator.fold.written": "a partial sum is in the blob store, and no row names it",
    "coordinator.fold.committed": "a partial sum is committed, and the updates in it still exist",
    "coordinator.round.freezing": "a round is to be frozen, and that is not committed",
    "coordinator.round.frozen": "the survivors are committed, and nothing is folded",
    "coordinator.round.folded": "the updates are folded, and nothing is committed",
    "coordinator.round.model-written": "the next model is in the blob store, and no row names it",
    "coordinator.round.closed": "the round is closed, its blobs and its key still exist",
    "coordinator.round.swept": "the round's blobs are gone, its key still exists",
    "coordinator.round.abandoned": "a round is given up, and no other is open",
    "coordinator.run.ended": "a run is at its end, and nobody was told",
    "server.enrolled": "a client is committed, and not told",
    "server.check-in.answering": "an assignment was found and is not sent yet",
    "server.upload.part-written": "a part of an update is written, and not acknowledged",
    "server.report.sealed": "an update is sealed in the blob store, and no row names it",
    "server.report.recorded": "a report is committed, and not acknowledged",
    "sums.record-made": "a secure sum has gone on, and its record is not written",
    "sums.record-written": "the record of a secure sum is committed, and nobody was told",
    "decryptor.key-made": "the key of a task is on disk, and not told",
    "decryptor.task-written": "a decryptor stands ready for a task, and has not said so",
    "decryptor.batch-written": "the one batch of a task is on disk, and not answered",
    "decryptor.summed": "a sum of masks is made, and not on disk",
    "decryptor.answer-written": "a sum of masks is on disk, and not sent",
    "authority.drawn": "a beacon is drawn, and not on disk",
    "authority.draw-written": "a beacon is on disk, and not told",
    "client.enrolled": "the server has enrolled the client, and that is not on disk",
    "client.assigned": "an assignment is accepted, and nothing is written",
    "client.trained": "an update is computed, and not on disk",
    "client.sum-answered": "a message of a secure sum is answered, and that is not on disk",
    "client.sum-recorded": "the answer to a message of a secure sum is on disk, and not sent",
    "client.rows-written": "the next state is on disk, and the update is not",
    "client.pending-written": "the update and the next state are on disk, and nothing is sent",
    "client.part-sent": "a part of the update is sent",
    "client.acknowledged": "the server has acknowledged, and that is not on disk",
    "client.report-noted": "that the server has acknowledged is on disk, and the update still is",
    "client.outcome-learned": "the outcome is known, and the state not yet current",
    "client.rows-current": "the state of an included update is current, and its outcome is not on disk",
    "storage.blob-written": "a blob is written under a temporary name",
    "storage.blob-renamed": "a blob has its name, and its folder is not on disk",
    "storage.key-created": "a round's key exists, and no round uses it",
    "storage.key-destroyed": "a round's key is gone",
}
"""Kill point -> what is done there and what is not."""

_passed: Counter[str] = Counter()


def reached(name: str) -> None:
    """Die here if the environment says so. Raises LookupError for a name that is not in the table."""
    if name not in KILL_POINTS:
        raise LookupError(f"{name} is no kill point")
    wanted = value_of(KILL_AT)
    if wanted is None:
        return
    where, _, count = wanted.partition(":")
    if where == name:
        _passed[name] += 1
        if _passed[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
