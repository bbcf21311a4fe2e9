"""What a client demands of every task, whatever the server says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hansa.secagg.keys import signed
from hansa.secagg.messages import Announcement
from hansa.secagg.parameters import GraphParameters, protects
from hansa.secagg.refusals import untrusted
from hansa.secagg.roster import Registrar, proven
from hansa.secagg.task import SMALLEST, Task, read_task


@dataclass(frozen=True, kw_only=True)
class ClientPolicy:
    """A client's keys and floors. What a task offers below them is refused before anything is sent."""

    server_key: bytes
    """The server's Ed25519 key, pinned at enrolment."""
    registrar: Registrar = "pinned"
    authority_key: bytes = b""
    """With ``registrar = "authority"``: the Ed25519 key that signs rosters, which the server does not hold."""
    pinned: frozenset[bytes] = frozenset()
    """With ``registrar = "pinned"``: the identity keys of all that may take part, this client's own among them."""
    server: Literal["malicious", "curious"] = "malicious"
    """``malicious`` demands that the server can fool nobody: a complete graph with a threshold above two thirds, or one
    that an authority's beacon draws, large enough for ``assumed_colluding``."""
    assumed_colluding: int = 1
    """Clients that may work together with a malicious server; a sparse graph that exposes somebody to so many is
    refused."""
    minimum_cohort: int = SMALLEST
    minimum_survivors: int = SMALLEST
    minimum_threshold: int = 2
    """Fewest holders that must work together to learn a secret, whatever the server."""
    decryptors: Mapping[str, bytes] = field(default_factory=dict)
    """Operators of decryptors that this client trusts to be independent -> their Ed25519 keys."""
    minimum_operators: int = 2

    def accepted(self, message: Announcement, identity: bytes) -> Task:
        """Return the task that is announced. Raises RefusedError unless keys, signatures and floors hold."""
        task = announced(message)
        self.check_signatures(task, message)
        self.check_terms(task, message, identity)
        return task

    def check_terms(self, task: Task, message: Announcement, identity: bytes) -> None:
        """Raise RefusedError unless those named, and the floors, are what is demanded, whoever signed the task."""
        self._check_roster(task, message, identity)
        self._check_floors(task)
        if task.decryptors:
            self._check_decryptors(task)

    def check_signatures(self, task: Task, message: Announcement) -> None:
        """Raise RefusedError unless server, registrar and decryptors signed what is announced."""
        if not signed(self.server_key, message.signature, "task", task.hash):
            raise untrusted("The task is not signed by the server's key that was pinned.")
        registrar = self.authority_key if self.registrar == "authority" else self.server_key
        if not signed(registrar, message.registration, "roster", *task.registered):
            raise untrusted("The roster is not signed by its registrar.")
        if len(message.decryptors) != len(task.decryptors):
            raise untrusted("Not every decryptor has signed the task.")
        for each, signature in zip(task.decryptors, message.decryptors, strict=True):
            if not signed(each.identity, signature, "task", task.hash):
                raise untrusted("A decryptor has not signed the task.")

    def _check_roster(self, task: Task, message: Announcement, identity: bytes) -> None:
        if task.registrar != self.registrar:
            raise untrusted(f"The roster's registrar is {task.registrar!r}; the policy demands {self.registrar!r}.")
        if self.registrar == "authority" and self.authority_key == self.server_key:
            raise untrusted("The policy's authority_key is the server's own key.")
        self.check_member(task, message.client, identity, message.proof)

    def check_member(self, task: Task, client: int, identity: bytes, proof: tuple[bytes, ...]) -> None:
        """Raise RefusedError unless a key has that place in the roster, and is pinned where keys are."""
        if not proven(task.roster_root, task.roster_size, client, identity, proof):
            raise untrusted("An identity is not in the roster at its place.")
        if self.registrar == "pinned" and identity not in self.pinned:
            raise untrusted("An identity is not among those that the policy pins.")

    def _check_floors(self, task: Task) -> None:
        if task.minimum_cohort < self.minimum_cohort or task.minimum_survivors < self.minimum_survivors:
            raise untrusted(
                f"The task is for {task.minimum_cohort} clients and {task.minimum_survivors} survivors or more; the"
                f" policy demands {self.minimum_cohort} and {self.minimum_survivors}."
            )
        if task.protocol != "secagg-plus" or self.server == "curious":
            return
        if not task.beacon:
            raise untrusted("secagg-plus protects against a curious server only; the policy assumes a malicious one.")
        graph = GraphParameters(task.neighbours, task.threshold)
        # where all are neighbours nobody chooses whom: one more than those, on a circle, are the fewest to look at
        fewest = max(task.minimum_cohort, min(task.neighbours + 2, task.roster_size))
        if not protects(graph, fewest, corrupt=self.assumed_colluding, server=self.server):
            raise untrusted(
                f"A graph of {task.neighbours} neighbours and {task.threshold} shares does not protect {fewest} clients"
                f" from a malicious server with {self.assumed_colluding} of them."
            )

    def _check_decryptors(self, task: Task) -> None:
        if len(task.decryptors) < max(2, self.minimum_operators):
            raise untrusted("There are fewer decryptors than the policy demands.")
        if any(self.decryptors.get(each.operator) != each.identity for each in task.decryptors):
            raise untrusted("A decryptor is not among those that the policy names.")


def announced(message: Announcement) -> Task:
    """Return the task that a message announces, of which nothing is checked but that its parameters fit together."""
    task = read_task(message.descriptor)
    if task.hash != message.task:
        raise untrusted("The task is not the one that its message names.")
    return task
