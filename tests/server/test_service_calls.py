"""Why a service could not be called is told in words: refused, not trusted, expired, unknown."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager

import pytest
from tests.server.authority import Authority

from hansa.core.errors import HansaError
from hansa.core.secure_aggregation import Authority as Named
from hansa.server.authority_calls import AuthorityCalls
from hansa.testing.secagg import Federation


class Clock:
    def now(self):
        return 1e9


@asynccontextmanager
async def listening(certificate, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}"


async def told(url, ca):
    one = Federation(3, settings={"registrar": "authority"})
    calls = AuthorityCalls(one.server_key, Clock(), (url,), str(ca))
    with pytest.raises(HansaError) as caught:
        await calls.vouched(Named(url=url, operator="notary", key="x"), one.task, one.roster.identities)
    assert caught.value.code == "HANSA-AUTHORITY-UNREACHABLE"
    return caught.value.found


def test_a_certificate_that_is_expired_or_of_nobody_who_is_trusted_is_the_reason(tmp_path):
    trusted, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other", "another")

    async def work():
        async with listening(*trusted.issue("old", days=-1)) as url:
            assert await told(url, trusted.ca) == (
                "That of 'notary' cannot be reached: its certificate is not accepted (certificate has expired)."
            )
        async with listening(*other.issue("unknown")) as url:
            assert "not accepted (unable to get local issuer certificate)" in await told(url, trusted.ca)

    asyncio.run(work())


def test_a_refused_connection_and_an_unknown_name_are_the_reason(tmp_path):
    ca = Authority(tmp_path / "ca").ca
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            assert "connection refused" in asyncio.run(told(f"https://{host}:{port}", ca))
    assert "its name is not known" in asyncio.run(told("https://nohost.invalid", ca))


def test_what_speaks_no_tls_is_told_as_such(tmp_path):
    async def answers(_, writer):
        writer.write(b"HTTP/1.1 400\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async def work():
        async with await asyncio.start_server(answers, "127.0.0.1", 0) as plain:
            url = f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}"
            assert "TLS fails (" in await told(url, Authority(tmp_path / "ca").ca)

    asyncio.run(work())
