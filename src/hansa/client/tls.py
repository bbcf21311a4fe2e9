"""TLS as a caller has it: whom it trusts, which certificate of its own it shows, why that was not taken."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

_REFUSALS: Final = (
    "ALERT_UNKNOWN_CA",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_UNKNOWN",
    "ALERT_CERTIFICATE_REVOKED",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_DECRYPT_ERROR",
)
"""How OpenSSL names what a server says of a certificate that it does not accept."""


def context(ca: Path | None, certificate: tuple[Path, Path] | None) -> ssl.SSLContext:
    """Return what a connection is made by: an authority (None: the system's), and a certificate and key, all PEM.

    Raises OSError for files that cannot be read. A password of a key is never asked for.
    """
    made = ssl.create_default_context(cafile=None if ca is None else str(ca))
    if certificate is not None:
        made.load_cert_chain(*certificate, password="")
    return made


def hint(reason: str) -> str:
    """Return a sentence on a connection that failed where it was the caller's certificate; else nothing."""
    if "ALERT_CERTIFICATE_REQUIRED" in reason:
        return "The server wants a client certificate: HANSA_CERTIFICATE and HANSA_CERTIFICATE_KEY name its files."
    if any(each in reason for each in _REFUSALS):
        return "The server does not accept this caller's certificate: is it of the right authority, and valid now?"
    return ""
