"""A server that was restored asks what no client has seen, and its runs go on: on SQLite, and on PostgreSQL as its own
tools dump and restore it."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from tests.server.by_hand import deployed, run_async

from hansa.cli.main import main
from hansa.store.backup import after_restore, back_up, restore
from hansa.wire.generated import federation_pb2 as messages

PLAN = (
    "features.label=disease",
    "features.scaling=none",
    "evaluation.federated=false",
    "rounds=9",
)
SYNCHRONOUS = ()
BUFFERED = (
    'aggregator={kind="fixed-mean", divisor=2}',
    'schedule={kind="buffered", buffer_size=2, concurrency=2, max_staleness=0}',
)


async def answered(server, devices, seen, rounds):
    """Let devices answer so many rounds, each assignment once as an honest client does; return the last round."""
    number = 0
    for _ in range(rounds):
        for device in devices:
            asked = await next_of(device, seen)
            answer = await device.put(asked.id, await server.update(asked, 1.0))
            while answer.status_code == 503:  # the board is behind: later, as an honest client does
                answer = await device.put(asked.id, await server.update(asked, 1.0))
            assert answer.json()["verdict"] == "VERDICT_ACCEPTED"
            number = asked.id.round
    return number


async def next_of(device, seen):
    for _ in range(200):
        answer = await device.check_in(0.0)
        if answer.HasField("assignment"):
            asked = messages.Assignment.FromString(answer.assignment.assignment)
            if (device.id, asked.id.SerializeToString()) not in seen:
                seen.add((device.id, asked.id.SerializeToString()))
                return asked
        await asyncio.sleep(0.02)
    raise TimeoutError("nothing is asked that was not answered")


@pytest.mark.parametrize("schedule", [SYNCHRONOUS, BUFFERED], ids=["synchronous", "buffered"])
@pytest.mark.parametrize("times", [1, 2])
def test_after_a_restore_nothing_is_asked_that_a_client_has_answered(tmp_path, schedule, times):
    folder, seen = tmp_path / "server", set()

    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            await server.submit(*PLAN, *schedule)
            assert await answered(server, devices, seen, 1) == 1
            url = server.services.settings.database_url
            await asyncio.to_thread(back_up, url, folder / "blobs", tmp_path / "backup", now=server.clock.now())
            assert await answered(server, devices, seen, 2) == 3
        for turn in range(1, times + 1):
            for name in ("hansa.sqlite", "hansa.sqlite-wal", "hansa.sqlite-shm"):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / "blobs")
            now = server.clock.now() + 60 * turn
            later = now + 2  # a round that was given up rests for a moment
            await restore(tmp_path / "backup", url, folder / "blobs", now=now)
            async with deployed(tmp_path) as again:
                again.clock.time = later
                for device in devices:
                    device.http, device.clock = again.http, again.clock
                assert await answered(again, devices, seen, 2) in (2, 3)

    run_async(work())


def test_a_database_that_was_put_back_by_other_means_is_made_ready(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            await server.submit(*PLAN)
            before = await devices[0].assignment()
            await after_restore(server.services.store, now=server.clock.now())
            server.clock.time += 2
            after = await next_of(devices[0], {(devices[0].id, before.id.SerializeToString())})
            assert (after.id.round, after.id.attempt > before.id.attempt + 1) == (1, True)

    run_async(work())


def tool(postgres, name, *arguments):
    """Run a tool of the very PostgreSQL that serves, as its operator would."""
    tools = Path(f"/proc/{postgres.server.get_pid()}/exe").resolve().parent
    subprocess.run([tools / name, "--host", postgres.folder, "--username", "postgres", *arguments], check=True)


@pytest.mark.parametrize("schedule", [SYNCHRONOUS, BUFFERED], ids=["synchronous", "buffered"])
def test_postgresql_is_dumped_while_a_server_works_and_restored(tmp_path, schedule, postgres, monkeypatch, capsys):
    seen, dump = set(), tmp_path / "hansa.dump"
    name, again = (f"hansa_{secrets.token_hex(6)}" for _ in range(2))
    postgres.empty(name, like="template_hansa")

    async def before():
        async with deployed(tmp_path, database=postgres.url(name)) as server:
            devices = [await server.device(each) for each in "ab"]
            for device in devices:
                await device.check_in()
            run = await server.submit(*PLAN, *schedule)
            assert await answered(server, devices, seen, 1) == 1
            asked = await next_of(devices[0], seen.copy())
            answer = await devices[0].put(asked.id, await server.update(asked, 1.0))
            assert answer.json()["verdict"] == "VERDICT_ACCEPTED"  # in a round that is open as the dump is made
            seen.add((devices[0].id, asked.id.SerializeToString()))
            await asyncio.to_thread(tool, postgres, "pg_dump", "--format=custom", "--file", dump, name)
            shutil.copytree(tmp_path / "server" / "blobs", tmp_path / "blobs")
            await answered(server, devices[1:], seen, 1)
            await answered(server, devices, seen, 1)
        return run, devices

    async def after(run, devices):
        async with deployed(tmp_path, database=postgres.url(again)) as server:
            server.clock.time = max(server.clock.time, time.time()) + 60
            for device in devices:
                device.http, device.clock = server.http, server.clock
            assert await answered(server, devices, seen, 2) in (2, 3)
            (abandoned,) = await server.events("round.abandoned")
            assert (abandoned.run, abandoned.detail["round"]) == (run, 2)
            assert abandoned.detail["why"] == "the server was restored from a backup"

    run, devices = run_async(before())
    shutil.rmtree(tmp_path / "server" / "blobs")
    (tmp_path / "blobs").rename(tmp_path / "server" / "blobs")
    postgres.empty(again)
    tool(postgres, "pg_restore", "--exit-on-error", "--no-owner", "--dbname", again, dump)
    monkeypatch.setenv("HANSA_SERVER_FOLDER", str(tmp_path / "server"))
    monkeypatch.setenv("HANSA_SERVER_DATABASE", postgres.url(again))
    with pytest.raises(SystemExit) as ended:
        main(["server", "restore"])
    assert ended.value.code == 0
    assert "1 open round was given up" in " ".join(capsys.readouterr().err.split())
    run_async(after(run, devices))
