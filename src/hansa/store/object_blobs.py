"""Blobs in a bucket: S3, Google Cloud Storage or Azure, through obstore. Settings and secrets are the usual variables.

A put is durable when the service says so. Nothing here relies on conditional writes, which not every service keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Any, Final

import obstore
from obstore.store import from_url

from hansa.store.blobs import Blobs, Listed, LocalBlobs, Make, checked
from hansa.store.failures import missing

_CHUNK: Final = 4 << 20


class ObjectBlobs:
    """Blobs as objects of a bucket, below a prefix."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def put(self, name: str, chunks: AsyncIterable[bytes]) -> None:
        """Keep bytes under a name; large ones go in parts, and appear when the last one is there."""
        await obstore.put_async(self._store, checked(name), aiter(chunks))

    async def put_bytes(self, name: str, content: bytes) -> None:
        """Keep bytes that are at hand."""
        await obstore.put_async(self._store, checked(name), content)

    async def put_made(self, name: str, make: Make) -> None:
        """Keep bytes that are made in a thread."""
        await self.put_bytes(name, await asyncio.to_thread(lambda: b"".join(make())))

    async def size(self, name: str) -> int:
        """Return the size of an object in bytes."""
        try:
            return int((await obstore.head_async(self._store, checked(name)))["size"])
        except FileNotFoundError:
            raise missing(f"blob {name}") from None

    async def read(self, name: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Give the bytes of an object."""
        end = await self.size(name) if stop is None else stop
        if start >= end:
            return
        try:
            got = await obstore.get_async(self._store, checked(name), options={"range": (start, end)})
        except FileNotFoundError:
            raise missing(f"blob {name}") from None
        async for chunk in got.stream(min_chunk_size=_CHUNK):
            yield bytes(chunk)

    async def delete(self, name: str) -> None:
        """Remove an object, if there is one."""
        try:
            await obstore.delete_async(self._store, checked(name))
        except FileNotFoundError:
            return

    async def names(self, prefix: str) -> list[str]:
        """Return the names that begin so, in order."""
        return [each.name for each in await self.listed(prefix)]

    async def listed(self, prefix: str) -> list[Listed]:
        """Return the objects whose names begin so, by name."""
        folder, _, _ = prefix.rpartition("/")  # the services list by whole parts
        found = []
        async for page in obstore.list(self._store, prefix=folder or None):
            found += [
                Listed(meta["path"], int(meta["size"]), meta["last_modified"].timestamp())
                for meta in page
                if meta["path"].startswith(prefix)
            ]
        return sorted(found, key=lambda each: each.name)

    def path(self, name: str) -> Path | None:
        """Return None: objects are no local files."""
        checked(name)
        return None

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


def open_blobs(place: str) -> Blobs:
    """Return the blobs of a folder, or of s3://..., gs://... or az://..."""
    scheme, separator, _ = place.partition("://")
    if not separator:
        return LocalBlobs(Path(place))
    if scheme == "file":
        return LocalBlobs(Path(place.removeprefix("file://")))
    return ObjectBlobs(from_url(place))
