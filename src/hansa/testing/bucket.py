"""An S3 of one's own for a test: moto's server in a process of its own, with one bucket, removed with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from unittest import mock

import httpx

_PATIENCE: Final = 30.0


@contextmanager
def own_bucket() -> Iterator[str]:
    """Yield the URL of a new bucket; the usual variables lead there, for this process and for those that it starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    variables = {
        "AWS_ENDPOINT": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "hansa",
        "AWS_SECRET_ACCESS_KEY": "of this test only",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(  # noqa: S603 - this interpreter, a module of the group "test"
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _make_bucket(f"{endpoint}/hansa", time.monotonic() + _PATIENCE)
        with mock.patch.dict(os.environ, variables):
            yield "s3://hansa/federation"
    finally:
        server.kill()
        server.wait()


def _make_bucket(url: str, until: float) -> None:
    while True:
        try:
            httpx.put(url).raise_for_status()
        except httpx.TransportError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return
