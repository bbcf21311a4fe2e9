"""A client behind a proxy of its site: everything goes through a tunnel, in which there is nothing to read."""

from __future__ import annotations

import base64
import select
import socket
import ssl
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fake_server import SECURE, TOKEN, FakeServer, job_of
from test_secure_sums import peers, work
from tests.server.authority import Authority

from hansa.client import Agent, Policy
from hansa.client.policy import SecureSums
from hansa.client.transport import Reach
from hansa.core.errors import RefusedError


class Tunnels(ThreadingHTTPServer):
    """A proxy that knows CONNECT only: where to it was asked, with which credentials, and what passed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.asked: list[tuple[str, str]] = []
        self.credentials: set[str | None] = set()
        self.passed = b""
        self.refuses = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Tunnel(BaseHTTPRequestHandler):
    server: Tunnels

    def log_message(self, *arguments) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.server.asked.append((self.command, self.path))
        self.server.credentials.add(self.headers.get("proxy-authorization"))
        if self.server.refuses:
            self.send_error(self.server.refuses)
            return
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port))) as far:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: far, far: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    block = end.recv(65536)
                    if not block:
                        self.close_connection = True
                        return
                    self.server.passed += block
                    ends[end].sendall(block)

    def _other(self) -> None:
        self.server.asked.append((self.command, self.path))
        self.send_error(405)

    do_GET = do_POST = do_PUT = do_HEAD = _other  # noqa: N815 - as the base class calls them


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ca")


@pytest.fixture
def tls_server(authority):
    """The fake server over TLS, for localhost."""
    running = FakeServer()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("localhost"))
    running.http.socket = context.wrap_socket(running.http.socket, server_side=True)
    yield running
    running.close()


@pytest.fixture
def proxy(monkeypatch):
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    running = Tunnels()
    monkeypatch.setenv("HTTPS_PROXY", running.url)
    yield running
    running.close()


def address(server) -> str:
    return f"https://localhost:{server.http.server_port}"


def agent_of(server, authority, data, folder, policy=None):
    return closing(Agent(address(server), data, folder, policy, ca=authority.ca, wait=0.0))


def test_a_client_enrols_and_reports_through_the_tunnel_of_its_proxy(tls_server, proxy, authority, data, tmp_path):
    path = tls_server.assign(job_of())
    with agent_of(tls_server, authority, data, tmp_path / "s") as agent:
        agent.enrol(TOKEN)
        agent.step()
    assert path in tls_server.reports
    assert set(proxy.asked) == {("CONNECT", f"localhost:{tls_server.http.server_port}")}
    assert proxy.passed[:1] == b"\x16", "what passes begins with a handshake of TLS"
    update = tls_server.reports[path]
    assert len(proxy.passed) > len(update)
    for secret in (TOKEN.encode(), update, update[:64], b"hansa.v1.Federation", b"Authorization"):
        assert secret not in proxy.passed


def test_a_secure_sum_goes_through_the_tunnel_too(tls_server, proxy, authority, data, tmp_path):
    policy = Policy(secure_sums=SecureSums(peers=peers(tls_server)))
    path = tls_server.assign_sum(job_of(SECURE))
    with agent_of(tls_server, authority, data, tmp_path / "s", policy) as agent:
        agent.enrol(TOKEN)
        work(agent, lambda: path in tls_server.sums and tls_server.sums[path].result is not None)
    assert {method for method, _ in proxy.asked} == {"CONNECT"}


def test_a_tunnel_that_breaks_is_dug_again_and_the_report_is_the_same(
    tls_server, proxy, authority, data, tmp_path, monkeypatch
):
    monkeypatch.setenv("HANSA_UPLOAD_PART", "60")
    tls_server.cut_uploads = ["after", "before"]
    path = tls_server.assign(job_of())
    with agent_of(tls_server, authority, data, tmp_path / "s") as agent:
        agent.enrol(TOKEN)
        agent.step()
    assert tls_server.reports[path] == tls_server.parts[next(iter(tls_server.parts))]
    assert len(tls_server.parts) == tls_server.answers == 1
    assert len(proxy.asked) > 1


def test_a_proxy_that_asks_for_a_name_gets_it_and_nobody_else_does(
    tls_server, proxy, authority, data, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", "http://site:sesame@"))
    with caplog.at_level("DEBUG"), agent_of(tls_server, authority, data, tmp_path / "s") as agent:
        agent.enrol(TOKEN)
        agent.step()
    assert proxy.credentials == {f"Basic {base64.b64encode(b'site:sesame').decode()}"}
    assert "sesame" not in caplog.text


@pytest.mark.parametrize("status", [403, 407, 502])
def test_a_proxy_that_digs_no_tunnel_is_waited_for_and_nothing_goes_around_it(
    tls_server, proxy, authority, data, tmp_path, status
):
    proxy.refuses = status
    with agent_of(tls_server, authority, data, tmp_path / "s") as agent:
        agent._transport.reach = Reach(address(tls_server), tries=1)
        with pytest.raises(RefusedError) as error:
            agent.enrol(TOKEN)
        assert error.value.code == "HANSA-SERVER-UNREACHABLE"
        assert "proxies" in error.value.action
        assert tls_server.requests == []
        proxy.refuses = 0
        agent.enrol(TOKEN)
    assert len(tls_server.enrolments) == 1


def test_a_proxy_that_reads_along_is_no_server_that_is_trusted(tls_server, proxy, data, tmp_path):
    """It would need a certificate of the authority that the site trusts."""
    with agent_of(tls_server, Authority(tmp_path / "other"), data, tmp_path / "s") as agent:
        agent._transport.reach = Reach(address(tls_server), tries=1)
        with pytest.raises(RefusedError, match=r"certificate|CERTIFICATE"):
            agent.enrol(TOKEN)
    assert tls_server.enrolments == []


def test_a_server_that_no_proxy_is_for_is_called_directly(tls_server, proxy, authority, data, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "localhost")
    with agent_of(tls_server, authority, data, tmp_path / "s") as agent:
        agent.enrol(TOKEN)
    assert proxy.asked == []
    assert len(tls_server.enrolments) == 1
