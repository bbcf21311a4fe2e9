"""Why a service was not reached, as the server that calls it says."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from contextlib import asynccontextmanager

import pytest
from tests.server.authority import Authority
from tests.server.by_hand import FakeClock, run_async

from hansa.core.errors import HansaError
from hansa.core.secure_aggregation import Authority as Vouching
from hansa.server.authority_calls import unreachable
from hansa.server.service_calls import Called, ServiceCalls

NOTARY = Vouching(url="https://localhost", operator="notary", key=base64.b64encode(bytes(32)).decode())


class Signs:
    def sign(self, _content):
        return bytes(64)

    def __getattr__(self, _name):
        return bytes(32)


@asynccontextmanager
async def listening(files):
    """Yield the port of a listener of TLS with a certificate and its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    server = await asyncio.start_server(lambda _read, write: write.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def why(port, ca, host="localhost"):
    url = f"https://{host}:{port}"
    to = Called(url, AssertionError, lambda found: unreachable(NOTARY, found))
    calls = ServiceCalls(Signs(), FakeClock(), (url,), str(ca))
    async with calls._client() as client:
        with pytest.raises(HansaError) as caught:
            await calls._post(client, to, "/v1/rosters", b"", 64)
    return caught.value.found


def test_why_a_service_was_not_reached_is_told(tmp_path):
    known, other = Authority(tmp_path / "known"), Authority(tmp_path / "other", "another")

    async def work():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        assert "'notary' cannot be reached: Connection refused" in await why(port, known.ca)
        async with listening(known.issue("expired", days=-1)) as port:
            assert "its certificate is not accepted (certificate has expired)" in await why(port, known.ca)
        async with listening(known.issue("fresh")) as port:
            assert "unable to get local issuer certificate" in await why(port, other.ca)

    run_async(work())
