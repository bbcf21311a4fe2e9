"""Processes that spend from one budget at once, and processes that are killed while they do."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.governance.spending import key_of, ledger_of, origin_of, release_of
from tests.governance.test_ledger import cost_of

from hansa.core.ledger import Refusal, Reservation

ROOT = Path(__file__).parents[2]
SPENDER = Path(__file__).parent / "spender.py"


def spender(store, seed, run, go, mode):
    paths = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    command = [sys.executable, SPENDER, store.url, seed.tenant.id, seed.population.id, run, go, mode]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"}
    )


async def spend(store, seed, go, runs, mode):
    """Let processes spend at once; return what each said last, and its exit status."""

    def together():
        started = [spender(store, seed, run, go, mode) for run in runs]
        for each in started:
            assert each.stdout.readline() == "ready\n"
        go.touch()
        return [(each.communicate(timeout=120)[0].strip(), each.returncode) for each in started]

    return await asyncio.to_thread(together)


def test_of_eight_processes_that_spend_the_last_budget_at_once_exactly_one_succeeds(run_on, tmp_path):
    """As replicas they first reserve one round together, which is one reservation; then each wants what is left."""

    async def test(store, seed):
        ledger = await ledger_of(store, seed, cost_of(release_of(), release_of()) + 1e-6)
        runs = [f"run-{number}" for number in range(8)]
        said = await spend(store, seed, tmp_path / "go", runs, "shared, then own")
        assert [status for _, status in said] == [0] * 8
        words = [text.split() for text, _ in said]
        assert {shared for shared, _ in words} == {"2"}
        assert sorted(own for _, own in words) == ["HANSA-BUDGET-OVERDRAWN"] * 7 + ["reserved"]
        assert (await ledger.balance("wards")).charged == pytest.approx(cost_of(release_of(), release_of()))
        assert (await ledger.verify("wards")).rows == 4  # the limit, two reservations, one commit

    run_on(test)


@pytest.mark.parametrize("mode", ["die after", "die inside"])
def test_a_process_killed_between_reserve_and_commit_never_makes_less_spent(run_on, tmp_path, mode):
    """Killed before its transaction ended, it has spent nothing and released nothing; killed after it, it has spent."""

    async def test(store, seed):
        ledger = await ledger_of(store, seed, 1.2 * cost_of(release_of()))
        assert await spend(store, seed, tmp_path / "go", [seed.run.id], mode) == [("", -9)]
        kept = mode == "die after"
        assert (await ledger.balance("wards")).charged == pytest.approx(cost_of(release_of()) if kept else 0.0)
        await ledger.verify("wards")
        other = await ledger.reserve(key_of(seed, 2), release_of(), origin_of(seed))
        assert isinstance(other, Refusal if kept else Reservation)
        if kept:  # whoever takes the round over finds the reservation, and may give it back
            again = await ledger.reserve(key_of(seed, 1), release_of(), origin_of(seed))
            assert (again.state, again.row) == ("reserved", 2)
            await ledger.void(key_of(seed, 1), "given up")
            assert isinstance(await ledger.reserve(key_of(seed, 2), release_of(), origin_of(seed)), Reservation)

    run_on(test)
