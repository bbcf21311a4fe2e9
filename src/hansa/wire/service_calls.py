"""Calls of a server to services apart from it: bodies in the bytes of the secure-sum protocol, signed as requests.

Each call may be repeated and then gets the same answer, so a captured call gives nobody anything new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hansa.core.errors import RefusedError
from hansa.wire.signatures import SKEW, Signs, bad_signature, read_credentials, sign_request, verify_request

KEYS: Final = "/v1/keys"
"""Decryptor: a nonce of 32 bytes -> the X25519 key of one task, 32 bytes."""
TASKS: Final = "/v1/tasks"
"""Decryptor: a task's canonical bytes and the registrar's signature, each behind its length -> its signature."""
MESSAGES: Final = "/v1/messages"
"""Decryptor: a Batch -> Valid; a Request -> Answer."""
ROSTERS: Final = "/v1/rosters"
"""Authority: a task's canonical bytes and the roster's keys, each behind its length -> the registrar's signature."""
BEACONS: Final = "/v1/beacons"
"""Authority: as for ROSTERS, and a Draw behind its length -> a Beacon."""
MEDIA_TYPE: Final = "application/octet-stream"
_CALLER: Final = "server"


def signed_call(signer: Signs, path: str, body: bytes, now: float) -> str:
    """Return the Authorization header of one call."""
    return sign_request(signer, client=_CALLER, method="POST", target=path, body=body, now=now)


def caller(header: str | None, keys: Sequence[bytes], path: str, body: bytes, now: float) -> bytes:
    """Return the one of the servers' keys that has signed a call. Raises RefusedError where none has, or long ago."""
    credentials = read_credentials(header)
    if abs(credentials.time / 1000 - now) > SKEW:
        raise RefusedError(
            "HANSA-AUTH-CLOCK",
            rule=f"The clocks of the server and of what it calls differ by at most {SKEW:.0f} seconds.",
            found="The call was signed earlier, or later.",
            action="Set both clocks.",
        )
    for key in keys:
        try:
            verify_request(credentials, key, method="POST", target=path, body=body)
        except RefusedError:
            continue
        return key
    raise bad_signature()
