"""Whether files can serve for TLS: looked at when settings are read, for the HTTP server ends at one that cannot."""

from __future__ import annotations

import ssl
from pathlib import Path


def unusable_pair(certificate: str, key: str) -> str | None:
    """Return why a certificate (with its chain) and its private key, PEM, cannot be used.

    None where they can, and where they are not both there. A password of a key is never asked for: a key that needs one
    cannot be used.
    """
    if not all(path and Path(path).is_file() for path in (certificate, key)):
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except OSError as error:
        why = _why(error, "they are no certificate and its private key without a password, PEM")
        return f"{certificate} and {key} cannot be used: {why}."
    return None


def unusable_authorities(path: str) -> str | None:
    """Return why a file does not say which authorities are trusted; None where it does."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=path)
    except OSError as error:
        return f"{path} cannot be used: {_why(error, 'it holds no certificates as PEM')}."
    return None


def _why(error: OSError, unread: str) -> str:
    return unread if isinstance(error, ssl.SSLError) else (error.strerror or str(error))
