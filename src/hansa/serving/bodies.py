"""Bodies of requests as they arrive: none is larger than its limit, none comes more slowly than it may.

A body that stands still, or comes by a byte a second, would hold a connection and memory for as long as its sender
likes. So each has half a minute and then as long as its bytes so far take at the slowest rate: one of 1 GB on a slow
line goes on, one that trickles ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from hansa.core.errors import RefusedError

_IDLE: Final = 20.0
"""Seconds that a body may pause: who holds a connection without a word holds what was read, and a server that stops."""
_STALL: Final = 30.0
_SLOWEST: Final = 16 * 1024
"""Bytes a second: a body that comes more slowly, after half a minute, ends."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


async def read_body(receive: Receive, limit: int) -> bytes:
    """Return a request's body.

    Raises RefusedError as soon as the body is larger than a limit, pauses for too long or comes too slowly, and where
    it is cut off.
    """
    parts, size, receive = [], 0, paced(receive)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _cut_off()
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts) if len(parts) != 1 else bytes(parts[0])


def paced(receive: Receive) -> Receive:
    """Return a ``receive`` that raises RefusedError where the body pauses for too long or comes too slowly."""
    size, began, whole, now = 0, None, False, asyncio.get_running_loop().time

    async def received() -> MutableMapping[str, Any]:
        nonlocal size, began, whole
        if whole:  # what comes now is that the caller has left
            return await receive()
        began = now() if began is None else began
        try:
            async with asyncio.timeout_at(min(now() + _IDLE, began + _STALL + size / _SLOWEST)) as patience:
                message = await receive()
        except TimeoutError:
            if patience.expired():
                raise _too_slow() from None
            raise
        size, whole = size + len(message.get("body", b"")), not message.get("more_body", False)
        return message

    return received


def too_large(limit: int) -> RefusedError:
    """Return what to say of a body that is too large."""
    return RefusedError(
        "HANSA-REQUEST-TOO-LARGE",
        rule=f"The body of this call has at most {limit} bytes.",
        found="This one has more.",
        action="Send an update in smaller parts; for other calls, the operator can raise largest_request_bytes.",
    )


def _too_slow() -> RefusedError:
    return RefusedError(
        "HANSA-REQUEST-SLOW",
        rule=f"A body pauses for {_IDLE:g} seconds at most, and after {_STALL:g} seconds it has come at"
        f" {_SLOWEST // 1024} KiB a second.",
        found="This one came more slowly.",
        action="Send it again; an update in smaller parts (HANSA_UPLOAD_PART).",
    )


def _cut_off() -> RefusedError:
    return RefusedError(
        "HANSA-REQUEST-INVALID", rule="A request is whole.", found="It was cut off.", action="Send it again."
    )
