"""An open-loop load generator: each request is sent at its moment, whether or not earlier ones were answered.

One thread and an epoll; requests are bytes that were made beforehand. Latency counts from the moment at which a request
was due, so that a server that falls behind cannot hide it.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import select
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

_BLOCK: Final = 1 << 18
_AGAIN: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(frozen=True)
class Call:
    """One request: when it is due, in seconds from the start, and its bytes, in parts."""

    due: float
    parts: Sequence[bytes]


@dataclass
class Outcome:
    """What became of all calls. Times are in seconds; ``late`` is how long after its moment a call was begun."""

    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    bodies: Counter[bytes] = field(default_factory=Counter)
    """Short bodies of answers other than 200, with how often they came."""
    seconds: float = 0.0
    connections: int = 0

    @property
    def errors(self) -> int:
        """Return how many calls were not answered with 200."""
        return sum(count for status, count in self.statuses.items() if status != "200")


@dataclass
class _Connection:
    """A connection and the call that it carries."""

    socket: socket.socket
    secure: bool
    call: Call | None = None
    rest: deque[memoryview] = field(default_factory=deque)
    answer: bytearray = field(default_factory=bytearray)
    ready: bool = False
    """Connected, and shaken hands."""
    mask: int = 0


_BIND_ADDRESS_NO_PORT: Final = 24
"""Of ``linux/in.h``: the port is chosen when the connection is made, and only that must be unique."""
_SOURCES: Final = 32
"""Addresses that connections come from. One alone has 28,000 ports, each of which rests for a minute after its use: the
system would look for a free one for ever longer, which clients with addresses of their own do not do to a server."""


class Generator:
    """Calls one server. ``kept`` connections are reused, as a proxy does; else each call has one of its own."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None, kept: bool, patience: float = 30.0) -> None:
        self._address = ("127.0.0.1", port)
        self._tls = tls
        self._kept = kept
        self._patience = patience
        self._poll = select.epoll()
        self._busy: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._outcome = Outcome()
        self._began = 0.0

    def run(self, calls: Sequence[Call]) -> Outcome:
        """Make all calls, in order of when they are due; return what became of them."""
        gc.collect()
        gc.freeze()  # the calls that were prepared: looking through them would hold up those that are due
        self._began = time.perf_counter()
        due = 0
        while due < len(calls) or self._busy:
            now = time.perf_counter() - self._began
            while due < len(calls) and calls[due].due <= now:
                self._outcome.late.append(time.perf_counter() - self._began - calls[due].due)
                self._begin(calls[due])
                due += 1
            if due == len(calls) and now > calls[-1].due + self._patience:
                self._give_up()
                break
            wait = max(0.0, calls[due].due - (time.perf_counter() - self._began)) if due < len(calls) else 0.05
            for number, _ in self._poll.poll(min(wait, 0.05), 16):
                if number in self._busy:
                    self._go_on(self._busy[number])
                else:
                    self._forget(number)
        self._outcome.seconds = time.perf_counter() - self._began
        for connection in self._idle:
            connection.socket.close()
        self._poll.close()
        gc.unfreeze()
        return self._outcome

    def _begin(self, call: Call) -> None:
        connection = self._idle.pop() if self._idle else self._opened()
        connection.call = call
        connection.answer.clear()
        connection.rest = deque(memoryview(part) for part in call.parts)
        self._busy[connection.socket.fileno()] = connection
        self._go_on(connection)

    def _opened(self) -> _Connection:
        raw = socket.socket()
        raw.settimeout(0)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        raw.bind((f"127.0.0.{2 + self._outcome.connections % _SOURCES}", 0))
        failed = raw.connect_ex(self._address)
        if failed not in (0, errno.EINPROGRESS):
            raise OSError(failed, "cannot connect")
        self._outcome.connections += 1
        if self._tls is None:
            return _Connection(raw, secure=False)
        wrapped = self._tls.wrap_socket(raw, do_handshake_on_connect=False, server_hostname="localhost")
        return _Connection(wrapped, secure=True)

    def _go_on(self, connection: _Connection) -> None:
        """Take a call as far as it goes without waiting."""
        try:
            if not connection.ready:
                if connection.secure and isinstance(connection.socket, ssl.SSLSocket):
                    connection.socket.do_handshake()
                connection.ready = True
            while connection.rest:
                part = connection.rest[0]
                sent = connection.socket.send(part[:_BLOCK])
                if sent == len(part):
                    connection.rest.popleft()
                else:
                    connection.rest[0] = part[sent:]
            while not self._answered(connection):
                pass
        except (BlockingIOError, ssl.SSLWantReadError):
            reads = connection.ready and not connection.rest
            writes = isinstance(connection.socket, ssl.SSLSocket) is False and not reads
            self._watch(connection, select.EPOLLOUT if writes else select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._watch(connection, select.EPOLLOUT)
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                self._watch(connection, select.EPOLLOUT)
                return
            self._end(connection, type(error).__name__, keep=False)

    def _answered(self, connection: _Connection) -> bool:
        """Read what is there; return True once the answer is whole."""
        content = connection.socket.recv(_BLOCK)
        connection.answer += content
        head = connection.answer.find(b"\r\n\r\n")
        if head < 0:
            if not content:
                raise ConnectionResetError(errno.ECONNRESET, "closed without an answer")
            return False
        length = _length(bytes(connection.answer[:head]).lower())
        if content and len(connection.answer) < head + 4 + length:
            return False
        status = connection.answer[9:12].decode("latin-1")
        if status != "200":
            self._outcome.bodies[bytes(connection.answer[head + 4 :][:300])] += 1
        self._end(connection, status, keep=self._kept)
        return True

    def _watch(self, connection: _Connection, mask: int) -> None:
        if connection.mask == mask:
            return
        number = connection.socket.fileno()
        if connection.mask:
            self._poll.modify(number, mask)
        else:
            self._poll.register(number, mask)
        connection.mask = mask

    def _end(self, connection: _Connection, status: str, *, keep: bool) -> None:
        if connection.call is not None:
            self._outcome.latencies.append(time.perf_counter() - self._began - connection.call.due)
        self._outcome.statuses[status] += 1
        del self._busy[connection.socket.fileno()]
        connection.call = None
        if keep:
            self._idle.append(connection)
            return
        with contextlib.suppress(OSError):
            connection.socket.close()

    def _forget(self, number: int) -> None:
        """Let go of a connection that the server closed while it had nothing to carry."""
        for connection in [each for each in self._idle if each.socket.fileno() == number]:
            self._idle.remove(connection)
            connection.socket.close()

    def _give_up(self) -> None:
        for connection in list(self._busy.values()):
            self._end(connection, "no answer", keep=False)


def _length(head: bytes) -> int:
    """Return the length of an answer's body."""
    _, found, after = head.partition(b"\r\ncontent-length:")
    return int(after.partition(b"\r\n")[0]) if found else 0


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
