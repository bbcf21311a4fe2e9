"""No service shares a port with another, and each is told what to change."""

from __future__ import annotations

import asyncio
import socket

import pytest

from hansa.authority.settings import AuthoritySettings
from hansa.core.errors import HansaError
from hansa.core.listening import refuse_taken
from hansa.decryptor.settings import DecryptorSettings
from hansa.server import serve as of_the_server
from hansa.server.settings import ServerSettings
from hansa.serving.serve import until_told

KEY = "A" * 43 + "="


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("where", ["127.0.0.1", ""])
def test_a_port_that_another_listens_on_is_refused_also_where_it_would_be_shared(tmp_path, shares, where):
    own = {"operator": "x", "server_keys": (KEY,), "folder": str(tmp_path / "own")}
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
        other.bind((where, 0))
        other.listen()
        port = other.getsockname()[1]
        begins = {
            "AUTHORITY": lambda: until_told(None, AuthoritySettings(port=port, **own), pytest.fail),
            "DECRYPTOR": lambda: until_told(None, DecryptorSettings(port=port, registrar="server", **own), pytest.fail),
            "SERVER": lambda: of_the_server.serve(ServerSettings(port=port, folder=str(tmp_path / "server"))),
        }
        for noun, begin in begins.items():
            with pytest.raises(HansaError, match=f"127.0.0.1:{port} cannot be had") as caught:
                asyncio.run(begin())
            assert (caught.value.code, caught.value.action) == (
                f"HANSA-{noun}-SETTINGS", "Stop what listens there, or set port.",
            )  # fmt: skip
    refuse_taken("server", "127.0.0.1", port)
    assert not [*tmp_path.iterdir()], "nothing was made"


@pytest.mark.parametrize("host", ["nohost.invalid", "192.0.2.1", "no host", "a" * 70 + ".test", "::1::"])
def test_a_host_that_is_not_of_this_machine_is_what_to_change(host):
    with pytest.raises(HansaError, match="cannot be had") as caught:
        refuse_taken("server", host, 9443)
    assert caught.value.action.startswith("Set host to an address of this machine")
