"""Services beside a local federation, decryptors and authorities: processes of operators of their own, over TLS.

Each has a key that is pinned: the decryptors' and the authority's by sites, and the server's by all of them.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from hansa.algorithms.plan import Plan
from hansa.authority.vouched import Vouched
from hansa.cli.local_federation import LocalFederation, free_port
from hansa.core.secure_aggregation import Authority, Decryptor
from hansa.serving.own_files import OwnFiles
from hansa.testing.hospitals import Hospitals, hospitals

Noun = Literal["decryptor", "authority"]
"""What a service is. Its command is called so, the server's settings of it begin so, and its kill points do."""
NOUNS: Final[tuple[Noun, ...]] = ("decryptor", "authority")


@dataclass
class LocalService:
    """The one service of an operator, by whose name its process is known. ``settings`` are added to its file."""

    noun: Noun
    operator: str
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.own = OwnFiles(self.folder / self.operator, self.noun)
        self.key = base64.b64encode(self.own.identity().public_key().public_bytes_raw()).decode()
        self.ca = self.own.certificate(("localhost", "127.0.0.1"))[0]

    @property
    def url(self) -> str:
        """Return what a server calls it."""
        return f"https://localhost:{self.port}"

    @property
    def of_a_plan(self) -> dict[str, str]:
        """Return its entry in a plan."""
        named = {"name": self.operator} if self.noun == "decryptor" else {}
        return {**named, "url": self.url, "operator": self.operator, "key": self.key}

    def write(self, **settings: Any) -> None:
        """Write its settings: its own, and others."""
        own = {"operator": self.operator, "port": self.port, "folder": str(self.own.place)}
        lines = [f"{name} = {json.dumps(value)}" for name, value in {**own, **settings, **self.settings}.items()]
        self._file.write_text("\n".join([*lines, ""]), encoding="utf-8")

    def start(self, local: LocalFederation, environment: Mapping[str, str] | None = None) -> None:
        """Start it, and wait until it answers."""
        self.launch(local, environment)
        local.wait_for(self.operator, self.url, self.ca)

    def launch(self, local: LocalFederation, environment: Mapping[str, str] | None = None) -> None:
        """Start it, and wait for nothing."""
        local.start(self.operator, [self.noun, "serve", "--config", str(self._file)], environment or {})

    @property
    def _file(self) -> Path:
        return self.own.place.with_suffix(".toml")


@dataclass
class LocalServices:
    """All services beside one federation: operator -> what that one runs."""

    folder: Path
    nouns: Mapping[str, Noun]

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._services = {each: LocalService(noun, each, self.folder) for each, noun in self.nouns.items()}

    def __getitem__(self, operator: str) -> LocalService:
        return self._services[operator]

    def of(self, noun: Noun) -> list[LocalService]:
        """Return the decryptors, or the authority."""
        return [each for each in self._services.values() if each.noun == noun]

    @property
    def of_the_server(self) -> dict[str, Any]:
        """Return the settings by which a server may call them."""
        settings: dict[str, Any] = {}
        for noun in NOUNS:
            if services := self.of(noun):
                ca = self.folder / f"{noun}.pem"
                ca.write_bytes(b"".join(each.ca.read_bytes() for each in services))
                settings |= {f"{noun}_urls": json.dumps([each.url for each in services]), f"{noun}_ca": str(ca)}
        return settings

    @property
    def of_a_plan(self) -> dict[str, Any]:
        """Return what a plan's ``[secure_aggregation]`` says of them."""
        decryptors = {"decryptors": [each.of_a_plan for each in self.of("decryptor")]} if self.of("decryptor") else {}
        authority = [{"registrar": "authority", "authority": each.of_a_plan} for each in self.of("authority")]
        return {**decryptors, **(authority[0] if authority else {})}

    @property
    def of_sites(self) -> dict[str, str]:
        """Return what a site's policy demands of secure sums, beside the decryptors that it trusts."""
        keys = [each.key for each in self.of("authority")]
        return {"registrar": "authority", "authority_key": keys[0]} if keys else {}

    def named_in(self, plan: Plan) -> Plan:
        """Return a plan with those services as they really are that it names."""
        section = plan.secure_aggregation
        if section is None:
            return plan
        decryptors = tuple(Decryptor(**self[each.operator].of_a_plan) for each in section.decryptors)
        authority = section.authority and Authority(**self[section.authority.operator].of_a_plan)
        return replace(plan, secure_aggregation=replace(section, decryptors=decryptors, authority=authority))

    def write(self, server_key: str, clients: Iterable[str]) -> None:
        """Write the settings of each, which answers that server, and whose clients have those keys."""
        known = [*clients]
        registrar: Mapping[str, Any] = self.of_sites or {"peers": known}
        for each in self.of("authority"):
            each.write(server_keys=[server_key])
            for key in known:
                Vouched(each.own).add(key)
        for each in self.of("decryptor"):
            each.write(server_keys=[server_key], **registrar)


@contextmanager
def hospitals_with(
    folder: Path, nouns: Mapping[str, Noun], **settings: Any
) -> Iterator[tuple[Hospitals, LocalServices]]:
    """Yield four hospitals that trust some operators' services, with nothing started; ``settings`` are the server's."""
    services = LocalServices(folder / "services", nouns)
    with hospitals(folder, **services.of_the_server, **settings) as federation:
        federation.trusted = {each.operator: each.key for each in services.of("decryptor")}
        federation.demands = services.of_sites
        yield federation, services


def start(
    federation: Hospitals,
    services: LocalServices,
    known: Iterable[str] | None = None,
    **environments: Mapping[str, str],
) -> None:
    """Start the server, the services, which know some hospitals or all of them, and all agents.

    ``environments`` by "server", "agents", or an operator.
    """
    local = federation.local
    local.start_server(environment=environments.get("server"))
    keys = local.peers(federation.sites)
    services.write(server_key(local), [keys[name] for name in (federation.sites if known is None else known)])
    for operator in services.nouns:
        services[operator].start(local, environments.get(operator))
    federation.invite()
    for name in federation.sites:
        federation.start_agent(name, environment=environments.get("agents"))


def server_key(local: LocalFederation) -> str:
    """Return the key of a federation's server, as its command prints it."""
    command = [sys.executable, "-P", "-c", "from hansa.cli.main import main; main()", "server", "key"]
    environment = {**os.environ, **local.of_servers}
    printed = subprocess.run(command, env=environment, check=True, timeout=60, capture_output=True, text=True)  # noqa: S603
    return printed.stdout.strip()
