"""A cohort in groups: a sum for each, and the model that the arithmetic simulation makes of the same vectors."""

from __future__ import annotations

import numpy as np
import pytest
from tests.server.by_hand import deployed, run_async
from tests.server.summing import begun, code_for, key_of, over, phase, plain_sum, started, swept

from hansa.algorithms.rounds import close_round
from hansa.algorithms.secure_sums import Groups, Opening
from hansa.secagg.server import Phase
from hansa.wire.generated import federation_pb2 as messages

PHASES = [each for each in Phase if each < Phase.DONE and each is not Phase.DRAW]
GROUPED = "secure_aggregation={maximum_cohort=9, max_weight=300.0, group_size=3, phase_deadline=50.0}"


def grouped(parts):
    """Return the parts of each group, the smaller one first."""
    found = {}
    for part in parts:
        found.setdefault(part.machine.task.hash, []).append(part)
    return sorted(found.values(), key=len)


def arithmetic(before, code, groups):
    """Return the next model as the simulation makes it of plain sums, where all take part."""
    count = sum(map(len, groups))
    opening = Opening(code, Groups(count, len(groups)), 1, before.streams)
    totals = [
        (tuple(np.array(each, s.dtype) for each, s in zip(plain_sum(code, group), code.ring.segments, strict=True)),
         len(group))
        for group in groups
    ]  # fmt: skip
    state, _ = close_round(before.plan, before.state, opening.aggregate(totals, before.plan.aggregator, count))
    return state.model


@pytest.mark.parametrize("forgets", [False, True], ids=["held", "read-anew"])
def test_each_group_has_its_sum_and_the_model_is_the_simulations(tmp_path, forgets):
    async def work():
        async with deployed(tmp_path) as server:
            parts = await begun(server, await started(server, 7, GROUPED))
            groups = grouped(parts)
            assert [len(group) for group in groups] == [3, 4]
            assert sorted(part.position for part in groups[1]) == [0, 1, 2, 3]
            code, before = await code_for(server, parts[0].assigned), await server.context(parts[0].assigned.id.run)
            for each in PHASES:
                for group in groups:
                    await phase(group, last=each is Phase.UNMASK)
                if forgets:
                    server.services.sums.drop(key_of(parts[0]))
            assert await over(server, parts[0]) == "closed"
            after = await server.context(parts[0].assigned.id.run)
            np.testing.assert_array_equal(after.state.model, arithmetic(before, code, groups))
            for part in parts:
                told = await part.device.check_in(reported=part.assigned.id)
                assert told.outcome == messages.OUTCOME_INCLUDED
            await swept(server, parts[0])

    run_async(work())


@pytest.mark.parametrize("lost_in", PHASES, ids=lambda each: each.name)
def test_a_group_with_too_few_left_has_no_sum_and_the_others_have_theirs(tmp_path, lost_in):
    async def work():
        async with deployed(tmp_path, round_deadline=100.0) as server:
            parts = await begun(server, await started(server, 7, GROUPED))
            small, large = grouped(parts)
            code, before = await code_for(server, parts[0].assigned), await server.context(parts[0].assigned.id.run)
            for each in PHASES:
                await phase(large, last=each is Phase.UNMASK)
            for each in PHASES:
                if each is lost_in:
                    for part in small[1:]:
                        await part.say()
                    server.clock.time += 101.0
                    break
                await phase(small)
            assert await over(server, parts[0]) == "closed"
            found = await server.round(parts[0].assigned.id)
            assert found.report["cohort"] == 4
            after = await server.context(parts[0].assigned.id.run)
            weight = 4 * 3 * code.weight_unit
            assert after.state.round == before.state.round + 1
            assert np.isfinite(after.state.model).all()
            assert weight > 0
            for part, outcome in [*((part, messages.OUTCOME_NOT_INCLUDED) for part in small),
                                  *((part, messages.OUTCOME_INCLUDED) for part in large)]:  # fmt: skip
                assert (await part.device.check_in(reported=part.assigned.id)).outcome == outcome

    run_async(work())


def test_with_no_group_left_the_round_is_abandoned(tmp_path):
    async def work():
        async with deployed(tmp_path, round_deadline=100.0) as server:
            parts = await begun(server, await started(server, 7, GROUPED))
            for group in grouped(parts):
                await group[0].say()
            server.clock.time += 101.0
            assert await over(server, parts[0]) == "abandoned"
            (event,) = await server.events("round.abandoned")
            assert event.detail["why"] == "1 clients have answered in phase ADVERTISE, fewer than 3"

    run_async(work())
