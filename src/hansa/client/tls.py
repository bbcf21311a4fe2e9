"""TLS as a caller has it: whom it trusts, which certificate of its own it shows, why that was not taken."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

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
    try:
        made = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except OSError as error:
        raise _unusable(_CA, f"{ca} {_why(error, 'holds no certificates as PEM')}") from None
    for place, path in zip((_CERTIFICATE, _KEY), certificate or (), strict=False):
        try:
            path.open("rb").close()
        except OSError as error:
            raise _unusable(place, f"{path} {_why(error, '')}") from None
    if certificate is not None:
        try:
            made.load_cert_chain(*certificate, password="")
        except ssl.SSLError as error:
            raise _unfit(*certificate, error.reason) from None
    return made


def _unfit(certificate: Path, key: Path, reason: str | None) -> RefusedError:
    """Return the error of a pair of which each can be read, and that is none."""
    from cryptography import x509  # noqa: PLC0415 - where they are no pair

    if reason == "KEY_VALUES_MISMATCH":
        return _unusable(_KEY, f"{key} is not the key of {certificate}")
    try:
        x509.load_pem_x509_certificates(certificate.read_bytes())
    except ValueError:
        return _unusable(_CERTIFICATE, f"{certificate} holds no certificate as PEM")
    return _unusable(_KEY, f"{key} holds no private key as PEM without a password")


def _unusable(place: str, found: str) -> RefusedError:
    return RefusedError(
        "HANSA-CERTIFICATE-FILE",
        rule="Files for TLS are PEM: certificates, and a private key without a password.",
        found=f"{found}.",
        action=f"Correct {place}.",
    )


def _why(error: OSError, unread: str) -> str:
    return unread if isinstance(error, ssl.SSLError) else f"cannot be read: {error.strerror or error}"


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
