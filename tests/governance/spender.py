"""A process that spends: python spender.py URL TENANT POPULATION RUN GO MODE. Its only output is what became of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from tests.governance.spending import Clock, outcome_of, release_of

from hansa.core.ledger import Origin, Reservation, SpendKey
from hansa.governance.account import Account
from hansa.governance.chain import hash_of
from hansa.governance.ledger import StoreLedger
from hansa.store.store import Store


def say(word):
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def wait_for(path):
    say("ready")
    while not path.exists():
        time.sleep(0.001)


async def main(url, tenant, population, run, go, mode):
    store = await Store.open(url, migrate=False)
    origin = Origin(population=population, job="job", plan_sha256="p" * 64, actor="a process")
    hash_of({})  # what is imported late is here before any lock is held
    wait_for(Path(go))
    if mode == "die inside":
        async with store.transaction() as rows:
            await Account(rows, tenant, 5.0).reserve(SpendKey(run, 1, 1), release_of(), origin)
            os.kill(os.getpid(), signal.SIGKILL)
    ledger = StoreLedger(store, tenant, Clock())
    if mode == "shared, then own":
        say(str((await ledger.reserve(SpendKey("shared", 1, 1), release_of(), origin)).row))
    found = await ledger.reserve(SpendKey(run, 1, 1), release_of(), origin)
    if mode == "die after":
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(found, Reservation):
        await ledger.commit(SpendKey(run, 1, 1), outcome_of())
    say("reserved" if isinstance(found, Reservation) else found.error.code)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
