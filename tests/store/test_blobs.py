"""Blobs in a folder and in a bucket keep the same promises."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import time

import pytest

from hansa.core.errors import StoreError
from hansa.store.blobs import LocalBlobs
from hansa.store.object_blobs import ObjectBlobs, open_blobs
from hansa.testing.bucket import own_bucket

UPDATE = "updates/run-training-1-1/client/" + "a" * 64 + "/00000000"


async def chunks(*parts):
    for part in parts:
        yield part


async def content(blobs, name, start=0, stop=None):
    return b"".join([chunk async for chunk in blobs.read(name, start, stop)])


@pytest.fixture(scope="module")
def bucket():
    with own_bucket() as url:
        yield url


@pytest.fixture(params=["folder", "bucket", "s3"])
def blobs(request, tmp_path):
    if request.param == "folder":
        made = LocalBlobs(tmp_path / "blobs")
        yield made
        made.close()
    elif request.param == "s3":
        yield open_blobs(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")
    else:
        from obstore.store import MemoryStore

        yield ObjectBlobs(MemoryStore())


def test_what_was_put_is_read_whole_or_in_part(blobs):
    async def test():
        for parts in ((b"0123456789",), (b"0123", b"", b"456789"), (b"0", b"1", b"2", b"3456789")):
            await blobs.put(UPDATE, chunks(*parts))
            assert await content(blobs, UPDATE) == b"0123456789"
        assert await content(blobs, UPDATE, 2, 5) == b"234"
        assert await content(blobs, UPDATE, 7) == b"789"
        assert await blobs.size(UPDATE) == 10
        await blobs.put("models/empty", chunks())
        assert await content(blobs, "models/empty") == b""

    asyncio.run(test())


def test_large_blobs_come_in_chunks(blobs):
    async def test():
        whole = os.urandom(3_000_001)
        await blobs.put("models/large", chunks(*[whole[at : at + 700_000] for at in range(0, len(whole), 700_000)]))
        assert await content(blobs, "models/large") == whole
        assert await content(blobs, "models/large", 1_000_000, 2_500_000) == whole[1_000_000:2_500_000]

    asyncio.run(test())


def test_a_blob_that_is_not_there_is_a_plain_error_and_removing_it_is_none(blobs):
    async def test():
        await blobs.delete(UPDATE)
        for ask in (blobs.size(UPDATE), content(blobs, UPDATE)):
            with pytest.raises(StoreError) as caught:
                await ask
            assert caught.value.code == "HANSA-NOT-FOUND"

    asyncio.run(test())


def test_names_are_listed_by_what_they_begin_with(blobs):
    async def test():
        names = ["models/a", "models/tenant/b", "updates/r1/c1/s/0", "updates/r1/c1/s/1", "updates/r1/c2/s/0",
                 "updates/r2/c1/s/0"]  # fmt: skip
        for name in names:
            await blobs.put(name, chunks(b"x"))
        assert await blobs.names("updates/r1/") == names[2:5]
        assert await blobs.names("updates/r1/c1/") == names[2:4]
        assert await blobs.names("updates/r1/c1/s/1") == [names[3]]
        assert await blobs.names("updates/r") == names[2:]
        assert await blobs.names("") == names
        assert await blobs.names("nothing/") == []
        [one] = await blobs.listed("models/a")
        assert (one.name, one.size) == ("models/a", 1)
        assert abs(one.at - time.time()) < 60
        for name in names:
            await blobs.delete(name)
        assert await blobs.names("") == []

    asyncio.run(test())


@pytest.mark.parametrize(
    "name",
    ["", "alone", "/etc/passwd", "../up", "models/../../up", "models//a", "models/.hidden", "models/a/", "a\\b/c",
     "models/~", "models/\n", "models/a b", "models/" + "x" * 300],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(blobs, name):
    async def test():
        for ask in (blobs.put(name, chunks(b"x")), blobs.size(name), content(blobs, name), blobs.delete(name)):
            with pytest.raises(ValueError, match="not a name"):
                await ask
        with pytest.raises(ValueError, match="not a name"):
            blobs.path(name)

    asyncio.run(test())


def test_a_put_that_fails_half_way_leaves_what_was_there(blobs):
    async def failing():
        yield b"ab"
        yield b"cd"
        raise ConnectionError("gone")

    async def test():
        await blobs.put("models/a", chunks(b"before"))
        with pytest.raises(ConnectionError):
            await blobs.put("models/a", failing())
        assert await content(blobs, "models/a") == b"before"
        assert await blobs.names("") == ["models/a"]

    asyncio.run(test())


def test_many_at_once(blobs):
    async def test():
        names = [f"updates/round/client-{place}/s/0" for place in range(40)]
        await asyncio.gather(*[blobs.put(name, chunks(name.encode())) for name in names])
        await asyncio.gather(
            *[blobs.delete(name) for name in names[::2]], *[content(blobs, name) for name in names[1::2]]
        )
        assert await blobs.names("updates/") == sorted(names[1::2])

    asyncio.run(test())


def test_a_local_blob_is_a_file_that_others_cannot_read(tmp_path, umask):
    blobs = LocalBlobs(tmp_path / "blobs")
    asyncio.run(blobs.put(UPDATE, chunks(b"x")))
    path = blobs.path(UPDATE)
    assert path.read_bytes() == b"x"
    for folder in (blobs.folder, path.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    blobs.close()
    assert asyncio.run(open_blobs(str(tmp_path / "blobs")).names("")) == [UPDATE]


def test_what_a_killed_process_left_is_removed_when_the_next_one_starts_and_not_before(tmp_path):
    code = (
        "import asyncio, sys, pathlib; from hansa.store.blobs import LocalBlobs\n"
        "blobs = LocalBlobs(pathlib.Path(sys.argv[1]))\n"
        "asyncio.run(blobs.put_bytes('models/a', b'x'))\n"
    )
    for point, names in (("storage.blob-written", []), ("storage.blob-renamed", ["models/a"])):
        folder = tmp_path / point
        environment = {**os.environ, "HANSA_KILL_AT": point}
        killed = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=False)
        assert killed.returncode == -9
        living = LocalBlobs(folder)
        assert asyncio.run(living.names("")) == names
        (living._incoming.folder / "coming").write_bytes(b"x")
        next_to_it = LocalBlobs(folder)
        left = [path for path in (folder / ".incoming").rglob("*") if path.is_file() and path.name != "lock"]
        assert [path.name for path in left] == ["coming"]
        living.close()
        next_to_it.close()


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    import errno

    blobs = LocalBlobs(tmp_path / "blobs")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hansa.store.blobs.sync", full)
    for put in (blobs.put("models/a", chunks(b"x")), blobs.put("models/a", chunks(b"x", b"y"))):
        with pytest.raises(StoreError) as caught:
            asyncio.run(put)
        assert caught.value.code == "HANSA-SERVER-STORAGE"
    assert list(blobs._incoming.folder.iterdir()) == [blobs._incoming.folder / "lock"]
    blobs.close()
