"""Enrolment: an invitation, or a certificate of an authority that the operator trusts, and a key become a client."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from hansa.core.errors import RefusedError, StoreConflictError
from hansa.core.killpoints import reached
from hansa.server.eligibility import older
from hansa.server.services import Services
from hansa.server.settings import ServerSettings
from hansa.server.tokens import DEFAULT_TENANT
from hansa.store.records import Client, Population
from hansa.wire.generated.federation_pb2 import EnrolRequest, RotateKeyRequest
from hansa.wire.signatures import bad_signature, client_key, enrolment, verify
from hansa.wire.strict_json import read_json

_LONGEST: Final = 256
"""The most characters of an attribute's value or a version."""
_MOST: Final = 64
"""The most attributes of a client."""


async def enrol(services: Services, request: EnrolRequest) -> tuple[Client, Population]:
    """Return the client that an enrolment makes; the same key again gets the same client. Raises RefusedError."""
    public_key = bytes(request.public_key)
    by_certificate = bool(request.certificates)
    secret = bytes(request.certificates[0]) if by_certificate else request.token
    if not secret:
        raise refused_token()
    verify(public_key, bytes(request.key_proof), enrolment(secret))
    name = _certified(services, request, enrolment(secret)) if by_certificate else None
    if name is not None:
        _require_open(services.settings, request.population)
    now = services.clock.now()
    attributes = read_attributes(request.attributes)
    check_version(request.client_version)
    declared: dict[str, Any] = {
        "attributes": attributes,
        "version": request.client_version,
        "consent": request.consent,
    }
    if name is None:
        await _require_invitation(services, request.token)
    async with services.store.transaction() as rows:
        if name is None:
            digest = hashlib.sha256(request.token.encode()).hexdigest()
            client = await rows.clients.redeem(digest, public_key=public_key, at=now, **declared)
        else:
            tenant, _, of = request.population.partition("/")
            owner = await rows.tenants.named(tenant)
            named = None if owner is None else await rows.populations.named(owner.id, of)
            if named is None:
                raise refused_certificate("It names a population that is not here (write TENANT/POPULATION).")
            client = await rows.clients.enrol(named.id, name=name, public_key=public_key, at=now, **declared)
        population = await rows.populations.get(client.population)
        if population is None:
            raise LookupError("a client has a population")
        check_declared(population, attributes, request.client_version)
    reached("server.enrolled")
    services.clients.drop(client.id)
    return client, population


async def _require_invitation(services: Services, token: str) -> None:
    """Raise RefusedError for a token that nobody was given, before anything waits to be written."""
    async with services.store.reading() as rows:
        if not await rows.clients.is_invited(hashlib.sha256(token.encode()).hexdigest()):
            raise refused_token()


async def rotate_key(services: Services, client: Client, request: RotateKeyRequest) -> None:
    """Give a client another key of which it shows that it has it. Raises RefusedError for a key that is taken."""
    public_key = bytes(request.public_key)
    verify(public_key, bytes(request.key_proof), client_key(client.id))
    if public_key == client.public_key:
        return
    now = services.clock.now()
    try:
        async with services.store.transaction() as rows:
            await rows.clients.set_key(client.id, public_key)
            await rows.events.add("client.key-rotated", tenant=client.tenant, at=now, client=client.id)
    except StoreConflictError:
        raise bad_signature() from None  # another client's key: nothing is told of it
    services.clients.drop(client.id)


def read_attributes(given: Mapping[str, str]) -> dict[str, Any]:
    """Return attributes from their JSON. Raises RefusedError for what is no number, text or truth value."""
    if len(given) > _MOST:
        raise _attributes(f"There are {len(given)}, and {_MOST} are the most.")
    read: dict[str, Any] = {}
    for name, text in given.items():
        try:
            value = read_json(text.encode()) if len(text) <= _LONGEST else None
        except ValueError:
            value = None
        if not isinstance(value, str | bool | int | float) or "\0" in f"{name}{value}":
            raise _attributes(f"{name[:40]!r} is no JSON text, number or truth value of at most {_LONGEST} characters.")
        read[name] = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return read


def check_version(version: str) -> None:
    """Raise RefusedError for what is too long for a version, or no text that a database keeps."""
    if len(version) > _LONGEST or "\0" in version:
        raise RefusedError(
            "HANSA-CLIENT-VERSION",
            rule=f"A client's version is a text of at most {_LONGEST} characters.",
            found="This one is longer, or has a NUL.",
            action="Send the version of the client's software.",
        )


def check_declared(population: Population, attributes: Mapping[str, Any], version: str) -> None:
    """Raise RefusedError unless what a client declares fits its population."""
    check_version(version)
    if older(version, population.minimum_version):
        raise RefusedError(
            "HANSA-CLIENT-VERSION",
            rule=f"Clients of this population are of version {population.minimum_version} or newer.",
            found=f"This one is {version[:40] or 'of no version'}.",
            action="Update Hansa on the client.",
        )
    types = {"string": str, "number": float, "boolean": bool}
    for name, value in attributes.items():
        wanted = population.schema.get(name)
        if wanted is None:
            known = ", ".join(sorted(population.schema)) or "none"
            raise _attributes(f"{name[:40]!r} is not declared for this population (known: {known}).")
        if not isinstance(value, types[wanted]):
            raise _attributes(f"{name[:40]!r} must be a {wanted}.")


def _require_open(settings: ServerSettings, population: str) -> None:
    """Raise RefusedError unless certificates enrol in a population: one authority is not that of every tenant."""
    of_default = not settings.enrolment_populations and population.startswith(f"{DEFAULT_TENANT}/")
    if not of_default and population not in settings.enrolment_populations:
        raise refused_certificate("It names a population that certificates do not enrol in (write TENANT/POPULATION).")


def _certified(services: Services, request: EnrolRequest, challenge: bytes) -> str:
    """Return the common name of a certificate of a trusted authority whose key signed this enrolment."""
    settings = services.settings
    if not settings.enrolment_ca:
        raise refused_certificate("This server trusts no authority for it.")
    try:
        with open(settings.enrolment_ca, "rb") as file:  # noqa: PTH123 - one small file
            roots = x509.load_pem_x509_certificates(file.read())
        leaf, *chain = [x509.load_der_x509_certificate(bytes(each)) for each in request.certificates[:8]]
        PolicyBuilder().store(Store(roots)).build_client_verifier().verify(leaf, chain)
        _verify_by(leaf.public_key(), bytes(request.certificate_proof), challenge + bytes(request.public_key))
        names = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    except (ValueError, VerificationError):
        raise refused_certificate("It does not chain to a trusted authority, or is not valid now.") from None
    if len(names) != 1 or not names[0].value:
        raise refused_certificate("Its subject has no common name.")
    return str(names[0].value)


def _verify_by(key: Any, signature: bytes, content: bytes) -> None:
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, content)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
            key.verify(signature, content, pss, hashes.SHA256())
        else:
            raise refused_certificate("Its key is neither Ed25519, ECDSA nor RSA.")
    except InvalidSignature:
        raise bad_signature() from None


def refused_token() -> RefusedError:
    """Return what to say of an invitation that lets nobody in."""
    return RefusedError(
        "HANSA-ENROL-TOKEN",
        rule="An invitation lets in as many clients as it says, until it expires.",
        found="This one is unknown, used up or expired.",
        action="Ask the operator for another.",
    )


def refused_certificate(found: str) -> RefusedError:
    """Return what to say of a certificate that does not enrol."""
    return RefusedError(
        "HANSA-ENROL-CERTIFICATE",
        rule="A client certificate enrols where its authority is trusted for it.",
        found=found,
        action="Ask the operator which authority is trusted (enrolment_ca).",
    )


def _attributes(found: str) -> RefusedError:
    return RefusedError(
        "HANSA-CLIENT-ATTRIBUTES",
        rule="Attributes are those that the population's schema declares.",
        found=found,
        action="Correct the client's attributes.",
    )
