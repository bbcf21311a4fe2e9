"""An authority's answers: for which rosters of which tasks it vouches, and what it draws for those who advertised."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.authority.book import Book, Drawn
from hansa.authority.settings import AuthoritySettings
from hansa.authority.vouched import Vouched
from hansa.core.clock import Clock
from hansa.core.errors import RefusedError
from hansa.core.killpoints import reached
from hansa.secagg.beacon import VALUE_BYTES, Draw, signed_beacon
from hansa.secagg.convention import vouch
from hansa.secagg.encoding import Reader, from_bitmap
from hansa.secagg.keys import KEY_BYTES
from hansa.secagg.refusals import malformed, untrusted
from hansa.secagg.roster import Roster
from hansa.secagg.task import Task, read_task

_MARK: Final = 8
"""Bytes by which the book tells the clients of one round apart."""
_RULE: Final = "An authority vouches for rosters of keys that are on its list, of as many clients as its operator set."


@dataclass
class AuthorityService:
    """One authority. The same question gets the same bytes while the list is the same; only draws are kept."""

    settings: AuthoritySettings
    key: Ed25519PrivateKey
    vouched: Vouched
    book: Book
    clock: Clock

    @property
    def identity(self) -> bytes:
        """Return the public key, 32 bytes."""
        return self.key.public_key().public_bytes_raw()

    def answer(self, body: bytes) -> bytes:
        """Return the signature over the roster of a task, 64 bytes. Raises HansaError where it is not vouched for.

        ``body``: the task's canonical bytes and the keys of its clients in their order, each behind its length.
        """
        reader = Reader(body)
        task, _ = self._asked(reader)
        reader.end()
        return vouch(self.key, task)

    def draw(self, server: bytes, body: bytes) -> bytes:
        """Return the beacon of a task for those who advertised in it, a message. Raises HansaError.

        ``server`` is the key of the server that asks. ``body``: what :meth:`answer` takes, and a :class:`Draw` behind
        its length. What is drawn first is drawn: a task has one beacon, for one set of clients.
        """
        reader = Reader(body)
        task, identities = self._asked(reader)
        question = Draw.decode(reader.blob(), task.hash)
        reader.end()
        if not task.beacon:
            raise untrusted("The task has no beacon.")
        question.check(task, identities)
        members = [identities[each] for each in from_bitmap(question.advertised, task.roster_size)]
        advertised = hashlib.sha256(question.advertised).digest()
        drawn = self.book.drawn(task.hash) or self._draw_first(task, server, advertised, members)
        if (drawn.server, drawn.advertised) != (server, advertised):
            raise RefusedError(
                "HANSA-AUTHORITY-DRAWN",
                rule="An authority draws one beacon a task, for one set of clients of one server.",
                found="It has drawn one for that task and others who advertised.",
                action="Begin another attempt. If this server has not asked before, tell the authority's operator.",
            )
        return signed_beacon(self.key, task, question.advertised, drawn.value).encode()

    def probe(self) -> None:
        """Raise HansaError while the list cannot be read, or another error while the book cannot."""
        self.vouched.keys()
        self.book.drawn(b"")

    def _draw_first(self, task: Task, server: bytes, advertised: bytes, members: Sequence[bytes]) -> Drawn:
        """Draw for a task; the value is on disk when this returns. ``members``: the keys of those who advertised."""
        marks = [task.given_by(each)[:_MARK] for each in members]
        before = Counter(
            clients[at : at + _MARK]
            for clients in self.book.clients(task.report_id)
            for at in range(0, len(clients), _MARK)
        )
        most = self.settings.attempts_per_round
        if any(before[each] >= most for each in marks):
            raise RefusedError(
                "HANSA-AUTHORITY-ATTEMPTS",
                rule=f"An authority draws at most {most} times a round for a client: whoever draws often can choose.",
                found="For some client of this sum it has drawn as often.",
                action="Find out why the attempts failed; its operator may raise attempts_per_round.",
            )
        drawn = Drawn(server, advertised, secrets.token_bytes(VALUE_BYTES))
        reached("authority.drawn")
        self.book.add(task.hash, drawn, task.report_id, b"".join(marks))
        reached("authority.draw-written")
        return drawn

    def _asked(self, reader: Reader) -> tuple[Task, tuple[bytes, ...]]:
        """Return the task and the keys of a call, for which this authority vouches. Raises HansaError."""
        content, joined = reader.blob(), reader.blob()
        if len(joined) % KEY_BYTES:
            raise malformed("The keys of a roster are 32 bytes each.")
        identities = tuple(joined[at : at + KEY_BYTES] for at in range(0, len(joined), KEY_BYTES))
        task = read_task(content)
        self._check(task, identities)
        return task, identities

    def _check(self, task: Task, identities: tuple[bytes, ...]) -> None:
        """Raise HansaError unless a task's roster is of these keys, all of which are on the list, and of enough."""
        fewest = self.settings.minimum_cohort
        if len(identities) < fewest:
            raise RefusedError(
                "HANSA-AUTHORITY-FEW",
                rule=_RULE,
                found=f"It is asked for {len(identities)} clients, and vouches for no fewer than {fewest}.",
                action="Use larger cohorts or groups, or ask its operator for another minimum_cohort.",
            )
        if task.registrar != "authority" or self.identity in self.settings.known_servers:
            raise untrusted(f"The registrar is {task.registrar!r}, or the authority's key is the server's.")
        roster = Roster(identities)
        if (roster.root, len(identities)) != (task.roster_root, task.roster_size):
            raise untrusted("The keys are not those of the task's roster.")
        if not set(identities) <= self.vouched.keys():
            raise RefusedError(
                "HANSA-AUTHORITY-STRANGER",
                rule=_RULE,
                found="A key of the roster is not on the list.",
                action="Let the authority's operator add it (hansa authority vouch), or suspend that client.",
            )
