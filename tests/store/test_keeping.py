"""Backups, and the removal of what nothing refers to."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from tests.store.rows import enrolled, opened, seeded

from hansa.core.errors import StoreError
from hansa.store.backup import back_up, check, restore
from hansa.store.blobs import LocalBlobs
from hansa.store.keys import LocalKeys
from hansa.store.numbers import among_packed, packed
from hansa.store.records import Release
from hansa.store.retention import Swept, sweep
from hansa.store.store import Store

HOUR = 3600.0


async def chunks(content=b"12345"):
    yield content


def test_only_what_is_over_or_orphaned_and_old_is_removed(run_on, tmp_path):
    async def test(store, seed):
        blobs, keys, now = LocalBlobs(tmp_path / "blobs"), LocalKeys(tmp_path / "keys"), time.time()
        clients = await enrolled(store, seed.population, 1)
        over = await opened(store, seed.run, clients, number=1)
        live = await opened(store, seed.run, clients, number=2)
        async with store.transaction() as rows:
            await rows.rounds.change(replace(over, state="closed"))
            await rows.runs.change(replace(seed.run, model="used", slots="slots"))
            await rows.events.add("old", tenant=seed.tenant.id, at=now - 50 * HOUR)
            await rows.events.add("new", tenant=seed.tenant.id, at=now)
        kept = [f"updates/{live.id.name}/c/s/0", f"updates/tenant/{live.id.name}/c/s/0", "models/used", "slots/slots",
                "jobs/descriptor", "models/tenant/model", "other/thing"]  # fmt: skip
        gone = [f"updates/{over.id.name}/c/s/0", f"updates/tenant/{over.id.name}/c/s/0", "models/lost", "slots/old"]
        for name in kept + gone:
            await blobs.put(name, chunks())
        noise = f"{seed.run.id}-noise"
        for key_id in (over.id.name, live.id.name, "server-signing-1", noise, "run-of-old-noise"):
            keys.create(key_id)
        assert await sweep(store, blobs, keys, now=now + 1, grace=HOUR) == Swept()
        swept = await sweep(store, blobs, keys, now=now + 2 * HOUR, grace=HOUR, keep_events=40 * HOUR)
        assert swept == Swept(updates=2, orphans=2, bytes=20, keys=2, events=1)
        assert await blobs.names("") == sorted(kept)
        assert [key.id for key in keys.held()] == sorted([live.id.name, "server-signing-1", noise])
        assert await sweep(store, blobs, keys, now=now + 2 * HOUR, keep_events=40 * HOUR) == Swept()
        blobs.close()

    run_on(test)


def test_who_called_long_ago_is_forgotten_and_who_called_lately_is_not(run_on, tmp_path):
    async def test(store, seed):
        blobs, keys, now = LocalBlobs(tmp_path / "blobs"), LocalKeys(tmp_path / "keys"), time.time()
        of = seed.population.id
        async with store.transaction() as rows:
            await rows.recent_callers.add(of, packed(np.array([1, 9])), at=now - 5 * HOUR)
            await rows.recent_callers.add(of, packed(np.array([0, 17, 8])), at=now - 3 * HOUR)
            await rows.recent_callers.add(of, packed(np.array([3])), at=now - 2 * HOUR)

        async def called(since, population=of):
            async with store.reading() as rows:
                packs = await rows.recent_callers.since(population, since)
            return np.flatnonzero(among_packed(packs, 18)).tolist()

        assert await called(now - 3 * HOUR) == [0, 3, 8, 17]
        await sweep(store, blobs, keys, now=now)
        assert await called(0.0) == [0, 3, 8, 17]
        async with store.transaction() as rows:
            await rows.recent_callers.forget(now, population="another")
            await rows.recent_callers.forget(now - 2 * HOUR, population=of)
        assert await called(0.0) == [3]
        assert await called(0.0, "another") == []
        blobs.close()

    run_on(test)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000])
def test_numbers_come_back_as_they_were_packed(size):
    halves = [np.arange(0, size, 2), np.arange(1, size, 2)]
    packs = [packed(half) for half in halves if len(half)]
    assert among_packed(packs, size).all()
    assert np.flatnonzero(among_packed(packs[:1], size)).tolist() == halves[0].tolist()
    assert not among_packed([], size).any()
    assert len(among_packed([packed(np.array([10**6]))], size)) == size, "no pack takes more than its population"


def test_of_a_run_that_ended_long_ago_the_last_model_stays_and_those_in_use(run_on, tmp_path):
    async def test(store, seed):
        blobs, keys, now = LocalBlobs(tmp_path / "blobs"), LocalKeys(tmp_path / "keys"), time.time()
        stages = {"candidate": "candidate", "retired": "retired", "canary": "canary", "used": "production"}
        async with store.transaction() as rows:
            for number, (model, stage) in enumerate(stages.items()):
                await rows.releases.add(Release(seed.tenant.id, seed.run.id, number, model, stage, now))
            await rows.releases.add(Release(seed.tenant.id, seed.run.id, 9, "last", "candidate", now))
            await rows.runs.change(replace(seed.run, model="last", state="finished", ended_at=now - 10 * HOUR))
        for model in (*stages, "last"):
            await blobs.put(f"models/{model}", chunks())
        for keep in (None, 20 * HOUR):
            assert await sweep(store, blobs, keys, now=now + 2 * HOUR, keep_models=keep) == Swept()
        assert await sweep(store, blobs, keys, now=now + 2 * HOUR, keep_models=11 * HOUR) == Swept(orphans=2, bytes=10)
        assert await blobs.names("") == ["models/canary", "models/last", "models/used"]
        blobs.close()

    run_on(test)


def test_what_is_put_anew_while_it_is_swept_stays(run_on, tmp_path, monkeypatch):
    async def test(store, seed):
        blobs, keys, now = LocalBlobs(tmp_path / "blobs"), LocalKeys(tmp_path / "keys"), time.time()
        for name in ("models/a", "models/b"):
            await blobs.put(name, chunks())
            os.utime(blobs.path(name), (now - 2 * HOUR, now - 2 * HOUR))
        delete = blobs.delete

        async def deleting(name):
            await delete(name)
            await blobs.put("models/b", chunks())  # a job that is submitted meanwhile

        monkeypatch.setattr(blobs, "delete", deleting)
        assert (await sweep(store, blobs, keys, now=now)).orphans == 1
        assert await blobs.names("") == ["models/b"]
        blobs.close()

    run_on(test)


@pytest.fixture
def server(tmp_path):
    url = f"sqlite+aiosqlite:///{tmp_path / 'live.sqlite'}"
    return url, tmp_path / "blobs", tmp_path / "backup"


async def filled(url, folder):
    store = await Store.open(url)
    seed = await seeded(store)
    round_ = await opened(store, seed.run, await enrolled(store, seed.population, 2))
    blobs = LocalBlobs(folder)
    await blobs.put("models/model", chunks())
    await blobs.put(f"updates/{round_.id.name}/c/s/0", chunks())
    return store, seed, blobs, round_


def test_a_backup_of_a_working_server_is_restored_and_open_rounds_are_tried_again(server, tmp_path):
    url, folder, target = server

    async def test():
        store, seed, blobs, round_ = await filled(url, folder)

        async def work():
            for place in range(30):
                async with store.transaction() as rows:
                    await rows.events.add("tick", tenant=seed.tenant.id, at=float(place))

        task = asyncio.create_task(work())
        size = await asyncio.to_thread(back_up, url, folder, target, now=5.0)
        await task
        await store.close()
        blobs.close()
        assert size > 10_000
        assert check(target) == []
        again = f"sqlite+aiosqlite:///{tmp_path / 'again.sqlite'}"
        assert await restore(target, again, tmp_path / "again", now=1_735_689_609.0) == 1
        store, blobs = await Store.open(again), LocalBlobs(tmp_path / "again")
        async with store.reading() as rows:
            assert await rows.runs.get(seed.run.id) == replace(seed.run, version=1, notes={"attempts": 9})
            assert (await rows.rounds.get(round_.id)).state == "abandoned"
            assert {each.fate for each in await rows.rounds.assigned(round_.id)} == {"lost"}
        assert await blobs.size("models/model") == 5
        await store.close()
        blobs.close()

    asyncio.run(test())


def test_a_backup_that_was_damaged_is_not_restored(server, tmp_path):
    url, folder, target = server

    async def test():
        store, _, blobs, _ = await filled(url, folder)
        await store.close()
        blobs.close()
        back_up(url, folder, target, now=5.0)
        (target / "blobs/models/model").write_bytes(b"54321")
        assert check(target) == ["blobs/models/model was changed."]
        (target / "blobs/models/model").unlink()
        assert check(target) == ["blobs/models/model is missing."]
        with pytest.raises(StoreError, match="is missing"):
            await restore(target, f"sqlite+aiosqlite:///{tmp_path / 'again.sqlite'}", None, now=9.0)
        assert not (tmp_path / "again.sqlite").exists()
        assert "no whole backup" in check(tmp_path / "nothing")[0]

    asyncio.run(test())


def test_nothing_is_overwritten(server):
    url, folder, target = server

    async def test():
        store, _, blobs, _ = await filled(url, folder)
        await store.close()
        blobs.close()
        back_up(url, folder, target, now=5.0)
        with pytest.raises(StoreError, match="already"):
            back_up(url, folder, target, now=6.0)
        with pytest.raises(StoreError, match="already"):
            await restore(target, url, None, now=9.0)
        with pytest.raises(StoreError, match="pg_dump"):
            back_up("postgresql+psycopg://x@localhost/y", None, target, now=6.0)

    asyncio.run(test())


def test_no_key_is_in_a_backup_and_nobody_else_may_read_it(server, tmp_path, umask):
    url, folder, target = server

    async def test():
        store, _, blobs, _ = await filled(url, folder)
        await store.close()
        blobs.close()
        keys = LocalKeys(tmp_path / "keys")
        keys.create("run-training-1-1")
        back_up(url, folder, target, now=5.0)
        [kek] = (tmp_path / "keys").iterdir()
        assert not any(kek.read_bytes() in path.read_bytes() for path in target.rglob("*") if path.is_file())
        assert target.stat().st_mode & 0o077 == 0
        assert (tmp_path / "live.sqlite").stat().st_mode & 0o077 == 0

    asyncio.run(test())
