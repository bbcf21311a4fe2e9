"""TLS as a caller has it: whom it trusts, which certificate of its own it shows, why that was not taken."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from hansa.core.certificate_files import load_pair, unusable_authorities
from hansa.core.errors import RefusedError

_CA: Final = "--ca (HANSA_CA)"
_CERTIFICATE: Final = "HANSA_CERTIFICATE (of an agent also --certificate)"
_KEY: Final = "HANSA_CERTIFICATE_KEY (of an agent also --certificate-key)"
_NAMED: Final = "HANSA_CERTIFICATE and HANSA_CERTIFICATE_KEY (of an agent also --certificate and --certificate-key)"

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

    Raises RefusedError that names the file which cannot be used. A password of a key is never asked for.
    """
    if ca is not None and (why := unusable_authorities(str(ca))):
        raise _unusable(_CA, why)
    made = ssl.create_default_context(cafile=None if ca is None else str(ca))
    if certificate is not None and (found := load_pair(made, *certificate)):
        raise _unusable(_CERTIFICATE if found.of == "certificate" else _KEY, found.why)
    return made


def _unusable(place: str, found: str) -> RefusedError:
    return RefusedError(
        "HANSA-CERTIFICATE-FILE",
        rule="Files for TLS are PEM: certificates, and a private key without a password.",
        found=found,
        action=f"Correct {place}.",
    )


def hint(reason: str) -> str:
    """Return what to do about a connection that failed where it was for the caller's certificate; else nothing."""
    if "ALERT_CERTIFICATE_REQUIRED" in reason:
        return f"The server wants a client certificate: {_NAMED} name its files."
    if any(each in reason for each in _REFUSALS):
        return (
            "The server does not accept this caller's certificate: is it of the right authority, and valid now? "
            f"{_NAMED} name its files."
        )
    return ""
