"""Secure sums on the real server: exact sums, drop-outs, what is refused, restarts and replicas."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from tests.server.by_hand import Device, deployed, run_async, serving
from tests.server.by_hand import code_of as refusal
from tests.server.summing import begun, code_for, over, phase, plain_sum, started, swept

from hansa.algorithms.fixed_point import decode, whole_numbers
from hansa.secagg import keys, known
from hansa.secagg.messages import Masked, Shares
from hansa.secagg.server import Phase
from hansa.server import closing
from hansa.store.failures import full
from hansa.store.records import Population
from hansa.store.reports import Reports
from hansa.store.sums import Sums
from hansa.wire.generated import federation_pb2 as messages

PHASES = [each for each in Phase if each < Phase.DONE and each is not Phase.DRAW]


@pytest.fixture
def sums(monkeypatch):
    """The sums that rounds were closed with, as the server had them."""
    seen = []
    close_sum = closing.close_sum

    async def seeing(*args, totals, **more):
        seen.extend([list(map(int, each)) for each in total] for total, _ in totals)
        return await close_sum(*args, totals=totals, **more)

    monkeypatch.setattr(closing, "close_sum", seeing)
    return seen


@pytest.mark.parametrize("clients", [3, 5])
def test_a_round_gives_exactly_the_plain_sum_and_the_model_that_follows(tmp_path, sums, clients):
    async def work():
        async with deployed(tmp_path) as server:
            parts = await begun(server, await started(server, clients))
            code, before = await code_for(server, parts[0].assigned), await server.context(parts[0].assigned.id.run)
            for each in PHASES:
                await phase(parts, last=each is Phase.UNMASK)
            assert await over(server, parts[0]) == "closed"
            total = plain_sum(code, parts)
            assert sums == [total]
            arrays = tuple(np.array(each, s.dtype) for each, s in zip(total, code.ring.segments, strict=True))
            values, _ = whole_numbers(code, arrays, clients)
            weight = clients * 3 * code.weight_unit
            expected = before.state.model + (decode(code, values, 1, before.streams) / weight).astype(np.float32)
            after = await server.context(parts[0].assigned.id.run)
            assert after.state.round == 1
            np.testing.assert_allclose(after.state.model, expected, rtol=1e-6)
            for each in parts:
                told = await each.device.check_in(reported=each.assigned.id)
                assert told.outcome == messages.OUTCOME_INCLUDED
            await swept(server, parts[0])

    run_async(work())


@pytest.mark.parametrize("lost_in", PHASES, ids=lambda each: each.name)
def test_one_client_of_five_is_lost_in_a_phase_and_the_survivors_sum_is_exact(tmp_path, sums, lost_in):
    async def work():
        async with deployed(tmp_path, round_deadline=100.0) as server:
            parts = await begun(server, await started(server, 5))
            code, left = await code_for(server, parts[0].assigned), list(parts)
            for each in PHASES:
                if each is lost_in:
                    left = parts[:2] + parts[3:]
                for part in left:
                    assert (await part.say()).status_code == 200
                if each is lost_in:
                    server.clock.time += 101.0
                if each is not Phase.UNMASK:
                    for part in left:
                        await part.hear()
            assert await over(server, parts[0]) == "closed"
            assert sums == [plain_sum(code, left if lost_in <= Phase.MASK else parts)]
            told = await parts[2].device.check_in(reported=parts[2].assigned.id)
            included = lost_in > Phase.MASK
            assert told.outcome == (messages.OUTCOME_INCLUDED if included else messages.OUTCOME_NOT_INCLUDED)

    run_async(work())


@pytest.mark.parametrize("lost_in", PHASES, ids=lambda each: each.name)
def test_with_too_few_left_a_round_is_abandoned_and_tried_again(tmp_path, sums, lost_in):
    async def work():
        async with deployed(tmp_path, round_deadline=100.0) as server:
            devices = await started(server, 3)
            parts = await begun(server, devices)
            for each in PHASES:
                if each is lost_in:
                    for part in parts[:2]:
                        await part.say()
                    server.clock.time += 101.0
                    break
                await phase(parts)
            assert await over(server, parts[0]) == "abandoned"
            (event,) = await server.events("round.abandoned")
            fewest = 3  # of three clients, the threshold of shares is three too
            if lost_in is Phase.UNMASK:
                assert "share" in event.detail["why"] or "secret" in event.detail["why"]
            else:
                assert event.detail["why"] == f"2 clients have answered in phase {lost_in.name}, fewer than {fewest}"
            assert sums == []
            await swept(server, parts[0])
            assert refusal(await parts[0].call()) == "HANSA-REPORT-UNEXPECTED"
            server.clock.time += 40.0  # the pause before another attempt
            again = await begun(server, devices, attempt=2)
            for each in PHASES:
                await phase(again, last=each is Phase.UNMASK)
            assert await over(server, again[0]) == "closed"
            assert sums == [plain_sum(await code_for(server, again[0].assigned), again)]

    run_async(work())


@pytest.mark.parametrize("lost_in", [Phase.ADVERTISE, Phase.MASK], ids=lambda each: each.name)
def test_a_sum_of_fewer_than_a_round_needs_is_not_shown(tmp_path, sums, lost_in):
    """Four of five would be enough for the sum; the plan's goal is five."""

    async def work():
        async with deployed(tmp_path, round_deadline=100.0) as server:
            parts = await begun(server, await started(server, 5, "schedule.report_goal=5"))
            for each in PHASES:
                if each is lost_in:
                    for part in parts[:4]:
                        assert (await part.say()).status_code == 200
                    server.clock.time += 101.0
                    break
                await phase(parts)
            assert await over(server, parts[0]) == "abandoned"
            (event,) = await server.events("round.abandoned")
            assert event.detail["why"] == f"4 clients have answered in phase {lost_in.name}, fewer than 5"
            assert sums == []

    run_async(work())


def changed(message, at):
    """Return a message with one bit turned."""
    return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]


def test_what_no_honest_client_sends_is_refused_named_and_changes_nothing(tmp_path, sums):
    """The sum goes on with the four that are honest; who sent something else is not waited for."""

    async def work():
        async with deployed(tmp_path) as server:
            parts = await begun(server, await started(server, 5))
            bad, code = parts[0], await code_for(server, parts[0].assigned)
            another = await bad.call(parts[1].reply)
            assert refusal(another) == "HANSA-REPORT-UNEXPECTED"  # a message in another's name
            assert await server.events("report.refused") == []
            assert refusal(await bad.call(bad.reply[:-1])) == "HANSA-SECAGG-MESSAGE"
            (event,) = await server.events("report.refused")
            assert (event.client, event.detail["code"]) == (bad.device.id, "HANSA-SECAGG-MESSAGE")
            for at in (0, 4, 12, 16, 48, len(bad.reply) - 1):  # magic, kind, length, task, a key, the signature
                answer = await bad.call(changed(bad.reply, at))
                assert answer.status_code in {400, 403}, at
            assert refusal(await bad.call(b"x" * 5_000_000)) == "HANSA-REQUEST-TOO-LARGE"
            for each in PHASES:
                await phase(parts[1:], last=each is Phase.UNMASK)
            assert await over(server, bad) == "closed"
            assert sums == [plain_sum(code, parts[1:])]

    run_async(work())


def test_whose_shares_cannot_be_opened_is_told_to_the_operator_with_those_who_say_so(tmp_path, sums):
    """One client could stop every attempt by such shares: an attempt that fails says whom to look at."""

    async def work():
        async with deployed(tmp_path) as server:
            parts = await begun(server, await started(server, 5))
            code = await code_for(server, parts[0].assigned)
            await phase(parts)
            dealer = parts[3]
            whole = Shares.decode(dealer.reply, dealer.machine.task.hash)
            first, *rest = whole.read_entries()
            accuser = next(each for each in parts if each.position == first.client)
            entries = b"".join(each.encode() for each in (first._replace(sealed=bytes(104)), *rest))
            spoilt = replace(whole, entries=entries)
            signature = keys.sign(dealer.device.key, "shares", *spoilt.signed_fields())
            dealer.reply = replace(spoilt, signature=signature).encode()
            await phase(parts)
            left = [each for each in parts if each is not accuser]
            for each in parts:
                assert (await each.say()).status_code == 200
            for each in left:
                await each.hear()
            await phase(left)
            await phase(left, last=True)
            assert await over(server, dealer) == "closed"
            assert sums == [plain_sum(code, left)]
            (event,) = await server.events("client.accused")
            assert event.client == dealer.device.id
            assert event.detail["by"] == [accuser.device.id]
            assert await server.events("client.blamed") == []

    run_async(work())


@pytest.mark.parametrize("at", PHASES, ids=lambda each: each.name)
def test_a_repeated_message_is_harmless_and_another_answer_to_a_phase_is_refused(tmp_path, sums, at):
    async def work():
        async with deployed(tmp_path) as server:
            parts = await begun(server, await started(server, 4))
            code = await code_for(server, parts[0].assigned)
            for _ in [each for each in PHASES if each < at]:
                await phase(parts)
            for _ in range(2):
                assert (await parts[0].say()).status_code == 200
            assert await server.events("report.refused") == []
            if at is Phase.MASK:
                other = await parts[0].device.put(parts[0].assigned.id, changed(parts[0].reply, 200))
                assert refusal(other) == "HANSA-REPORT-ANSWERED"
            else:
                other = await parts[0].call(changed(parts[0].reply, len(parts[0].reply) - 1))
                assert refusal(other) == "HANSA-SECAGG-ANSWERED"
                (event,) = await server.events("report.refused")
                assert (event.client, event.detail["code"]) == (parts[0].device.id, "HANSA-SECAGG-ANSWERED")
            await phase(parts[1:], last=True)
            if at is not Phase.UNMASK:
                for each in parts:
                    await each.hear()
                await rest(server, parts[at < Phase.MASK :], Phase(at + 1))
            assert await over(server, parts[0]) == "closed"
            assert sums == [plain_sum(code, parts[at < Phase.MASK :])]

    run_async(work())


def test_a_client_that_did_not_hear_the_answer_says_the_same_again_and_hears_it(tmp_path, sums):
    """The others go on meanwhile, so that its message comes in the next phase."""

    async def work():
        async with deployed(tmp_path) as server:
            parts = await begun(server, await started(server, 3))
            code = await code_for(server, parts[0].assigned)
            for each in (Phase.ADVERTISE, Phase.SHARE, Phase.CONSIST):
                await phase(parts, last=True)
                for part in parts:
                    answer = await part.say()
                    told = messages.ExchangeResponse.FromString(answer.content).message
                    again = messages.ExchangeResponse.FromString((await part.say()).content).message
                    assert told == again != b""
                    part.take(told)
                if each is Phase.SHARE:
                    await phase(parts)
            await rest(server, parts, Phase.UNMASK)
            assert sums == [plain_sum(code, parts)]
            assert await server.events("report.refused") == []

    run_async(work())


def test_messages_of_earlier_phases_and_other_tasks_are_refused(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = await started(server, 3)
            parts = await begun(server, devices)
            first = parts[0].reply
            await phase(parts)
            assert refusal(await parts[0].call(first)) == "HANSA-SECAGG-UNEXPECTED"
            assert await server.events("report.refused") == []  # late, or repeated after all: nobody is named
            for part in parts[:2]:
                await part.say()
            server.clock.time += 61.0  # and with two, the attempt is given up
            assert await over(server, parts[0]) == "abandoned"
            server.clock.time += 40.0  # the pause before another attempt
            again = await begun(server, devices, attempt=2)
            assert refusal(await again[0].call(first)) == "HANSA-SECAGG-UNEXPECTED"
            assert (await again[0].say()).status_code == 200

    run_async(work())


def test_whoever_has_no_part_in_a_sum_learns_nothing_of_it(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            parts = await begun(server, await started(server, 3))
            late = await server.device("late")
            async with server.services.store.transaction() as rows:
                others = await rows.tenants.add("others")
                for name, tenant in (("population-2", server.token.tenant), ("population-3", others.id)):
                    await rows.populations.add(Population(name, tenant, f"the {name}", schema={}))
            elsewhere = []
            for population in ("population-2", "population-3"):
                device = Device(server.http, server.clock)
                await device.enrol(await server.invite("far", population=population))
                elsewhere.append(device)
            for device in (late, *elsewhere):
                for message in (b"", parts[0].reply):
                    request = messages.ExchangeRequest(id=parts[0].assigned.id, message=message, seen=1)
                    answer = await device.call("Exchange", request)
                    assert refusal(answer) == "HANSA-REPORT-UNEXPECTED"
                answer = await device.put(parts[0].assigned.id, b"x" * 100)
                assert refusal(answer) == "HANSA-REPORT-UNEXPECTED"
            assert await server.events("report.refused") == []
            nothing = messages.ExchangeRequest(id=parts[0].assigned.id)
            nothing.id.round = 7
            assert refusal(await late.call("Exchange", nothing)) == "HANSA-REPORT-UNEXPECTED"

    run_async(work())


async def masked(server, clients=4):
    """Return parts whose next message is the masked vector."""
    parts = await begun(server, await started(server, clients))
    await phase(parts)
    await phase(parts)
    return parts


async def rest(server, parts, first=Phase.MASK):
    """Let a sum go to its end from a phase on."""
    for each in [each for each in PHASES if each >= first]:
        await phase(parts, last=each is Phase.UNMASK)
    assert await over(server, parts[0]) == "closed"


BROKEN_VECTORS = {
    "shorter": (lambda whole: whole[:-1], "HANSA-RING-INVALID"),
    "longer": (lambda whole: whole + b"0", "HANSA-RING-INVALID"),
    "without a signature": (lambda whole: whole[:-64] + bytes(64), "HANSA-SECAGG-REFUSED"),
    "with one bit turned": (lambda whole: changed(whole, 200), "HANSA-SECAGG-REFUSED"),
    "no message at all": (lambda whole: bytes(len(whole)), "HANSA-SECAGG-MESSAGE"),
}


@pytest.mark.parametrize("broken", BROKEN_VECTORS)
def test_a_broken_masked_vector_is_refused_and_named_and_leaves_the_sum_as_it_was(tmp_path, sums, broken):
    async def work():
        async with deployed(tmp_path) as server:
            parts = await masked(server, 5)
            code, (change, refused) = await code_for(server, parts[0].assigned), BROKEN_VECTORS[broken]
            answer = await parts[0].device.put(parts[0].assigned.id, change(parts[0].reply))
            assert refusal(answer) == refused
            (event,) = await server.events("report.refused")
            assert (event.client, event.detail["code"]) == (parts[0].device.id, refused)
            assert await server.services.blobs.names("updates/") == []
            late = await parts[0].say()
            assert late.json()["verdict"] == "VERDICT_LATE"  # it is not waited for any more
            assert await server.services.blobs.names("updates/") == []
            await rest(server, parts[1:])
            assert sums == [plain_sum(code, parts[1:])]

    run_async(work())


def test_a_masked_vector_is_not_taken_before_its_phase_or_by_exchange(tmp_path, sums):
    async def work():
        async with deployed(tmp_path) as server:
            parts = await begun(server, await started(server, 4))
            code = await code_for(server, parts[0].assigned)
            early = Masked(parts[0].position, parts[0].machine.task.hash, bytes(code.ring.nbytes), bytes(64)).encode()
            assert refusal(await parts[0].device.put(parts[0].assigned.id, early)) == "HANSA-REPORT-UNEXPECTED"
            assert await server.services.blobs.names("updates/") == []
            await phase(parts)
            await phase(parts)
            assert refusal(await parts[0].call(parts[0].reply)) == "HANSA-REPORT-UNEXPECTED"
            await rest(server, parts)
            assert sums == [plain_sum(code, parts)]

    run_async(work())


def test_a_masked_vector_comes_in_parts_and_none_is_hashed_again_for_its_signature(tmp_path, sums, monkeypatch):
    def again(_):
        raise AssertionError

    async def work():
        async with deployed(tmp_path) as server:
            parts = await masked(server)
            monkeypatch.setattr(known, "content_of", again)
            whole, middle = parts[0].reply, len(parts[0].reply) // 2
            for start, stop in ((0, middle), (middle, len(whole))):
                spread = {"whole": whole, "Content-Range": f"bytes {start}-{stop - 1}/{len(whole)}"}
                answer = await parts[0].device.put(parts[0].assigned.id, whole[start:stop], **spread)
                assert answer.status_code == (202 if start == 0 else 200), answer.text
            assert answer.json()["verdict"] == "VERDICT_ACCEPTED"
            await phase(parts[1:])
            await parts[0].hear()
            await rest(server, parts, Phase.CONSIST)
            assert sums == [plain_sum(await code_for(server, parts[0].assigned), parts)]

    run_async(work())


def test_parts_that_are_not_what_was_announced_are_refused(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            parts = await masked(server, 3)
            whole, middle = parts[0].reply, len(parts[0].reply) // 2
            for start, stop in ((0, middle), (middle, len(whole))):
                spread = {"whole": b"else", "Content-Range": f"bytes {start}-{stop - 1}/{len(whole)}"}
                answer = await parts[0].device.put(parts[0].assigned.id, whole[start:stop], **spread)
            assert refusal(answer) == "HANSA-UPLOAD-DIGEST"
            assert (await parts[0].say()).json()["verdict"] == "VERDICT_ACCEPTED"

    run_async(work())


@pytest.mark.parametrize("left_in", PHASES, ids=lambda each: each.name)
def test_nobody_waits_for_a_client_that_declines_in_the_middle(tmp_path, sums, left_in):
    """The clock stands still, so no deadline passes."""

    async def work():
        async with deployed(tmp_path) as server:
            parts = await begun(server, await started(server, 5))
            code, left = await code_for(server, parts[0].assigned), list(parts)
            for each in PHASES:
                if each is left_in:
                    left = parts[1:]
                    reported = parts[0].assigned.id if each > Phase.MASK else None
                    told = await parts[0].device.check_in(declined=parts[0].assigned.id, reported=reported)
                    if reported is not None:
                        assert told.outcome == messages.OUTCOME_OPEN
                await phase(left, last=each is Phase.UNMASK)
            assert await over(server, parts[0]) == "closed"
            assert sums == [plain_sum(code, left if left_in <= Phase.MASK else parts)]
            told = await parts[0].device.check_in(reported=parts[0].assigned.id)
            included = left_in > Phase.MASK
            assert told.outcome == (messages.OUTCOME_INCLUDED if included else messages.OUTCOME_NOT_INCLUDED)

    run_async(work())


@pytest.mark.parametrize("half", [False, True], ids=["between", "within"])
@pytest.mark.parametrize("at", PHASES, ids=lambda each: each.name)
def test_a_server_that_starts_again_in_a_phase_goes_on(tmp_path, sums, at, half):
    async def work():
        async with deployed(tmp_path) as server:
            parts = await begun(server, await started(server, 3))
            code = await code_for(server, parts[0].assigned)
            for _ in [each for each in PHASES if each < at]:
                await phase(parts)
            if half:
                assert (await parts[0].say()).status_code == 200
        async with serving(tmp_path, server.clock) as (services, http):
            again = replace(server, services=services, http=http)
            for part in parts:
                part.device.http = http
            for each in [each for each in PHASES if each >= at]:
                await phase(parts, last=each is Phase.UNMASK)
            assert await over(again, parts[0]) == "closed"
            assert sums == [plain_sum(code, parts)]

    run_async(work())


def test_two_replicas_take_messages_of_one_sum_in_turn(tmp_path, sums):
    async def work():
        async with deployed(tmp_path) as server, serving(tmp_path, server.clock) as (_, other):
            parts = await begun(server, await started(server, 5))
            code = await code_for(server, parts[0].assigned)
            for number, each in enumerate(PHASES):
                for part in parts:
                    part.device.http = other if (number + part.position) % 2 else server.http
                await phase(parts, last=each is Phase.UNMASK)
            assert await over(server, parts[0]) == "closed"
            assert sums == [plain_sum(code, parts)]

    run_async(work())


async def said(part):
    """Send what a client has, again where the server says that another replica was first again and again."""
    for _ in range(20):
        answer = await part.say()
        if answer.status_code == 200:
            return
        assert refusal(answer) == "HANSA-STORE-CONFLICT"
    raise TimeoutError


def test_two_replicas_take_messages_of_one_sum_at_once(tmp_path, sums):
    async def work():
        async with deployed(tmp_path) as server, serving(tmp_path, server.clock) as (_, other):
            parts = await begun(server, await started(server, 5))
            code = await code_for(server, parts[0].assigned)
            for part in parts:
                part.device.http = other if part.position % 2 else server.http
            for each in PHASES:
                await asyncio.gather(*(said(part) for part in parts))
                if each is not Phase.UNMASK:
                    await asyncio.gather(*(part.hear() for part in parts))
            assert await over(server, parts[0]) == "closed"
            assert sums == [plain_sum(code, parts)]

    run_async(work())


@pytest.mark.parametrize(
    ("what", "at"),
    [*((Sums, at) for at in PHASES), (Reports, Phase.MASK)],
    ids=lambda each: getattr(each, "name", None) or each.__name__,
)
def test_what_could_not_be_written_is_not_believed(tmp_path, sums, monkeypatch, at, what):
    """The last message of a phase meets a full disk; sent again, it closes the phase as if nothing had been."""

    async def work():
        async with deployed(tmp_path) as server:
            parts = await begun(server, await started(server, 3))
            code = await code_for(server, parts[0].assigned)
            for _ in [each for each in PHASES if each < at]:
                await phase(parts)
            for part in parts[:2]:
                await part.say()
            with monkeypatch.context() as patched:
                patched.setattr(what, "add", _fail)
                assert refusal(await parts[2].say()) == "HANSA-SERVER-STORAGE"
            await phase(parts[2:], last=True)
            if at is not Phase.UNMASK:
                for part in parts:
                    await part.hear()
                await rest(server, parts, Phase(at + 1))
            assert await over(server, parts[0]) == "closed"
            assert sums == [plain_sum(code, parts)]

    run_async(work())


async def _fail(*_):
    raise full()


def test_a_client_that_hangs_up_leaves_no_half_taken_message(tmp_path, sums, monkeypatch):
    async def work():
        async with deployed(tmp_path) as server:
            parts = await begun(server, await started(server, 3))
            code, add, writing = await code_for(server, parts[0].assigned), Sums.add, asyncio.Event()
            await phase(parts[1:], last=True)

            async def slowly(*args):
                writing.set()
                await asyncio.sleep(0.05)
                return await add(*args)

            with monkeypatch.context() as patched:
                patched.setattr(Sums, "add", slowly)
                call = asyncio.create_task(parts[0].say())
                await writing.wait()
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            await rest(server, parts, Phase.ADVERTISE)
            assert sums == [plain_sum(code, parts)]

    run_async(work())
