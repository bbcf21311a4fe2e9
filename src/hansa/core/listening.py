"""Whether a service can have the address and port that it is to listen on."""

from __future__ import annotations

import errno
import socket

from hansa.core.errors import HansaError


def refuse_taken(noun: str, host: str, port: int) -> None:
    """Raise HansaError where a service cannot listen there alone.

    Two whose sockets share a port (SO_REUSEPORT) would each see a part of the calls.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        raise HansaError(
            f"HANSA-{noun.upper()}-SETTINGS",
            rule=f"The {noun} listens on an address and port of its own.",
            found=f"{host}:{port} cannot be had: {getattr(error, 'strerror', None) or error}.",
            action="Stop what listens there, or set port."
            if taken
            else "Set host to an address of this machine (0.0.0.0: all), and port to one that this user may have.",
        ) from None
