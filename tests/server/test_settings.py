"""Settings of the server: defaults, the file, the environment over it, and every problem at once."""

from __future__ import annotations

import datetime as dt
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from tests.server.authority import Authority

from hansa.core import schema
from hansa.core.certificate_files import unusable_pair
from hansa.core.errors import SettingsError
from hansa.server.settings import ServerSettings, read_settings, settings_table


def problems_of(path=None, **environment):
    with pytest.raises(SettingsError) as caught:
        read_settings(path, environment)
    assert caught.value.code == "HANSA-SERVER-SETTINGS"
    return {problem.path: problem.message for problem in caught.value.problems}


def test_without_a_file_the_server_keeps_everything_in_one_folder_for_its_owner_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = read_settings(None, {})
    place = settings.make_folder()
    assert place == tmp_path / "hansa-server"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert settings.database_url == f"sqlite+aiosqlite:///{place}/hansa.sqlite"
    assert (settings.blobs_url, settings.keys_url) == (f"{place}/blobs", f"{place}/keys")
    assert settings.url == "https://localhost:8443"


def test_the_environment_lies_over_the_file(tmp_path):
    path = tmp_path / "hansa.toml"
    path.write_text('port = 9000\nhost = "0.0.0.0"\nhost_names = ["a.example.org"]\nlog_level = "warning"\n')
    settings = read_settings(
        path, {"HANSA_SERVER_PORT": "9443", "HANSA_SERVER_HOST_NAMES": "b.example.org, 10.0.0.7", "HANSA_SERVER": "x"}
    )
    assert settings.port == 9443
    assert settings.host == "0.0.0.0"  # noqa: S104 - listens on all addresses
    assert settings.host_names == ("b.example.org", "10.0.0.7")
    assert settings.log_level == "warning"


def test_every_setting_has_a_variable_a_default_and_a_help():
    table = {setting.name: setting for setting in settings_table()}
    for name, declared in schema.fields_of(ServerSettings).items():
        assert declared.help, name
        assert table[f"HANSA_SERVER_{name.upper()}"].help == declared.help


@pytest.mark.parametrize("name", schema.fields_of(ServerSettings))
def test_every_setting_can_be_given_by_the_environment(name, tmp_path):
    authority = Authority(tmp_path / "ca")
    certificate, key = map(str, authority.issue("server"))
    beside = {
        "tls_certificate": {"tls": "files", "tls_key": key},
        "tls_key": {"tls": "files", "tls_certificate": certificate},
        "tls": {},
        "client_certificates": {"client_ca": str(authority.ca)},
        "client_ca": {"client_certificates": "optional"},
    }
    values = {
        "database": "postgresql+psycopg://host/name",
        "public_url": "https://hansa.example.org",
        "tls": "off",
        "client_certificates": "required",
        "http2": "false",
        "shared_caches": "true",
        "log_level": "debug",
        "largest_update_weight": "1000",
        "log_format": "json",
        "code_allow": "our.pieces:*, other:Thing",
        "host_names": '["a", "b"]',
        "decryptor_urls": "https://a.example:8444, https://b.example:8444",
        "authority_urls": "https://a.example:8445",
        "tls_certificate": certificate,
        "tls_key": key,
        **dict.fromkeys(("client_ca", "enrolment_ca", "decryptor_ca", "authority_ca"), str(authority.ca)),
    }
    default = getattr(ServerSettings(), name)
    text = values.get(name) or (str(default * 2) if isinstance(default, int | float) and default else "7")
    environment = {f"HANSA_SERVER_{key.upper()}": value for key, value in {**beside.get(name, {}), name: text}.items()}
    assert getattr(read_settings(None, environment), name) != default


def test_every_problem_is_told_at_once_at_its_key_or_variable(tmp_path):
    path = tmp_path / "hansa.toml"
    path.write_text('prot = 9000\nmax_attempts = 0\ntls = "files"\nreplica = "a b"\ncode_allow = ["os"]\n')
    found = problems_of(path, HANSA_SERVER_PORT="many", HANSA_SERVER_TLS_KEY="/no/such", HANSA_SERVER_LOG_LEVLE="info")
    assert "did you mean 'port'?" in found["prot"]
    assert "greater than or equal to 1" in found["max_attempts"]
    assert "is needed with tls" in found["tls_certificate"]
    assert "letters" in found["replica"]
    assert "package.module:name" in found["code_allow.0"]
    assert "valid integer" in found["HANSA_SERVER_PORT"]
    assert "there is no file /no/such" in found["HANSA_SERVER_TLS_KEY"]
    assert "did you mean 'HANSA_SERVER_LOG_LEVEL'?" in found["HANSA_SERVER_LOG_LEVLE"]


@pytest.mark.parametrize(
    ("content", "told"), [(b"port = ", "no TOML"), (b"\xff", "not UTF-8"), (None, "cannot be read")]
)
def test_a_file_that_cannot_be_read_is_a_problem_of_that_file(tmp_path, content, told):
    path = tmp_path / "hansa.toml"
    if content is not None:
        path.write_bytes(content)
    assert told in problems_of(path)[str(path)]


def test_a_database_password_is_not_in_the_representation():
    assert "secret" not in repr(ServerSettings(database="postgresql+psycopg://user:secret@host/name"))


def test_files_of_certificates_that_cannot_be_used_are_told_before_anything_is_served(tmp_path):
    authority = Authority(tmp_path / "ca")
    (certificate, key), (_, other) = authority.issue("one"), authority.issue("another")
    empty, garbage, locked = (tmp_path / name for name in ("empty.pem", "garbage.pem", "locked.pem"))
    empty.write_text("")
    garbage.write_text("no certificate")
    form = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"a password")
    locked.write_bytes(authority.key.private_bytes(serialization.Encoding.PEM, *form))
    found = problems_of(
        HANSA_SERVER_CLIENT_CERTIFICATES="optional",
        HANSA_SERVER_CLIENT_CA=str(empty),
        HANSA_SERVER_ENROLMENT_CA=str(garbage),
        HANSA_SERVER_DECRYPTOR_CA=str(garbage),
    )
    assert set(found) == {f"HANSA_SERVER_{name}_CA" for name in ("CLIENT", "ENROLMENT", "DECRYPTOR")}
    assert all("holds no certificates" in message for message in found.values())
    for pair, of, told in (
        ((certificate, other), "KEY", f"{other} is not the key of {certificate}."),
        ((garbage, key), "CERTIFICATE", f"{garbage} holds no certificate as PEM."),
        ((certificate, garbage), "KEY", f"{garbage} holds no private key as PEM without a password."),
        ((authority.ca, locked), "KEY", f"{locked} holds no private key as PEM without a password."),
    ):
        files = {"HANSA_SERVER_TLS_CERTIFICATE": str(pair[0]), "HANSA_SERVER_TLS_KEY": str(pair[1])}
        assert problems_of(HANSA_SERVER_TLS="files", **files)[f"HANSA_SERVER_TLS_{of}"] == told


@pytest.mark.parametrize("noun", ["decryptor", "authority"])
def test_a_certificate_that_is_not_made_yet_is_told_with_the_order(noun):
    name = f"HANSA_SERVER_{noun.upper()}_CA"
    found = problems_of(**{name: "/no/such"})[name]
    assert found.startswith("there is no file /no/such. ")
    assert f"leave {noun}_ca and {noun}_urls out until then" in found


def test_a_url_that_is_none_is_shown_cut():
    found = problems_of(HANSA_SERVER_AUTHORITY_URLS="authority.example:8445, ftp://me:secret@a, " + "x" * 200)
    shown = " ".join(found.values())
    assert "is 'authority.example:8445'; it must be a URL such as https://authority.example.org:8445" in shown
    assert f"is '{'x' * 60}'; it must" in shown
    assert "secret" not in shown


def self_signed(folder, key, algorithm):
    """The files of a certificate of a key, and of that key."""
    now, name = dt.datetime.now(dt.UTC), x509.Name([])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1)).sign(
        key, algorithm
    )
    paths, pem = (folder / "certificate.pem", folder / "key.pem"), serialization.Encoding.PEM
    paths[0].write_bytes(made.public_bytes(pem))
    paths[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return paths


UNSERVED = {
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "Ed448": ed448.Ed448PrivateKey.generate,
    "RSA 2056": lambda: rsa.generate_private_key(65537, 2056),
    "RSA of exponent 3": lambda: rsa.generate_private_key(3, 2048),
}
SERVED = {
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA 2048": lambda: rsa.generate_private_key(65537, 2048),
}


@pytest.mark.parametrize("name", [*UNSERVED, *SERVED])
def test_keys_at_which_the_http_server_would_end_are_told_and_others_are_taken(tmp_path, name):
    key = {**UNSERVED, **SERVED}[name]()
    algorithm = None if isinstance(key, ed448.Ed448PrivateKey | ed25519.Ed25519PrivateKey) else hashes.SHA256()
    found = unusable_pair(*map(str, self_signed(tmp_path, key, algorithm)))
    assert (found is None) == (name in SERVED)
    assert found is None or "a key is Ed25519" in found.why


def test_a_certificate_in_a_form_that_openssl_alone_reads_is_told(tmp_path):
    certificate, key = self_signed(tmp_path, ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    certificate.write_bytes(certificate.read_bytes().replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE"))
    assert unusable_pair(str(certificate), str(key)) is not None


def test_authorities_without_a_use_and_client_certificates_without_authorities_are_refused(tmp_path):
    ca = str(Authority(tmp_path / "ca").ca)
    assert "has no use" in problems_of(HANSA_SERVER_CLIENT_CA=ca)["HANSA_SERVER_CLIENT_CA"]
    for mode in ("optional", "required"):
        assert "is needed" in problems_of(HANSA_SERVER_CLIENT_CERTIFICATES=mode)["client_ca"]
        off = {"HANSA_SERVER_CLIENT_CERTIFICATES": mode, "HANSA_SERVER_CLIENT_CA": ca, "HANSA_SERVER_TLS": "off"}
        assert "need TLS" in problems_of(**off)["HANSA_SERVER_CLIENT_CERTIFICATES"]
