"""The name of a replica, by which it holds leases: a server that was killed and is started again has the same.

So it goes on at once with the runs that it looked after, and does not wait until its own leases end.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hansa.server.settings import ServerSettings

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows, where a server is not run in production
    fcntl = None  # type: ignore[assignment]

FOLDER: Final = "replicas"
_HOST: Final = 40


@contextlib.contextmanager
def own_name(settings: ServerSettings) -> Iterator[str]:
    """Yield the name that is set, or one of the server's folder that no other living process has."""
    if settings.replica or fcntl is None:
        yield settings.replica_name
        return
    folder = settings.make_folder() / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    for number in itertools.count():
        name, descriptor = _taken(folder / str(number))
        if descriptor >= 0:
            break
    try:
        yield name
    finally:
        os.close(descriptor)


def _taken(path: Path) -> tuple[str, int]:
    """Lock a file, and return the name that it holds; the descriptor is -1 where another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return "", -1
    name = os.pread(descriptor, 64, 0).decode("ascii", "replace")
    if not re.fullmatch(r"[A-Za-z0-9._-]+-[0-9a-f]{8}", name):
        host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:_HOST]
        name = f"{host}-{secrets.token_hex(4)}"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, name.encode(), 0)
        os.fsync(descriptor)
    return name, descriptor
