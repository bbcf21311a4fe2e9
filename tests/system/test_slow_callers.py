"""Callers who say little for long, against a real server and a real decryptor over TLS: each is cut off.

Limits of half a minute are lowered within the processes; what is waited for has no limit but the test's own.
"""

from __future__ import annotations

import json
import socket
import ssl
from contextlib import ExitStack

import httpx
import pytest

from hansa.cli.local_federation import LocalFederation
from hansa.testing.hooks import hooks
from hansa.testing.hospitals import POPULATION
from hansa.testing.services import hospitals_with, start

SHORT = """
import hansa.serving.bodies as bodies
import hansa.serving.serve as serve

serve._HEADERS = 2.0
bodies._STALL = 1.0
"""
PATIENCE = 60.0
MANY = 200
ENROL = b"POST /hansa.v1.Federation/Enrol HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/proto\r\n"
KEYS = b"POST /v1/keys HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A server with four agents and the decryptor of one operator, and where both listen."""
    folder = tmp_path_factory.mktemp("slow")
    with hospitals_with(folder / "federation", {"north": "decryptor"}, http2="false") as (federation, services):
        short = hooks(folder, SHORT)
        start(federation, services, server=short, north=short)
        yield federation, {"server": federation.local.port, "decryptor": services["north"].port}


def connected(port, protocols=()):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols([*protocols])
    plain = socket.create_connection(("localhost", port), timeout=PATIENCE)
    try:
        return context.wrap_socket(plain, server_hostname="localhost")
    except ssl.SSLError:
        plain.close()
        raise


def rest_of(connection):
    """Return what comes until the other side ends the connection. Raises TimeoutError where it does not."""
    content = b""
    try:
        while chunk := connection.recv(4096):
            content += chunk
    except (ConnectionError, ssl.SSLError):
        pass
    return content


def trickled(connection, seconds=0.1):
    """Send a byte now and then until an answer or the end comes; return what comes."""
    connection.settimeout(seconds)
    for _ in range(int(PATIENCE / seconds)):
        try:
            connection.send(b"a")
            first = connection.recv(4096)
        except TimeoutError:
            continue
        except (ConnectionError, ssl.SSLError):
            return b""
        connection.settimeout(PATIENCE)
        return first + (rest_of(connection) if first else b"")
    raise AssertionError("nobody ended it")


def code_of(answer):
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]


@pytest.mark.parametrize("service", ["server", "decryptor"])
def test_a_connection_on_which_nothing_is_asked_ends(running, service):
    with connected(running[1][service]) as connection:
        assert rest_of(connection) == b""


@pytest.mark.parametrize("service", ["server", "decryptor"])
def test_headers_that_trickle_end(running, service):
    with connected(running[1][service]) as connection:
        connection.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        assert trickled(connection) == b""


@pytest.mark.parametrize("service", ["server", "decryptor"])
def test_without_http_2_nobody_speaks_it(running, service):
    with pytest.raises(ssl.SSLError, match="(?i)no.application.protocol"):
        connected(running[1][service], ("h2",))
    with connected(running[1][service], ("h2", "http/1.1")) as connection:
        assert connection.selected_alpn_protocol() == "http/1.1"


def test_a_strangers_body_that_trickles_ends_with_a_code(running):
    with connected(running[1]["server"]) as connection:
        connection.send(ENROL + b"Content-Length: 60000\r\n\r\n")
        assert code_of(trickled(connection)) == "HANSA-REQUEST-SLOW"


def test_a_decryptor_reads_nothing_of_a_strangers_body(running):
    with connected(running[1]["decryptor"]) as connection:
        connection.send(KEYS + b"Content-Length: 60000\r\n\r\n")
        assert code_of(rest_of(connection)) == "HANSA-AUTH-MISSING"


def test_whoever_is_known_is_answered_while_many_strangers_say_little(running):
    federation, ports = running
    with ExitStack() as stack, federation.calls() as calls:
        strangers = []
        for _ in range(MANY):
            strangers.append(stack.enter_context(connected(ports["server"])))
            strangers[-1].send(ENROL + b"Content-Length: 60000\r\n\r\nab")
        assert len(calls.get(f"/populations/{POPULATION}/clients", limit=100)["clients"]) == 4
        codes = [code_of(rest_of(each)) for each in strangers]
    assert set(codes) == {"HANSA-SERVER-BUSY", "HANSA-REQUEST-SLOW"}


def test_a_server_speaks_http_2_unless_told_otherwise(tmp_path):
    with LocalFederation(tmp_path) as local:
        local.start_server()
        with httpx.Client(http2=True, verify=ssl.create_default_context(cafile=local.ca)) as client:
            answer = client.get(f"{local.url}/healthz")
    assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
