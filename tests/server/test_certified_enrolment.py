"""Enrolling by a certificate: whose, and into what."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.server.by_hand import Device, code_of, deployed, run_async

from hansa.client.certificates import certified
from hansa.store.records import Population
from hansa.wire.generated import federation_pb2 as messages


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder) -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        folder.mkdir()
        self.ca = folder / "ca.pem"
        self.certificate = self._made("an authority", self.key.public_key(), authority=True)
        self.ca.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _made(self, name: str, key, *, authority: bool = False) -> x509.Certificate:
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
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(signs, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if not authority:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("a.test")]), critical=False)
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def request(self, name: str, population: str, device: Device) -> messages.EnrolRequest:
        key = ec.generate_private_key(ec.SECP256R1())
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        paths = self.folder / "c.pem", self.folder / "k.pem"
        paths[0].write_bytes(self._made(name, key.public_key()).public_bytes(encoding))
        paths[1].write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
        request = certified(*paths, population, device.key)
        request.MergeFrom(
            messages.EnrolRequest(
                public_key=device.key.public_key().public_bytes_raw(), client_version="1.0.0", consent=True
            )
        )
        return request


def test_a_certificate_of_a_trusted_authority_enrols_by_its_name_with_one_key(tmp_path):
    async def work():
        authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
        async with deployed(tmp_path, enrolment_ca=str(authority.ca)) as server:
            device, second = (Device(server.http, server.clock) for _ in range(2))
            request = authority.request("a hospital", "default/hospitals", device)
            answers = [await device.call("Enrol", request, header=None) for _ in range(2)]
            told = [messages.EnrolResponse.FromString(answer.content) for answer in answers]
            assert [each.name for each in told] == ["a hospital"] * 2
            assert told[0].client == told[1].client

            for refused in (
                authority.request("a hospital", "default/hospitals", second),
                authority.request("another", "default/none", second),
                other.request("another", "default/hospitals", second),
            ):
                assert code_of(await second.call("Enrol", refused, header=None)) == "HANSA-ENROL-CERTIFICATE"
            stolen = authority.request("a thief", "default/hospitals", device)
            stolen.public_key = second.key.public_key().public_bytes_raw()
            assert code_of(await second.call("Enrol", stolen, header=None)) == "HANSA-AUTH-SIGNATURE"

    run_async(work())


@pytest.mark.parametrize(
    ("allowed", "entered"), [((), False), (("other/phones",), True), (("default/hospitals",), False)]
)
def test_certificates_enrol_with_no_tenant_that_was_not_named_for_it(tmp_path, allowed, entered):
    async def work():
        authority = Authority(tmp_path / "ca")
        settings = {"enrolment_ca": str(authority.ca), "enrolment_populations": allowed}
        async with deployed(tmp_path, **settings) as server:
            async with server.services.store.transaction() as rows:
                other = await rows.tenants.add("other")
                await rows.populations.add(Population("population-2", other.id, "phones"))
            device = Device(server.http, server.clock)
            request = authority.request("a hospital", "other/phones", device)
            answer = await device.call("Enrol", request, header=None)
            assert (answer.status_code == 200) is entered
            if not entered:
                assert code_of(answer) == "HANSA-ENROL-CERTIFICATE"

    run_async(work())
