"""The development authority: what it makes holds in real handshakes, is renewed, and is rotated without a break."""

from __future__ import annotations

import socket
import ssl
import stat
import threading

import pytest

from hansa.core.errors import HansaError
from hansa.server.certificates import DevelopmentAuthority, tls_files
from hansa.server.settings import ServerSettings

START = 1_800_000_000.0
DAY = 86400.0


class Clock:
    def __init__(self, now):
        self.time = now

    def now(self):
        return self.time


@pytest.fixture
def clock():
    import time

    return Clock(time.time())


def handshake(certificate, key, trusted, name="localhost"):
    """Connect with TLS over a socket pair; return what was agreed, or raise as the client does."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    calling = ssl.create_default_context(cadata=trusted)
    calling.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve():
        try:
            with serving.wrap_socket(ours, server_side=True) as connection:
                connection.recv(1)
        except (ssl.SSLError, OSError):
            ours.close()

    server = threading.Thread(target=serve)
    server.start()
    try:
        with calling.wrap_socket(theirs, server_hostname=name) as connection:
            version = connection.version()
            connection.send(b"x")
            return version
    finally:
        theirs.close()
        server.join(5)


def test_what_is_made_at_first_start_is_trusted_for_this_machine_and_the_names_that_are_set(tmp_path, clock):
    settings = ServerSettings(folder=str(tmp_path / "server"), host_names=("hansa.example.org", "10.1.2.3"))
    files = tls_files(settings, clock)
    trusted = files.ca.read_text()
    for name in ("localhost", "127.0.0.1", "::1", "hansa.example.org", "10.1.2.3"):
        assert handshake(files.certificate, files.key, trusted, name).startswith("TLSv1")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(files.certificate, files.key, trusted, "other.example.org")


def test_private_keys_are_for_their_owner_only(tmp_path, clock):
    authority = DevelopmentAuthority(tmp_path / "tls", clock)
    _, key = authority.server(("localhost",))
    for path in (key, tmp_path / "tls" / "ca-key.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700


def test_a_second_start_makes_nothing_anew(tmp_path, clock):
    first = [path.read_bytes() for path in DevelopmentAuthority(tmp_path, clock).server(("localhost",))]
    again = [path.read_bytes() for path in DevelopmentAuthority(tmp_path, clock).server(("localhost",))]
    assert first == again


def test_the_certificate_is_renewed_near_its_end_and_for_other_names_under_the_same_authority(tmp_path):
    clock = Clock(START)
    authority = DevelopmentAuthority(tmp_path, clock)
    bundle = authority.bundle.read_bytes()
    first = authority.server(("localhost",))[0].read_bytes()
    clock.time += 216 * DAY
    assert authority.server(("localhost",))[0].read_bytes() == first
    clock.time += 2 * DAY
    renewed = authority.server(("localhost",))[0].read_bytes()
    assert renewed != first
    assert authority.server(("localhost", "other"))[0].read_bytes() != renewed
    assert authority.bundle.read_bytes() == bundle


def test_after_a_rotation_clients_with_the_old_and_with_the_new_bundle_reach_the_server(tmp_path, clock):
    authority = DevelopmentAuthority(tmp_path, clock)
    old = authority.bundle.read_text()
    authority.rotate()
    new = authority.bundle.read_text()
    certificate, key = authority.server(("localhost",))
    assert old in new
    assert handshake(certificate, key, old)
    assert handshake(certificate, key, new)
    assert handshake(certificate, key, new.replace(old, ""))


def test_an_authority_near_its_end_is_replaced_at_a_start(tmp_path):
    clock = Clock(START)
    old = DevelopmentAuthority(tmp_path, clock).bundle.read_text()
    clock.time += 3300 * DAY
    new = DevelopmentAuthority(tmp_path, clock).bundle.read_text()
    assert old in new
    assert new != old
    clock.time += 400 * DAY
    assert DevelopmentAuthority(tmp_path, clock).bundle.read_text() == new


def test_a_broken_folder_is_told_and_not_overwritten(tmp_path, clock):
    (tmp_path / "ca.pem").write_text("no certificate")
    (tmp_path / "ca-key.pem").write_text("no key")
    with pytest.raises(HansaError, match="cannot be used") as caught:
        DevelopmentAuthority(tmp_path, clock)
    assert caught.value.code == "HANSA-SERVER-SETTINGS"
    assert (tmp_path / "ca.pem").read_text() == "no certificate"


def test_tls_can_be_left_to_a_proxy_or_to_files(tmp_path, clock):
    own = DevelopmentAuthority(tmp_path, clock).server(("localhost",))
    given = {"tls_certificate": str(own[0]), "tls_key": str(own[1])}
    assert tls_files(ServerSettings(tls="off", folder=str(tmp_path / "none")), clock) is None
    files = tls_files(ServerSettings(tls="files", **given), clock)
    assert (files.certificate, files.key, files.ca) == (*own, None)
    assert not (tmp_path / "none").exists()
