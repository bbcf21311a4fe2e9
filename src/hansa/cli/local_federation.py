"""A federation on this machine: a server and agents as processes of their own, over TLS on loopback."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from hansa.client.state import StateFolder
from hansa.core.errors import RunError

_PORTS: Final = range(20_000, 32_000)
"""Below those that systems give to outgoing connections."""
_READY: Final = 30.0
"""Seconds that a process may take to be ready."""
_GRACE: Final = 10.0
"""Seconds that a process may take to end when asked."""


@dataclass
class LocalFederation:
    """Starts processes and stops them all: in a folder, which holds what they keep and what they say.

    ``environment`` is added to that of every process; ``settings`` are the server's, as in hansa.toml.
    """

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    port: int = 0
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    """Where each replica of the server listens: the first one on ``port``."""

    def __post_init__(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.port = self.port or free_port()

    @property
    def url(self) -> str:
        """Return what clients and operators call the server."""
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """Return what the server is called at a port: another replica, or a proxy."""
        scheme = "http" if self.settings.get("tls") == "off" else "https"
        return f"{scheme}://localhost:{port}"

    @property
    def ca(self) -> Path:
        """Return the certificate of the server's own authority."""
        return self.folder / "server" / "tls" / "ca.pem"

    @property
    def token_file(self) -> Path:
        """Return the file of the owner's token."""
        return self.folder / "server" / "owner-token"

    @property
    def of_servers(self) -> dict[str, str]:
        """Return the environment of every replica, and of commands beside them."""
        own = {f"HANSA_SERVER_{key.upper()}": str(value) for key, value in self.settings.items()}
        return {**own, "HANSA_SERVER_FOLDER": str(self.folder / "server")}

    def start_server(self, name: str = "server", environment: Mapping[str, str] | None = None) -> None:
        """Start a replica, and wait until it answers. Raises RunError with the end of what it said if it does not."""
        self.launch_server(name, environment)
        self.wait_until_ready(name)

    def launch_server(self, name: str = "server", environment: Mapping[str, str] | None = None) -> None:
        """Start a replica of the server, on the port that it had before, and wait for nothing."""
        port = self.ports.setdefault(name, free_port() if self.ports else self.port)
        self.start(name, ["server"], {**self.of_servers, "HANSA_SERVER_PORT": str(port), **(environment or {})})

    def start_agent(
        self,
        name: str,
        *,
        data: Path | str,
        token: str,
        server: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start an agent with its own folder; it enrols with a token if it has not.

        ``server`` is the URL where it is another than the server's own: a proxy's.
        """
        where = ["--server", server or self.url, *self._trust()]
        options = [*where, "--data", str(data), "--state", str(self.state(name))]
        if self._policy(name).exists():
            options += ["--policy", str(self._policy(name))]
        self.start(name, ["client", *options], {"HANSA_TOKEN": token, **(environment or {})})

    def introduce(
        self,
        names: Iterable[str],
        decryptors: Mapping[str, str] | None = None,
        demands: Mapping[str, str] | None = None,
    ) -> None:
        """Let agents know each other's keys before they start, as sites that pin their peers do.

        ``decryptors``: the operators that they trust -> the keys of their decryptors. ``demands``: what else they
        demand of secure sums; where those name a registrar, that one is trusted instead of each other's keys.
        """
        keys, demanded = self.peers(names), dict(demands or {})
        pinned = {} if "registrar" in demanded else {"peers": [*keys.values()]}
        lines = ["[secure_sums]", *(f"{name} = {json.dumps(value)}" for name, value in {**pinned, **demanded}.items())]
        for operator, key in (decryptors or {}).items():
            lines += ["[[secure_sums.decryptors]]", f"operator = {json.dumps(operator)}", f'key = "{key}"']
        for name in keys:
            self._policy(name).write_text("\n".join([*lines, ""]), encoding="utf-8")

    def peers(self, names: Iterable[str]) -> dict[str, str]:
        """Return the public keys of agents, which are made where there are none."""
        keys = {}
        for name in names:
            with contextlib.closing(StateFolder(self.state(name))) as state:
                keys[name] = base64.b64encode(state.key().public_key().public_bytes_raw()).decode()
        return keys

    def state(self, name: str) -> Path:
        """Return the folder in which an agent keeps what is its own."""
        return self.folder / "agents" / name.replace(" ", "-").lower()

    def start(self, name: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the command ``hansa`` with some words."""
        with self._log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603 - this program
                [sys.executable, "-P", "-c", "from hansa.cli.main import main; main()", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        """Return what a process has said."""
        return self._log(name).read_text(encoding="utf-8", errors="replace")

    def wait_until_ready(self, name: str = "server") -> None:
        """Wait until the server answers that it is ready."""
        self.wait_for(name, self.url_at(self.ports.get(name, self.port)), self.ca)

    def wait_for(self, name: str, url: str, ca: Path) -> None:
        """Wait until a process answers at a URL that it is ready."""
        until = time.monotonic() + _READY
        while time.monotonic() < until:
            if self.processes[name].poll() is not None:
                raise self._failed(name, "it ended")
            with contextlib.suppress(OSError):
                context = ssl.create_default_context(cafile=str(ca)) if url.startswith("https") else None
                with urllib.request.urlopen(f"{url}/readyz", timeout=2, context=context) as answer:  # noqa: S310 - our own server
                    if answer.status == 200:
                        return
            time.sleep(0.02)
        raise self._failed(name, f"it was not ready within {_READY:g} seconds")

    def is_running(self, name: str) -> bool:
        """Return True while a process runs."""
        return name in self.processes and self.processes[name].poll() is None

    def kill(self, name: str) -> None:
        """End a process as kill -9 does."""
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self, name: str) -> None:
        """Ask a process to end, and wait; it is killed if it does not."""
        process = self.processes[name]
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        """Stop everything: agents first."""
        for name in reversed(self.processes):
            if self.processes[name].poll() is None:
                self.processes[name].send_signal(signal.SIGTERM)
        for name in reversed(self.processes):
            self.stop(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _log(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-').lower()}.log"

    def _policy(self, name: str) -> Path:
        return self.state(name).with_suffix(".policy.toml")

    def _trust(self) -> list[str]:
        return ["--ca", str(self.ca)] if self.url.startswith("https") else []

    def _failed(self, name: str, how: str) -> RunError:
        said = "\n".join(self.log(name).splitlines()[-15:])
        return RunError(
            "HANSA-SERVER-UNREACHABLE",
            rule="A local federation starts its processes and waits until they answer.",
            found=f"The {name} does not: {how}. It said last:\n{said}\n",
            action=f"See {self.folder} for all that it said.",
        )


def free_port() -> int:
    """Return a port of loopback that is free now, and that no outgoing connection is given meanwhile."""
    for _ in range(1000):
        port = _PORTS.start + secrets.randbelow(len(_PORTS))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RunError(
        "HANSA-SERVER-SETTINGS",
        rule="A local federation listens on a port of loopback.",
        found=f"None of {_PORTS.start} to {_PORTS.stop - 1} seems to be free.",
        action="Stop what holds them.",
    )
