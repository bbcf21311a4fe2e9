"""Enrolment by a certificate: of an authority that the operator trusts, with a key that signs the client's own."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from hansa.core.errors import RefusedError
from hansa.wire.generated import federation_pb2 as wire
from hansa.wire.signatures import enrolment


def certified(certificate: Path, key: Path, population: str, own: Ed25519PrivateKey) -> wire.EnrolRequest:
    """Return the request to enrol by a certificate (with its chain) and its key, PEM. Raises RefusedError."""
    try:
        chain = x509.load_pem_x509_certificates(certificate.read_bytes())
        private = load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(f"{certificate} or {key} cannot be read ({type(error).__name__}).") from None
    first = chain[0].public_bytes(Encoding.DER)
    challenge = enrolment(first)
    signed = challenge + own.public_key().public_bytes_raw()
    if isinstance(private, ed25519.Ed25519PrivateKey):
        proof = private.sign(signed)
    elif isinstance(private, ec.EllipticCurvePrivateKey):
        proof = private.sign(signed, ec.ECDSA(hashes.SHA256()))
    elif isinstance(private, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
        proof = private.sign(signed, pss, hashes.SHA256())
    else:
        raise _unusable("The key is neither Ed25519, ECDSA nor RSA.")
    return wire.EnrolRequest(
        certificates=[each.public_bytes(Encoding.DER) for each in chain],
        key_proof=own.sign(challenge),
        certificate_proof=proof,
        population=population,
    )


def _unusable(found: str) -> RefusedError:
    return RefusedError(
        "HANSA-ENROL-CERTIFICATE",
        rule="A certificate enrols with its chain and its private key, both PEM.",
        found=found,
        action="Correct the paths, or enrol by a token.",
    )
