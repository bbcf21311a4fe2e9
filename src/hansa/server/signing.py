"""The server's own key, by which clients know that an assignment is the server's.

The private half is a key of the key provider, so that neither the database nor a backup of it holds it. A new key is
endorsed by the last one: a client that knows any key of the chain can follow it to the newest.
"""

from __future__ import annotations

import secrets
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.core.clock import Clock
from hansa.store.keys import KeyProvider
from hansa.store.records import SigningKey
from hansa.store.store import Store
from hansa.wire import signatures
from hansa.wire.generated.federation_pb2 import ServerKey

PURPOSE: Final = "signing"
"""What ids of signing keys begin with at the key provider."""


class Signer:
    """Signs for the server with its current key. Made with :meth:`open`."""

    def __init__(self, store: Store, keys: KeyProvider, clock: Clock) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._private: Ed25519PrivateKey | None = None
        self._chain: tuple[SigningKey, ...] = ()

    @classmethod
    async def open(cls, store: Store, keys: KeyProvider, clock: Clock) -> Signer:
        """Return the signer with the server's current key; the first is made where there is none."""
        signer = cls(store, keys, clock)
        await signer.refresh()
        if not signer._chain:
            await signer.rotate()
        return signer

    @property
    def current(self) -> str:
        """Return the id of the key that signs."""
        return self._chain[-1].id

    def sign(self, content: bytes) -> tuple[bytes, str]:
        """Return the signature over some bytes, as :mod:`hansa.wire.signatures` prefixes them, and the key's id."""
        return self._key().sign(content), self.current

    def published(self) -> list[ServerKey]:
        """Return every key of the chain, the first one first, as clients are told of them."""
        return [
            ServerKey(
                key_id=key.id,
                public_key=key.public_key,
                endorsed_by=key.endorsed_by or "",
                endorsement=key.endorsement,
            )
            for key in self._chain
        ]

    async def refresh(self) -> None:
        """Read the keys again: another replica may have made one."""
        async with self._store.reading() as rows:
            chain = tuple(sorted(await rows.signing_keys.all(), key=lambda key: (key.created_at, key.id)))
        if chain and (not self._chain or chain[-1].id != self._chain[-1].id):
            self._private = Ed25519PrivateKey.from_private_bytes(self._keys.unwrap(chain[-1].id, chain[-1].wrapped))
        self._chain = chain

    async def rotate(self) -> str:
        """Make another key, endorsed by the current one, sign with it from now on; return its id."""
        key_id = f"{PURPOSE}-{secrets.token_hex(8)}"
        seed, wrapped = self._keys.create(key_id)
        private = Ed25519PrivateKey.from_private_bytes(seed)
        public = private.public_key().public_bytes_raw()
        endorsed_by, endorsement = None, b""
        if self._chain:
            endorsement, endorsed_by = self.sign(signatures.server_key(key_id, public))
        async with self._store.transaction() as rows:
            current = await rows.signing_keys.current()
            first = (current.id if current else None) == endorsed_by
            if first:
                await rows.signing_keys.add(
                    SigningKey(key_id, public, wrapped, endorsed_by, endorsement, self._clock.now())
                )
        if not first:  # another replica was: its key is the one, and this was never published
            self._keys.destroy(key_id)
        await self.refresh()
        return self.current

    def _key(self) -> Ed25519PrivateKey:
        if self._private is None:
            raise LookupError("a signer is made with Signer.open")
        return self._private
