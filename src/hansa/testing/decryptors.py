"""Decryptors beside a local federation: processes of operators of their own, over TLS, with keys that are pinned."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hansa.cli.local_federation import LocalFederation, free_port
from hansa.serving.own_files import OwnFiles
from hansa.testing.hospitals import Hospitals, hospitals


@dataclass
class LocalDecryptors:
    """Decryptors, one for each operator. ``settings`` are added to the file of each."""

    folder: Path
    operators: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        bundle = b""
        for operator in self.operators:
            own = OwnFiles(self.place(operator), "decryptor")
            public = own.identity().public_key().public_bytes_raw()
            self.keys[operator] = base64.b64encode(public).decode()
            self.ports[operator] = free_port()
            bundle += own.certificate(("localhost", "127.0.0.1"))[0].read_bytes()
        self.ca.write_bytes(bundle)

    @property
    def ca(self) -> Path:
        """Return the file of all their certificates."""
        return self.folder / "decryptors.pem"

    @property
    def of_the_server(self) -> dict[str, Any]:
        """Return the settings by which a server may call them; none where there are none."""
        if not self.operators:
            return {}
        return {"decryptor_urls": json.dumps([*map(self.url, self.operators)]), "decryptor_ca": str(self.ca)}

    @property
    def of_a_plan(self) -> list[dict[str, str]]:
        """Return the entries of a plan's ``decryptors``."""
        return [
            {"name": each, "operator": each, "url": self.url(each), "key": self.keys[each]} for each in self.operators
        ]

    def place(self, operator: str) -> Path:
        """Return the folder of an operator's decryptor."""
        return self.folder / operator

    def url(self, operator: str) -> str:
        """Return what a server calls an operator's decryptor."""
        return f"https://localhost:{self.ports[operator]}"

    def write(self, server_key: str, peers: Iterable[str]) -> None:
        """Write the settings of each: which server it answers, and whose reports it opens."""
        shared = {"server_keys": [server_key], "peers": [*peers], **self.settings}
        for operator in self.operators:
            own = {"operator": operator, "port": self.ports[operator], "folder": str(self.place(operator)), **shared}
            lines = [f"{name} = {json.dumps(value)}" for name, value in own.items()]
            self.place(operator).with_suffix(".toml").write_text("\n".join([*lines, ""]), encoding="utf-8")

    def start(self, local: LocalFederation, operator: str, environment: Mapping[str, str] | None = None) -> None:
        """Start an operator's decryptor, and wait until it answers."""
        self.launch(local, operator, environment)
        local.wait_for(operator, self.url(operator), self.ca)

    def launch(self, local: LocalFederation, operator: str, environment: Mapping[str, str] | None = None) -> None:
        """Start an operator's decryptor, and wait for nothing."""
        path = self.place(operator).with_suffix(".toml")
        local.start(operator, ["decryptor", "serve", "--config", str(path)], environment or {})


@contextmanager
def hospitals_with_decryptors(
    folder: Path, operators: tuple[str, ...], **settings: Any
) -> Iterator[tuple[Hospitals, LocalDecryptors]]:
    """Yield four hospitals that trust some operators' decryptors, with nothing started."""
    decryptors = LocalDecryptors(folder / "decryptors", operators)
    with hospitals(folder, **decryptors.of_the_server, **settings) as federation:
        federation.trusted = decryptors.keys
        yield federation, decryptors


def start(federation: Hospitals, decryptors: LocalDecryptors, **environments: Mapping[str, str]) -> None:
    """Start the server, the decryptors and all agents; ``environments`` by "server", "agents", or an operator."""
    local = federation.local
    local.start_server(environment=environments.get("server"))
    decryptors.write(server_key(local), local.peers(federation.sites).values())
    for operator in decryptors.operators:
        decryptors.start(local, operator, environments.get(operator))
    federation.invite()
    for name in federation.sites:
        federation.start_agent(name, environment=environments.get("agents"))


def server_key(local: LocalFederation) -> str:
    """Return the key of a federation's server, as its command prints it."""
    command = [sys.executable, "-P", "-c", "from hansa.cli.main import main; main()", "server", "key"]
    environment = {**os.environ, **local.of_servers}
    printed = subprocess.run(command, env=environment, check=True, timeout=60, capture_output=True, text=True)  # noqa: S603
    return printed.stdout.strip()
