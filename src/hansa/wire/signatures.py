"""What is signed on the wire, with Ed25519: requests by clients, assignments and keys by the server.

Each kind of signature covers a prefix of its own, so that none can stand for another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hansa.core.errors import RefusedError

SCHEME: Final = "Hansa-Ed25519"
SKEW: Final = 300.0
"""Seconds by which a client's clock may differ from the server's."""

_HEADER: Final = re.compile(
    SCHEME
    + r" client=(?P<client>[0-9A-Za-z-]{1,64}), time=(?P<time>[0-9]{1,15}), nonce=(?P<nonce>[0-9A-Za-z_-]{16}),"
    + r" signature=(?P<signature>[0-9A-Za-z_-]{86})"
)


class Signs(Protocol):
    """A private Ed25519 key, wherever it is kept."""

    def sign(self, data: bytes, /) -> bytes:
        """Return the signature of ``data``, 64 bytes."""
        ...


@dataclass(frozen=True)
class Credentials:
    """What a client's Authorization header says; ``time`` is Unix time in milliseconds."""

    client: str
    time: int
    nonce: str
    signature: bytes


def sign_request(  # noqa: PLR0913 - what is signed
    key: Signs, *, client: str, method: str, target: str, body: bytes, now: float, nonce: str | None = None
) -> str:
    """Return the Authorization header of one request; ``target`` is the path with its query.

    The nonce is drawn unless it is given, which only a test vector does.
    """
    time, nonce = int(now * 1000), nonce or secrets.token_urlsafe(12)
    signature = key.sign(_request(method, target, str(time), nonce, body_digest(body)))
    encoded = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    return f"{SCHEME} client={client}, time={time}, nonce={nonce}, signature={encoded}"


def read_credentials(header: str | None) -> Credentials:
    """Return what a header says. Raises RefusedError where there is none or it is malformed."""
    match = _HEADER.fullmatch(header or "")
    if match is None:
        raise RefusedError(
            "HANSA-AUTH-MISSING",
            rule=f"A client signs each call in an Authorization header of scheme {SCHEME}.",
            found="There is none, or it cannot be read.",
            action="Enrol, and sign as the specification of the client protocol says.",
        )
    try:
        signature = base64.urlsafe_b64decode(match["signature"] + "==")
    except binascii.Error:
        raise bad_signature() from None
    return Credentials(match["client"], int(match["time"]), match["nonce"], signature)


def verify_request(  # noqa: PLR0913 - what is signed
    credentials: Credentials, public_key: bytes, *, method: str, target: str, body: bytes, digest: str | None = None
) -> None:
    """Raise RefusedError unless a request is signed by a key. The clock is the caller's to check.

    ``digest`` is the body's SHA-256 in hexadecimal, where the caller has computed it.
    """
    signed = _request(method, target, str(credentials.time), credentials.nonce, digest or body_digest(body))
    verify(public_key, credentials.signature, signed)


def body_digest(body: bytes) -> str:
    """Return what a request's signature covers of its body: the SHA-256 in hexadecimal."""
    return hashlib.sha256(body).hexdigest()


def enrolment(secret: str | bytes) -> bytes:
    """Return what a client's new key signs to enrol with a token or a certificate (DER)."""
    content = secret.encode() if isinstance(secret, str) else secret
    return b"hansa-enrol-1\0" + hashlib.sha256(content).digest()


def client_key(client: str) -> bytes:
    """Return what a client's next key signs to take the place of the one that it has."""
    return b"hansa-client-key-1\0" + client.encode()


def assignment(content: bytes) -> bytes:
    """Return what the server signs of a serialised assignment."""
    return b"hansa-assignment-1\0" + content


def server_key(key_id: str, public_key: bytes) -> bytes:
    """Return what the server's last key signs of its next one."""
    return b"hansa-server-key-1\0" + key_id.encode() + b"\0" + public_key


def verify(public_key: bytes, signature: bytes, content: bytes) -> None:
    """Raise RefusedError unless a signature over some bytes is by a key."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, content)
    except (InvalidSignature, ValueError):
        raise bad_signature() from None


def bad_signature() -> RefusedError:
    """Return what to say of a signature that is not by the right key."""
    return RefusedError(
        "HANSA-AUTH-SIGNATURE",
        rule="What is sent is signed by the sender's key.",
        found="The signature is by another key, or over something else.",
        action="Use the key that was enrolled; enrol again if it is lost.",
    )


def _request(method: str, target: str, time: str, nonce: str, digest: str) -> bytes:
    return f"hansa-request-1\n{method}\n{target}\n{time}\n{nonce}\n{digest}".encode()
