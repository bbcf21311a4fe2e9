"""A certificate authority of the server's own, for development and for small federations without one.

Made at first start: ``tls/ca.pem`` is what clients trust (``--ca``), ``ca-key.pem`` stays here, ``server.pem`` is the
server's certificate with its chain. The server's certificate is renewed by itself. A new authority is signed by the
old one too, and that certificate is part of the chain: whoever trusts the old ``ca.pem`` reaches the server until the
old authority expires, whoever has the new one for as long as that lasts.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hansa.core.clock import Clock
from hansa.core.errors import HansaError
from hansa.server.settings import ServerSettings

FOLDER: Final = "tls"
_CA_DAYS: Final = 3650
_CA_RENEWED_DAYS: Final = 365
"""Days before its end at which another authority is made."""
_SERVER_DAYS: Final = 397
_SERVER_RENEWED_DAYS: Final = 180
"""Days before its end at which the server's certificate is made anew, when the server starts."""
_BEHIND: Final = timedelta(hours=1)
"""How much earlier than now certificates begin, for clients whose clocks are behind."""
_ALWAYS: Final = ("localhost", "127.0.0.1", "::1")

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class TlsFiles:
    """What a server needs for TLS; ``ca`` is what clients trust, None where that is somebody else's authority.

    ``client_ca`` is what certificates of connections are checked by, None where none is asked for.
    """

    certificate: Path
    key: Path
    ca: Path | None
    client_ca: Path | None


def tls_files(settings: ServerSettings, clock: Clock) -> TlsFiles | None:
    """Return the files for TLS, made or renewed where they are the server's own; None where TLS is off."""
    client_ca = None if settings.client_certificates == "none" else Path(settings.client_ca)
    if settings.tls == "off":
        return None
    if settings.tls == "files":
        return TlsFiles(Path(settings.tls_certificate), Path(settings.tls_key), None, client_ca)
    authority = DevelopmentAuthority(settings.make_folder() / FOLDER, clock)
    certificate, key = authority.server((*_ALWAYS, *settings.host_names))
    return TlsFiles(certificate, key, authority.bundle, client_ca)


class DevelopmentAuthority:
    """The authority in a folder: made when first used, made anew before it expires. Raises HansaError."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self.bundle = folder / "ca.pem"
        self._key = folder / "ca-key.pem"
        self._cross = folder / "ca-cross.pem"
        self._clock = clock
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (self.bundle.is_file() and self._key.is_file()):
                self._make(previous=None)
            elif self._ends_within(self._current(), _CA_RENEWED_DAYS):
                self.rotate()
        except (OSError, ValueError) as error:
            raise _unusable(folder, error) from error

    def rotate(self) -> None:
        """Make another authority; the last one vouches for it, and clients that trust the last go on."""
        self._make(previous=(self._current(), _read_key(self._key)))
        for name in ("server.pem", "server-key.pem"):
            (self.folder / name).unlink(missing_ok=True)

    def server(self, names: Iterable[str]) -> tuple[Path, Path]:
        """Return the server's certificate with its chain, and its key; renewed near its end or for other names."""
        certificate, key = self.folder / "server.pem", self.folder / "server-key.pem"
        wanted = tuple(dict.fromkeys(names))
        try:
            if not (certificate.is_file() and key.is_file()) or self._stale(certificate, wanted):
                self._issue(certificate, key, wanted)
        except (OSError, ValueError) as error:
            raise _unusable(self.folder, error) from error
        return certificate, key

    def _stale(self, path: Path, names: Sequence[str]) -> bool:
        held = x509.load_pem_x509_certificates(path.read_bytes())[0]
        alternatives = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return list(alternatives) != _alternatives(names) or self._ends_within(held, _SERVER_RENEWED_DAYS)

    def _ends_within(self, certificate: x509.Certificate, days: float) -> bool:
        return certificate.not_valid_after_utc - self._now() < timedelta(days=days)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now(), UTC)

    def _current(self) -> x509.Certificate:
        """Return the authority that signs: the first of the bundle."""
        return x509.load_pem_x509_certificates(self.bundle.read_bytes())[0]

    def _make(self, previous: tuple[x509.Certificate, Key] | None) -> None:
        """Write an authority: its key first, then the certificate that the last signs, then the bundle of both."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(f"Hansa development CA {self._now():%Y-%m-%d} {os.urandom(4).hex()}")
        own = self._authority(key, subject, subject, key)
        bundle = [own]
        cross = b""
        if previous is not None:
            last, last_key = previous
            cross = _pem(self._authority(key, subject, last.subject, last_key, until=last.not_valid_after_utc))
            bundle += [
                held
                for held in x509.load_pem_x509_certificates(self.bundle.read_bytes())
                if not self._ends_within(held, 0)
            ]
        _write(self._key, _key_pem(key), 0o600)
        _write(self._cross, cross, 0o644)
        _write(self.bundle, b"".join(map(_pem, bundle)), 0o644)

    def _authority(
        self, key: Key, subject: x509.Name, issuer: x509.Name, signer: Key, *, until: datetime | None = None
    ) -> x509.Certificate:
        usage = {"key_cert_sign": True, "crl_sign": True, "digital_signature": True}
        ends = until or self._now() + timedelta(days=_CA_DAYS)
        return (
            self._builder(key, subject, issuer, signer, usage, ends)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(signer, hashes.SHA256())
        )

    def _issue(self, certificate: Path, key: Path, names: Sequence[str]) -> None:
        """Write a certificate of the server for some names, with the chain to the last authority."""
        own, authority = ec.generate_private_key(ec.SECP256R1()), _read_key(self._key)
        issuer = self._current().subject
        ends = min(self._now() + timedelta(days=_SERVER_DAYS), self._current().not_valid_after_utc)
        issued = (
            self._builder(own, _name("Hansa server"), issuer, authority, {"digital_signature": True}, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(_alternatives(names)), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(authority, hashes.SHA256())
        )
        _write(key, _key_pem(own), 0o600)
        _write(certificate, _pem(issued) + self._cross.read_bytes(), 0o644)

    def _builder(  # noqa: PLR0913, PLR0917 - the parts of a certificate
        self, key: Key, subject: x509.Name, issuer: x509.Name, signer: Key, usage: dict[str, bool], ends: datetime
    ) -> x509.CertificateBuilder:
        public = key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now() - _BEHIND)
            .not_valid_after(ends)
            .add_extension(x509.KeyUsage(**{**dict.fromkeys(_USAGES, False), **usage}), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )


_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _alternatives(names: Sequence[str]) -> list[x509.GeneralName]:
    """Return host names and addresses as a certificate holds them."""
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read_key(path: Path) -> Key:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Key):
        raise ValueError(f"{path} holds another kind of key")  # noqa: TRY004 - of a file, not of an argument
    return key


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is there whole or not at all, and never readable for others before its mode is set."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    temporary.replace(path)


def _unusable(folder: Path, error: Exception) -> HansaError:
    return HansaError(
        "HANSA-SERVER-SETTINGS",
        rule="The development certificates lie in the server's folder and can be read.",
        found=f"Those in {folder} cannot be used: {error}.",
        action="Mend the folder, or move it away: a new authority is made, and clients need its ca.pem.",
    )
