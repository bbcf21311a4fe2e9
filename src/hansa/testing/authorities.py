"""An authority beside a local federation: a process of an operator of its own, over TLS, whose key sites trust."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hansa.authority.vouched import Vouched
from hansa.cli.local_federation import LocalFederation, free_port
from hansa.serving.own_files import OwnFiles
from hansa.testing.decryptors import server_key
from hansa.testing.hospitals import Hospitals, hospitals


@dataclass
class LocalAuthority:
    """An authority. ``settings`` are added to its file."""

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    name: str = "authority"

    def __post_init__(self) -> None:
        self.own = OwnFiles(self.folder / self.name, "authority")
        self.key = base64.b64encode(self.own.identity().public_key().public_bytes_raw()).decode()
        self.ca = self.own.certificate(("localhost", "127.0.0.1"))[0]
        self.vouched = Vouched(self.own)

    @property
    def url(self) -> str:
        """Return what a server calls it."""
        return f"https://localhost:{self.port}"

    @property
    def of_the_server(self) -> dict[str, Any]:
        """Return the settings by which a server may call it."""
        return {"authority_urls": json.dumps([self.url]), "authority_ca": str(self.ca)}

    @property
    def of_a_plan(self) -> dict[str, Any]:
        """Return what a plan's ``[secure_aggregation]`` says of it."""
        return {"registrar": "authority", "authority": {"url": self.url, "operator": "notary", "key": self.key}}

    def write(self, server: str, clients: Iterable[str]) -> None:
        """Write its settings, for a server's key, and vouch for the keys of clients."""
        own = {"operator": "notary", "port": self.port, "folder": str(self.own.place), "server_keys": [server]}
        lines = [f"{name} = {json.dumps(value)}" for name, value in {**own, **self.settings}.items()]
        self._file.write_text("\n".join([*lines, ""]), encoding="utf-8")
        for key in clients:
            self.vouched.add(key)

    def start(self, local: LocalFederation, environment: Mapping[str, str] | None = None) -> None:
        """Start it, and wait until it answers."""
        local.start(self.name, ["authority", "serve", "--config", str(self._file)], environment or {})
        local.wait_for(self.name, self.url, self.ca)

    @property
    def _file(self) -> Path:
        return self.own.place.with_suffix(".toml")


@contextmanager
def hospitals_with_authority(folder: Path, **settings: Any) -> Iterator[tuple[Hospitals, LocalAuthority]]:
    """Yield four hospitals that trust an authority instead of a list of peers, with nothing started."""
    authority = LocalAuthority(folder)
    with hospitals(folder, **authority.of_the_server, **settings) as federation:
        federation.authority_key = authority.key
        yield federation, authority


def start(
    federation: Hospitals,
    authority: LocalAuthority,
    known: Iterable[str] | None = None,
    **environments: Mapping[str, str],
) -> None:
    """Start the server, the authority, which knows some hospitals or all of them, and all agents.

    ``environments`` by "server" and "agents".
    """
    local = federation.local
    local.start_server(environment=environments.get("server"))
    keys = local.peers(federation.sites)
    authority.write(server_key(local), [keys[name] for name in (federation.sites if known is None else known)])
    authority.start(local)
    federation.invite()
    for name in federation.sites:
        federation.start_agent(name, environment=environments.get("agents"))
