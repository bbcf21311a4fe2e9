"""Whether files can serve for TLS, and why not: those of callers, and those of a server's settings.

A server's are looked at when its settings are read, for the HTTP server ends at one that cannot be used.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Final, Literal, NamedTuple

_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)
_SERVED: Final = "a key is Ed25519, ECDSA on P-256 or P-384, or RSA of 2048, 3072 or 4096 bits with exponent 65537"
"""What the HTTP server takes, which is less than OpenSSL does: it ends the process at any other."""


class Unusable(NamedTuple):
    """Which file of a pair cannot be used, and why, in a sentence."""

    of: Literal["certificate", "key"]
    why: str


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> Unusable | None:
    """Let a context show a certificate (with its chain), PEM; return what of it and its private key cannot be used.

    A password of a key is never asked for: a key that needs one cannot be used.
    """
    files: dict[Literal["certificate", "key"], Path] = {"certificate": certificate, "key": key}
    for of, path in files.items():
        try:
            path.open("rb").close()
        except OSError as error:
            return Unusable(of, f"{path} {_why(error, '')}.")
    try:
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        return _unfit(certificate, key, error.reason)
    return None


def _unfit(certificate: Path, key: Path, reason: str | None) -> Unusable:
    """Return what is wrong with a pair of which each can be read, and that is none."""
    from cryptography import x509  # noqa: PLC0415 - where they are no pair

    if reason == "KEY_VALUES_MISMATCH":
        return Unusable("key", f"{key} is not the key of {certificate}.")
    try:
        x509.load_pem_x509_certificates(certificate.read_bytes())
    except ValueError:
        return Unusable("certificate", f"{certificate} holds no certificate as PEM.")
    return Unusable("key", f"{key} holds no private key as PEM without a password.")


def unusable_pair(certificate: str, key: str) -> Unusable | None:
    """Return what of a certificate (with its chain) and its private key, PEM, a server cannot be known by.

    None where it can be known by both, and where they are not both there.
    """
    if not all(path and Path(path).is_file() for path in (certificate, key)):
        return None
    if found := load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), Path(certificate), Path(key)):
        return found
    if _CERTIFICATE not in Path(certificate).read_bytes():
        return Unusable("certificate", f"{certificate} holds no CERTIFICATE as PEM.")
    return None if _is_served(Path(key).read_bytes()) else Unusable("key", f"{key} cannot be used: {_SERVED}.")


def _is_served(pem: bytes) -> bool:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - where files are named
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    found = _PRIVATE_KEY.search(pem)
    if found is None:
        return False
    try:
        key = load_pem_private_key(found[0], password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    if isinstance(key, rsa.RSAPrivateKey):
        public = key.public_key()
        return public.key_size in {2048, 3072, 4096} and public.public_numbers().e == 65537
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.curve.name in {"secp256r1", "secp384r1"}
    return isinstance(key, ed25519.Ed25519PrivateKey)


def unusable_authorities(path: str) -> str | None:
    """Return why a file does not say which authorities are trusted; None where it does."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=path)
    except OSError as error:
        return f"{path} {_why(error, 'holds no certificates as PEM')}."
    return None


def invalid_now(path: str, now: float) -> str | None:
    """Return which certificate of a file is not valid at a time (Unix, seconds); None where there is none."""
    from cryptography import x509  # noqa: PLC0415 - where files are named

    try:
        certificates = x509.load_pem_x509_certificates(Path(path).read_bytes())
    except (OSError, ValueError):
        return None
    for each in certificates:
        begins, ends = each.not_valid_before_utc, each.not_valid_after_utc
        if not begins.timestamp() <= now <= ends.timestamp():
            what = f"{path} holds a certificate that is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC"
            return f"{what}, not now: whoever checks it refuses the connection."
    return None


def _why(error: OSError, unread: str) -> str:
    return unread if isinstance(error, ssl.SSLError) else f"cannot be read: {error.strerror or error}"
