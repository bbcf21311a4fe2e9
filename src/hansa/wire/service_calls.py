"""Calls of a server to services apart from it: bodies in the bytes of the secure-sum protocol, signed as requests.

A call names the digest of its body beside its signature (``Content-Digest``, RFC 9530), so that a service knows who
calls before it reads any of the body: nobody else's is read. Each call may be repeated and then gets the same answer,
so a captured call gives nobody anything new.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
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
_DIGEST: Final = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")


def signed_call(signer: Signs, path: str, body: bytes, now: float) -> dict[str, str]:
    """Return the headers of one call by which a service knows who calls."""
    return {
        "Authorization": sign_request(signer, client=_CALLER, method="POST", target=path, body=body, now=now),
        "Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:",
    }


def caller(headers: Mapping[str, str], keys: Sequence[bytes], path: str, now: float) -> tuple[bytes, str]:
    """Return the one of the servers' keys that has signed a call, and the digest that its body must have.

    The digest is SHA-256 in hexadecimal; names of ``headers`` are in lower case. Raises RefusedError where no key has
    signed the call, or long ago.
    """
    credentials, digest = read_credentials(headers.get("authorization")), _digest(headers.get("content-digest", ""))
    if abs(credentials.time / 1000 - now) > SKEW:
        raise RefusedError(
            "HANSA-AUTH-CLOCK",
            rule=f"The clocks of the server and of what it calls differ by at most {SKEW:.0f} seconds.",
            found="The call was signed earlier, or later.",
            action="Set both clocks.",
        )
    for key in keys:
        try:
            verify_request(credentials, key, method="POST", target=path, body=b"", digest=digest)
        except RefusedError:
            continue
        return key, digest
    raise bad_signature()


def require_digest(found: str, digest: str) -> None:
    """Raise RefusedError unless a body has the digest that was signed."""
    if not hmac.compare_digest(found, digest):
        raise bad_signature()


def _digest(header: str) -> str:
    match = _DIGEST.fullmatch(header)
    if match is None:
        raise RefusedError(
            "HANSA-REQUEST-INVALID",
            rule="A call names the SHA-256 of its body in a Content-Digest header: sha-256=:BASE64:.",
            found="There is none, or it cannot be read.",
            action="Send it, as a server of this version does.",
        )
    return base64.b64decode(match[1]).hex()
