"""What a machine asks of its carrier after each event: make records durable first, then send messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from hansa.secagg.encoding import Buffer


class Outgoing(NamedTuple):
    """A message, and the client or decryptor it goes to; a client's own messages go to the server."""

    to: int
    message: bytes


@dataclass(frozen=True)
class Step:
    """Records to append and make durable, in order, *before* anything of ``send`` leaves.

    A machine that is rebuilt from its records in that order goes on as if it had never stopped, and gives the messages
    that may not have left again, byte for byte.
    """

    persist: tuple[Buffer, ...] = ()
    send: tuple[Outgoing, ...] = ()
    again: tuple[int, ...] = ()
    """Clients whose reports the server of ``oneshot-seeds`` needs once more, to take them out of its sum."""


class SumProtocol(Protocol):
    """A client, server or decryptor of a secure sum: messages in, messages out; no I/O, no clock."""

    def on_message(self, message: Buffer) -> Step:
        """Take a message. Raises RefusedError, with nothing changed, where it is not acceptable."""
        ...

    def on_deadline(self) -> Step:
        """Go on without those who have not answered, or give up."""
        ...
