"""Rounds under privacy on the real server: charged before they open, noised as they close, refused beyond a budget."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from tests.server import summing
from tests.server.by_hand import code_of, deployed, run_async
from tests.server.private import BANDED, PRIVATE, SCALED, budget, first_round, integers, started, until

from hansa.algorithms.fixed_point import vectors
from hansa.core.errors import DivergenceError, HansaError, StoreError
from hansa.core.nouns import Batch
from hansa.secagg.server import Phase
from hansa.server import closing, coordinator, private_rounds
from hansa.server.lifecycle import Upcoming
from hansa.server.opening import NotYet, open_next
from hansa.wire.generated import federation_pb2 as messages


async def one_round(server, devices, norm=0.5):
    asked = [await device.assignment() for device in devices]
    for device, assignment in zip(devices, asked, strict=True):
        answer = await device.put(assignment.id, await integers(server, assignment, norm))
        assert answer.status_code in (200, 201, 204), answer.text
    return asked[0].id


async def ledger(server):
    async with server.services.store.reading() as rows:
        scope = await rows.ledger.named(server.token.tenant, "hospitals")
        return [(row.kind, json.loads(row.content)) for row in await rows.ledger.after(scope.id, 0, 1000)]


async def run_state(server, run):
    async with server.services.store.reading() as rows:
        return await rows.runs.get(run)


def test_a_private_plan_needs_a_budget(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            with pytest.raises(HansaError) as caught:
                await server.submit(*PRIVATE, *SCALED)
            assert caught.value.code == "HANSA-BUDGET-MISSING"
            await budget(server, adjacency="replace-one")
            with pytest.raises(HansaError) as caught:
                await server.submit(*PRIVATE, *SCALED)
            assert caught.value.code == "HANSA-BUDGET-SCOPE"

    run_async(work())


def test_what_the_plan_shows_to_overdraw_is_refused_at_submit(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            await budget(server, epsilon=7.9)
            with pytest.raises(HansaError, match="reference") as caught:
                await server.submit(*PRIVATE, *SCALED)
            assert caught.value.code == "HANSA-BUDGET-OVERDRAWN"

    run_async(work())


def test_rounds_are_charged_noised_and_settled(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            await budget(server)
            run, devices = await started(server)
            before = (await server.context(run)).state.model
            for number in (1, 2, 3):
                of = await one_round(server, devices)
                assert of.round == number
                await until(server, of)
            kinds = [kind for kind, _ in await ledger(server)]
            assert kinds == ["limit", *["reserve", "commit"] * 3]
            content = [row for _, row in await ledger(server)]
            assert content[-1]["epsilon_charged"] <= 8.0 < content[-1]["epsilon_charged"] * 1.01
            assert content[2]["cohort_actual"] == 2
            context = await server.context(run)
            moved = context.state.model - before
            multiplier = context.plan.privacy.noise_multiplier
            assert np.abs(moved).max() > 0
            assert moved[1:].std() == pytest.approx(multiplier / 2 * 3**0.5, rel=0.6)
            assert content[2]["released"] != content[4]["released"]
            event = (await until(server, of)).report
            assert event["train_loss"] is None

    run_async(work())


def test_amplification_waits_for_the_population_that_it_counts_on(tmp_path, monkeypatch):
    attempts = []

    async def seen(*arguments):
        attempts.append(await open_next(*arguments))
        return attempts[-1]

    monkeypatch.setattr(coordinator, "open_next", seen)
    sampled = (
        "privacy.trusted_sampling=true",
        'privacy.adjacency="replace-one"',
        "privacy.population=4",
        'cohort={kind="uniform", size=2}',
    )

    async def work():
        async with deployed(tmp_path) as server:
            await budget(server, adjacency="replace-one")
            reluctant = await server.device("a hospital more", consent=False)
            _, devices = await started(server, *sampled, clients=3)
            for _ in range(500):
                if len(attempts) > 2:
                    break
                await asyncio.sleep(0.02)
            said = {getattr(attempt, "why", "it opened") for attempt in attempts}
            assert said == {"the plan's privacy.population needs 4 eligible clients, and fewer are"}, (
                "3 consent, and 4 are counted on"
            )
            reluctant.consent = True
            devices.append(reluctant)
            for _ in range(500):
                told = [await device.check_in() for device in devices]
                if sum(each.HasField("assignment") for each in told) == 2:
                    break
                await asyncio.sleep(0.02)
            assert [kind for kind, _ in await ledger(server)] == ["limit", "reserve"]

    run_async(work())


def test_an_update_that_is_too_long_is_refused_and_its_client_named(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            await budget(server)
            _, devices = await started(server)
            asked = [await device.assignment() for device in devices]
            refused = await devices[0].put(asked[0].id, await integers(server, asked[0], norm=1.5))
            assert code_of(refused) == "HANSA-REPORT-INVALID"
            (event,) = await server.events("report.refused")
            assert event.client == devices[0].id

    run_async(work())


def test_an_attempt_that_is_given_up_costs_nothing(tmp_path):
    async def work():
        async with deployed(tmp_path, round_deadline=30) as server:
            await budget(server)
            _, devices = await started(server)
            asked = await devices[0].assignment()
            server.clock.time += 31
            await server.given_up(asked.id)
            kinds = [kind for kind, _ in await ledger(server)]
            assert kinds[:3] == ["limit", "reserve", "void"]

    run_async(work())


POISSON = (
    "privacy={clip_norm=1.0, delta=1e-5, epsilon=8.0, trusted_sampling=true}",
    'cohort={kind="poisson", rate=1.0}',
    "rounds=1",
)
UNIFORM = (
    'privacy={clip_norm=1.0, delta=1e-5, epsilon=8.0, trusted_sampling=true, adjacency="replace-one", population=3}',
    'cohort={kind="uniform", size=2}',
)


def test_an_amplified_round_without_a_report_is_released_and_not_tried_until_somebody_reports(tmp_path):
    """Else whoever reports alone would be in every release, however seldom it is drawn."""

    async def work():
        async with deployed(tmp_path, round_deadline=30) as server:
            await budget(server)
            run, _ = await started(server, *POISSON, clients=3)
            opened = await first_round(server, run)
            server.clock.time += 31
            for _ in range(500):
                async with server.services.store.reading() as rows:
                    closed = await rows.rounds.get(opened.id)
                if closed.state not in ("opening", "collecting", "aggregating"):
                    break
                await asyncio.sleep(0.02)
            assert closed.state == "closed"
            assert opened.cohort_size > 0
            told = await ledger(server)
            assert [kind for kind, _ in told] == ["limit", "reserve", "commit"]
            assert told[-1][1]["cohort_actual"] == 0

    run_async(work())


def test_no_round_is_drawn_from_fewer_than_amplification_is_claimed_for(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            await budget(server, adjacency="replace-one")
            devices = [await server.device(f"hospital {number}") for number in range(3)]
            for device in devices[:2]:
                await device.check_in()  # two are eligible, the third never called
            run = await server.submit(*PRIVATE, *SCALED, *UNIFORM)
            told = await open_next(server.services, await server.context(run), Upcoming("training", 1, everyone=False))
            assert told == NotYet("the plan's privacy.population needs 3 eligible clients, and fewer are")
            await devices[2].check_in()
            assert (await first_round(server, run)).population == 3

    run_async(work())


@pytest.mark.parametrize("cohort", ['{kind="uniform", size=2}', '{kind="min-separation", size=2, rounds=1}'])
def test_more_are_drawn_where_many_are_not_eligible_and_the_plan_stays_as_it_is(tmp_path, cohort):
    """A plan with a larger cohort would be another one, which its divisor, its noise or its budget does not fit."""

    async def work():
        async with deployed(tmp_path) as server:
            await budget(server)
            for number in range(8):
                await server.device(f"silent {number}")
            run, _ = await started(server, f"cohort={cohort}")
            assert (await first_round(server, run)).cohort_size == 2

    run_async(work())


def test_a_round_that_diverged_has_told_of_its_sum_and_is_not_given_back(tmp_path, monkeypatch):
    def diverges(*_):
        raise DivergenceError("HANSA-RUN-DIVERGED", rule="r", found="a norm of the noised sum", action="a")

    async def work():
        async with deployed(tmp_path) as server:
            await budget(server)
            run, devices = await started(server)
            monkeypatch.setattr(closing.divergence, "check", diverges)
            await until(server, await one_round(server, devices), "abandoned")
            assert [kind for kind, _ in await ledger(server)] == ["limit", "reserve", "freeze"]
            assert "a norm of the noised sum" in (await run_state(server, run)).why

    run_async(work())


def test_clients_whose_sum_the_server_saw_have_taken_part_also_where_the_attempt_is_given_up(tmp_path, monkeypatch):
    """Else a client that works with the server spoils every attempt, and each shows the others' sum under new noise."""

    async def spoilt(*_, **__):
        raise HansaError("HANSA-SUM-RANGE", rule="r", found="f", action="a")

    def vector(code, seed):
        values = np.full((1, code.width), seed, dtype=code.dtype)
        return vectors(code, Batch(values, code.layout.encode_lanes({"count": np.ones(1)}, 1), code.layout))[0]

    async def work():
        async with deployed(tmp_path) as server:
            await budget(server, epsilon=100.0)
            devices = await summing.started(
                server, 4, "transforms=[]", 'aggregator={kind="fixed-mean", divisor=4}',
                'privacy={clip_norm=1.0, delta=1e-5, epsilon=40.0, noise_by="clients"}',
                'cohort={kind="min-separation", size=4, rounds=1, max_participations=1}', "rounds=1",
                "secure_aggregation={maximum_cohort=4, minimum_survivors=4, minimum_cohort=4, assumed_colluding=1}",
            )  # fmt: skip
            parts = await summing.begun(server, devices)
            for each in [each for each in Phase if each < Phase.DONE and each is not Phase.DRAW]:
                await summing.phase(parts, last=each is Phase.UNMASK)
            assert await summing.over(server, parts[0]) == "abandoned"
            numbers = np.array([part.assigned.number for part in parts], dtype=np.int64)
            async with server.services.store.reading() as rows:
                last, times = await rows.participation.of(parts[0].assigned.id.run, numbers)
            assert (last == 1).all()
            assert (times == 1).all()

    monkeypatch.setattr(closing, "close_sum", spoilt)
    monkeypatch.setattr(summing, "vector_of", vector)
    run_async(work())


def test_clients_with_a_budget_are_in_no_plan_without_privacy(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            await budget(server)
            with pytest.raises(HansaError, match="no \\[privacy\\]") as caught:
                await server.submit(*SCALED, "evaluation={federated=false}")
            assert caught.value.code == "HANSA-BUDGET-SCOPE"

    run_async(work())


def test_of_two_runs_that_fit_alone_the_second_waits_for_the_operator(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            await budget(server, epsilon=9.0)
            first, devices = await started(server)
            second = await server.submit(*PRIVATE, *SCALED)
            for _ in range(500):
                states = [await run_state(server, run) for run in (first, second)]
                if "paused" in {found.state for found in states}:
                    break
                for device in devices:
                    told = await device.check_in()
                    if told.HasField("assignment"):
                        asked = messages.Assignment.FromString(told.assignment.assignment)
                        await device.put(asked.id, await integers(server, asked))
                await asyncio.sleep(0.02)
            paused = [found for found in states if found.state == "paused"]
            assert paused  # both, where they took turns
            assert all("HANSA-BUDGET-OVERDRAWN" in found.why for found in paused)
            content = [row for _, row in await ledger(server)]
            assert content[-1]["epsilon_charged"] <= 9.0

    run_async(work())


def test_a_row_of_correlated_noise_serves_no_second_sum(tmp_path, monkeypatch):
    """A round whose updates are lost after its noise may have been drawn is not tried again with other survivors."""

    async def work():
        async def lost(*args, **more):
            raise StoreError("HANSA-NOT-FOUND", rule="It is there.", found="It is not.", action="None.")

        monkeypatch.setattr(closing, "close", lost)
        async with deployed(tmp_path) as server:
            await budget(server)
            run, devices = await started(server, *BANDED)
            await server.given_up(await one_round(server, devices))
            for _ in range(500):
                if (found := await run_state(server, run)).state == "paused":
                    break
                await asyncio.sleep(0.02)
            assert found.why.startswith("[HANSA-NOISE-ROW]")

    run_async(work())


def test_correlated_noise_is_one_charge_and_its_rows_are_the_runs_own(tmp_path, monkeypatch):
    async def work():
        keys = []
        noise_key = private_rounds.noise_key

        async def seen(*args):
            keys.append(await noise_key(*args))
            return keys[-1]

        monkeypatch.setattr(private_rounds, "noise_key", seen)
        async with deployed(tmp_path) as server:
            await budget(server)
            run, devices = await started(server, *BANDED)
            for _ in range(2):
                await until(server, await one_round(server, devices))
        async with deployed(tmp_path) as server:  # started again over the same files
            found, told = await run_state(server, run), await ledger(server)
        assert len(set(keys)) == 1
        assert len(keys[0]) == 32
        assert keys[0].hex() not in json.dumps(found.notes)
        assert [kind for kind, _ in told] == ["limit", "reserve", "commit", "row", "row"]
        assert [row["noise_row"] for kind, row in told if kind == "row"] == [0, 1]

    run_async(work())
