"""A certificate authority of a test's own."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_USES = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder, name: str = "an authority") -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        folder.mkdir()
        self.ca = folder / "ca.pem"
        self.certificate = self._made(name, self.key.public_key(), authority=True)
        self.ca.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _made(self, name: str, key, *, authority: bool = False, days: float = 1) -> x509.Certificate:
        now, subject = dt.datetime.now(dt.UTC), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = subject if authority else self.certificate.subject
        usage = dict.fromkeys(
            ("key_encipherment", "content_commitment", "data_encipherment", "key_agreement", "encipher_only"), False
        )
        signs = x509.KeyUsage(
            digital_signature=True, key_cert_sign=authority, crl_sign=authority, decipher_only=False, **usage
        )
        builder = (
            x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=2))
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(signs, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if not authority:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName("a.test"), x509.DNSName("localhost")]), critical=False
            )
            builder = builder.add_extension(x509.ExtendedKeyUsage([*_USES]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name: str, *, days: float = 1) -> tuple[Path, Path]:
        """Return the files of a certificate that ends so many days from now, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        made = self._made(name, key.public_key(), days=days)
        paths = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        paths[0].write_bytes(made.public_bytes(encoding))
        paths[1].write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
        return paths
