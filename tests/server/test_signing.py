"""The server's signing key: wrapped apart from the database, endorsed by the last one when it is made anew."""

from __future__ import annotations

import asyncio
import time

import pytest

from hansa.server.signing import Signer
from hansa.store.keys import LocalKeys
from hansa.store.store import Store
from hansa.wire import signatures


class Clock:
    def now(self):
        return time.time()


@pytest.fixture
def run(tmp_path):
    """Run an async function over a store and keys."""

    def go(work):
        async def within():
            store = await Store.open(f"sqlite+aiosqlite:///{tmp_path}/hansa.sqlite")
            try:
                return await work(store, LocalKeys(tmp_path / "keys"))
            finally:
                await store.close()

        return asyncio.run(within())

    return go


def test_what_is_signed_verifies_with_the_published_key_of_its_id(run):
    async def work(store, keys):
        signer = await Signer.open(store, keys, Clock())
        signature, key_id = signer.sign(signatures.assignment(b"x"))
        (published,) = signer.published()
        assert (published.key_id, published.endorsed_by) == (key_id, "")
        signatures.verify(published.public_key, signature, signatures.assignment(b"x"))

    run(work)


def test_another_start_has_the_same_key_and_the_database_alone_does_not(run, tmp_path):
    async def opened(store, keys):
        return (await Signer.open(store, keys, Clock())).current

    first = run(opened)
    assert run(opened) == first
    for path in (tmp_path / "keys").iterdir():
        path.unlink()
    with pytest.raises(Exception, match="key"):
        run(opened)


def test_each_key_is_endorsed_by_the_last_and_another_replica_follows(run):
    async def work(store, keys):
        signer, other = await Signer.open(store, keys, Clock()), await Signer.open(store, keys, Clock())
        before = signer.current
        after = await signer.rotate()
        assert other.current == before
        await other.refresh()
        assert other.current == after
        first, second = other.published()
        assert second.endorsed_by == first.key_id == before
        endorsed = signatures.server_key(second.key_id, second.public_key)
        signatures.verify(first.public_key, second.endorsement, endorsed)
        signature, key_id = other.sign(b"x")
        assert key_id == after
        signatures.verify(second.public_key, signature, b"x")

    run(work)


def test_of_two_rotations_at_once_one_holds(run):
    async def work(store, keys):
        signer, other = await Signer.open(store, keys, Clock()), await Signer.open(store, keys, Clock())
        await signer.rotate()
        await other.rotate()
        assert other.current == signer.current
        assert len(other.published()) == len(keys.held()) == 2

    run(work)
