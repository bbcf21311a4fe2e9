"""A service's own files: its folder for one process, its identity key, and its certificate."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import ipaddress
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from hansa.core.errors import HansaError

KEY: Final = "identity.pem"
CERTIFICATE: Final = "certificate.pem"
CERTIFICATE_KEY: Final = "certificate-key.pem"
_LOCK: Final = "lock"
_KEY_LOCK: Final = "identity.lock"
_DAYS: Final = 3650
"""Days of its own certificate, which the server's operator trusts as it is: renewing it would be another to trust."""
_BEHIND: Final = timedelta(hours=1)


@dataclass(frozen=True)
class OwnFiles:
    """A service's folder, for its owner only. ``noun``: what the service is, in sentences and codes of errors."""

    place: Path
    noun: str

    def make(self) -> Path:
        """Make the folder; return it. Raises HansaError where that fails."""
        try:
            self.place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self.unusable(f"it cannot be made: {error.strerror or error}.") from None
        return self.place

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for this process. Raises HansaError where another has it."""
        descriptor = os.open(self.make() / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self.unusable(f"another {self.noun} uses it.") from None
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def turn(self, lock: str) -> Iterator[None]:
        """Let no other process do meanwhile what this lock is for."""
        descriptor = os.open(self.make() / lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def identity(self) -> Ed25519PrivateKey:
        """Return the identity key, made at the first call. Raises HansaError for a file that holds none."""
        path = self.make() / KEY
        with self.turn(_KEY_LOCK):  # of two that begin at once, one makes it
            if not path.exists():
                write(path, _private_pem(Ed25519PrivateKey.generate()), 0o600)
        try:
            read = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError):
            read = None
        if not isinstance(read, Ed25519PrivateKey):
            raise self.unusable(f"{KEY} holds no Ed25519 key.")
        return read

    def certificate(self, names: Sequence[str]) -> tuple[Path, Path]:
        """Return the files of the service's own certificate and its key; made where there are none."""
        paths = self.place / CERTIFICATE, self.place / CERTIFICATE_KEY
        if not all(path.exists() for path in paths):
            key = ec.generate_private_key(ec.SECP256R1())
            write(paths[1], _private_pem(key), 0o600)
            write(paths[0], _self_signed(key, names, self.noun).public_bytes(Encoding.PEM), 0o644)
        return paths

    def unusable(self, found: str) -> HansaError:
        """Return the error of a folder that the service cannot use."""
        return HansaError(
            f"HANSA-{self.noun.upper()}-FOLDER",
            rule=f"The {self.noun} keeps its key and all that it must not forget in a folder of its own.",
            found=f"{self.place}: {found}",
            action="Mend it; never start again from an older copy, in which what happened since has not happened.",
        )


def fingerprint(key: bytes) -> str:
    """Return what people compare of a public key: its SHA-256, in groups of four digits."""
    digits = hashlib.sha256(key).hexdigest()
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def _self_signed(key: ec.EllipticCurvePrivateKey, names: Sequence[str], noun: str) -> x509.Certificate:
    now, public = datetime.now(UTC), key.public_key()
    named = x509.SubjectKeyIdentifier.from_public_key(public).digest.hex()  # its own: those of several lie in one file
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Hansa {noun} {named[:16]}")])
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(own)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEHIND)
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .add_extension(x509.SubjectAlternativeName([*map(_alternative, names)]), critical=False)
        .sign(key, hashes.SHA256())
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private_pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is there whole or not at all, and never readable for others before its mode is set."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
