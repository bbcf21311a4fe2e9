"""Caps cap: nothing is sent, fetched or written against the site's policy; what waits goes on, once, when it may."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import safetensors.numpy
from fake_server import PLAN, SCAFFOLD, SECURE, TOKEN, digest, first_model, job_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_secure_sums import peers, work

from hansa.client import Agent, Policy
from hansa.client.limits import ANSWER, Limits
from hansa.client.machine import Machine
from hansa.client.pauses import OBSTRUCTED
from hansa.client.policy import Resources, SecureSums
from hansa.client.state import DECLINED, StateFolder
from hansa.client.usage import Usage
from hansa.core.errors import RefusedError
from hansa.wire.generated import federation_pb2 as wire

JOB = job_of({**PLAN, "rounds": 99})
DAY = 86400.0
OWN = "own_metrics.jsonl"


@dataclass
class Site:
    """A machine whose hour, battery and network a test turns, and its clock."""

    folder: object
    at: float = field(default_factory=time.time)
    metered: bool = False
    hour: float = 12.0

    def now(self) -> float:
        return self.at

    def battery(self, charge: int) -> None:
        for key, value in {"type": "Battery", "status": "Discharging", "capacity": charge}.items():
            (self.folder / "BAT0").mkdir(exist_ok=True)
            (self.folder / "BAT0" / key).write_text(str(value))

    def machine(self) -> Machine:
        return Machine(power=self.folder, hour=lambda _: self.hour, metered=lambda: self.metered)


@pytest.fixture
def site(tmp_path) -> Site:
    (tmp_path / "power").mkdir()
    made = Site(tmp_path / "power")
    made.battery(90)
    return made


@pytest.fixture
def agent_with(server, data, tmp_path, site):
    """Make an enrolled agent under some resources, on the site's machine and clock; again makes the next process."""
    made = []

    def make(**resources) -> Agent:
        for each in made:
            each.close()
        policy = Policy(resources=Resources(**resources), secure_sums=SecureSums(peers=peers(server)))
        agent = Agent(server.url, data, tmp_path / "state", policy, wait=0.0, clock=site, machine=site.machine())
        made.append(agent)
        agent.enrol(TOKEN)
        return agent

    yield make
    for each in made:
        each.close()


def low_battery(site):
    site.battery(10)


def metered(site):
    site.metered = True


def late_hour(site):
    site.hour = 20.0


CONDITIONS = pytest.mark.parametrize(
    ("resources", "turn"),
    [({"metered_network": False}, metered), ({"battery": 0.5}, low_battery), ({"hours": "8-18"}, late_hour)],
    ids=["metered", "battery", "hours"],
)


def turned_back(site):
    site.metered, site.hour = False, 12.0
    site.battery(90)


@contextmanager
def cut(server):
    """Let no part of an update arrive."""
    server.cut_uploads = ["before"] * 4
    yield
    server.cut_uploads = []


def silent(server, agent, steps=3):
    """Make sure that an agent rests and sends nothing at all."""
    before = len(server.requests)
    assert [agent.step() for _ in range(steps)] == [OBSTRUCTED] * steps
    assert server.requests[before:] == []


def why_declined(agent):
    return json.loads((agent.state.path / DECLINED).read_text().splitlines()[-1])["why"]


# Hours, battery, network


@CONDITIONS
def test_a_report_on_disk_waits_and_is_sent_once_when_it_may_be(server, agent_with, site, resources, turn):
    agent, path = agent_with(**resources), server.assign(JOB)
    with cut(server), pytest.raises(RefusedError):
        agent.step()
    kept = agent.state.pending().file.read_bytes()
    turn(site)
    silent(server, agent)
    agent = agent_with(**resources)  # also in the next process
    silent(server, agent)
    assert agent.state.pending().file.read_bytes() == kept
    turned_back(site)
    agent.step()
    assert server.reports[path] in kept
    assert server.answers == 1
    assert agent.state.pending() is None


@CONDITIONS
def test_an_upload_stops_between_two_parts_and_goes_on_where_it_was(
    server, agent_with, site, monkeypatch, resources, turn
):
    monkeypatch.setenv("HANSA_UPLOAD_PART", "40")
    agent, path = agent_with(**resources), server.assign(JOB)
    monkeypatch.setattr("hansa.client.transport.reached", lambda _: turn(site) if server.parts else None)
    assert agent.step() == OBSTRUCTED
    (arrived,) = server.parts.values()
    assert len(arrived) == 40
    silent(server, agent)
    turned_back(site)
    monkeypatch.setattr("hansa.client.transport.reached", lambda _: None)
    agent.step()
    assert len(server.parts) == server.answers == 1
    assert path in server.reports


@CONDITIONS
def test_what_changes_while_an_answer_is_computed_keeps_it_here(server, agent_with, site, monkeypatch, resources, turn):
    agent, path = agent_with(**resources), server.assign(JOB)
    answer = agent._workshop.answer

    def turning(*given):
        turn(site)
        return answer(*given)

    monkeypatch.setattr(agent._workshop, "answer", turning)
    assert agent.step() == OBSTRUCTED
    assert not any(method == "PUT" for method, _ in server.requests)
    assert agent.state.pending() is not None
    assert server.declined == []
    turned_back(site)
    agent.step()
    assert path in server.reports


@CONDITIONS
@pytest.mark.parametrize("call", ["job", "model", "answer"])
def test_what_changes_before_a_fetch_or_the_computing_keeps_the_assignment_for_later(
    server, agent_with, site, monkeypatch, resources, turn, call
):
    agent, path = agent_with(**resources), server.assign(JOB)
    step = {"job": "job", "model": "model", "answer": "model"}[call]
    original = getattr(agent._workshop, step)

    def turning(*given):
        if call != "answer":
            turn(site)
        found = original(*given)
        turn(site)
        return found

    monkeypatch.setattr(agent._workshop, step, turning)
    monkeypatch.setattr(agent._workshop, "answer", lambda *_: pytest.fail("it was computed"))
    assert agent.step() == OBSTRUCTED
    assert ("GET", f"/v1/models/{digest(first_model(JOB))}") not in server.requests or call == "answer"
    silent(server, agent)
    monkeypatch.undo()
    turned_back(site)
    agent.step()
    assert path in server.reports
    assert server.declined == []


def test_a_large_model_stops_coming_and_goes_on_where_it_was(server, agent_with, site, monkeypatch):
    monkeypatch.setattr("hansa.client.transport.PART", 500_000)
    agent = agent_with(metered_network=False)
    model = safetensors.numpy.save({"model": np.zeros(600_000, dtype=np.float32)})
    server.assign(JOB, model)
    received = agent._limits.received

    def counting(size):
        received(size)
        site.metered = site.metered or agent.used_today() > 1_000_000

    monkeypatch.setattr(agent._limits, "received", counting)
    assert agent.step() == OBSTRUCTED
    partial = agent.state.model(digest(model))
    have = partial.with_name(f"{partial.name}.part").stat().st_size
    assert 900_000 < have < 1_600_000
    silent(server, agent)
    monkeypatch.undo()
    turned_back(site)
    before = agent.used_today()
    agent._transport.download(digest(model), partial, len(model))
    assert agent.used_today() - before == len(model) - have


@CONDITIONS
def test_a_begun_secure_sum_waits_too_and_ends_once_it_may_go_on(server, agent_with, site, resources, turn):
    """No message of a sum is excepted, whichever is next: what it costs is the site's own."""
    agent, path = agent_with(**resources), server.assign_sum(job_of(SECURE))
    for _ in range(60):
        turn(site)
        silent(server, agent, steps=1)
        turned_back(site)
        agent.step()
        if path in server.sums and server.sums[path].result is not None:
            break
    assert server.sums[path].result is not None
    assert len(set(server.sums[path].taken)) == 5, "each phase is answered once, with the same bytes"
    assert server.answers == 1


def test_a_sum_that_went_on_without_a_client_that_waited_is_over_for_it(server, agent_with, site):
    agent, path = agent_with(metered_network=False), server.assign_sum(job_of(SECURE))
    work(agent, lambda: path in server.sums and server.sums[path].taken)
    site.metered = True
    silent(server, agent)
    server.sums.pop(path)
    server.assignments.clear()
    turned_back(site)
    work(agent, lambda: not (agent.state.path / "sum").exists())
    assert server.reports == {}


@CONDITIONS
def test_withdrawn_consent_is_told_at_once_and_only_once(server, agent_with, site, resources, turn):
    agent = agent_with(**resources)
    turn(site)
    agent.consent = False
    agent.step()
    assert [each.consent for each in server.check_ins] == [False]
    silent(server, agent)


@CONDITIONS
def test_a_dry_run_makes_its_one_call_and_says_that_the_rest_would_wait(server, agent_with, site, resources, turn):
    agent, path = agent_with(**resources), server.assign(JOB)
    turn(site)
    before = len(server.requests)
    told = agent.rehearse()
    assert server.requests[before:] == [("POST", "/hansa.v1.Federation/CheckIn")]
    assert told["assignment"] == path
    assert told["would_receive_bytes"] == len(first_model(JOB))
    assert len(told["rests_because"]) == 1
    assert set(told) == {"assignment", "plan_sha256", "cohort_size", "would_receive_bytes", "rests_because"}


def test_a_round_that_waited_costs_no_training_of_a_plan_that_counts_them(server, agent_with, site, monkeypatch):
    """Each computed answer counts, and one that was put off before it began does not."""
    counted = []
    monkeypatch.setattr("hansa.client.agent.count_training", lambda *_: counted.append(1))
    agent = agent_with(metered_network=False)
    server.assign(JOB)
    model = agent._workshop.model

    def turning(*given):
        found = model(*given)
        site.metered = True
        return found

    monkeypatch.setattr(agent._workshop, "model", turning)
    assert agent.step() == OBSTRUCTED
    assert counted == []


# Bytes of a day


def whole_round(server, agent) -> int:
    """Return the bytes of a round of training, with its check-in."""
    before, path = agent.used_today(), server.assign(JOB)
    agent.step()
    assert path in server.reports
    return agent.used_today() - before


def test_uploads_count_as_downloads_do(server, agent_with):
    agent = agent_with(bytes_a_day=10**6)
    path = server.assign(JOB)
    before = agent.used_today()
    agent.step()
    up = len(server.reports[path])
    down = len(JOB.to_bytes()) + len(first_model(JOB))
    assert up + down < agent.used_today() - before < up + down + 2500, "and check-in, answers"
    told = json.loads((agent.state.path / "usage.json").read_text())
    assert up < told["up"] < up + 1000
    assert down < told["down"] < down + 1500


@pytest.mark.parametrize("cap", range(1500, 9000, 500))
def test_no_day_has_more_bytes_than_its_cap(server, agent_with, site, cap):
    """Round after round, day after day, with reports that break off: the counts on disk never pass the cap."""
    agent, path = agent_with(bytes_a_day=cap), ""
    server.cut_uploads = ["before", "after", "before"]
    answered = 0
    for number in range(1, 13):
        if not path or path in server.reports or path in server.declined:
            path = server.assign(JOB, round=number)
        for _ in range(3):
            agent.step()
            assert agent.used_today() <= cap
        usage = json.loads((agent.state.path / "usage.json").read_text())
        assert usage["up"] + usage["down"] == agent.used_today()
        answered = len(server.reports)
        site.at += DAY / 2
    assert len(server.parts) == answered, "none is answered in two ways"
    assert (answered > 0) == (cap >= 3000), "some caps are too small for this plan, and say so"
    if not answered and server.check_ins:
        assert "bytes" in (agent.state.path / DECLINED).read_text()


@pytest.mark.parametrize("part", [40, 10**6])
def test_a_report_that_does_not_fit_today_waits_whole_until_tomorrow_over_a_restart(
    server, agent_with, site, monkeypatch, part
):
    monkeypatch.setenv("HANSA_UPLOAD_PART", str(part))
    agent, path = agent_with(bytes_a_day=10**6), server.assign(JOB)
    with cut(server), pytest.raises(RefusedError):
        agent.step()
    size = agent.state.pending().size
    agent = agent_with(bytes_a_day=agent.used_today() + size + ANSWER - 1)
    silent(server, agent)
    assert agent.state.pending() is not None
    site.at += DAY
    agent.step()
    assert path in server.reports
    assert server.answers == 1


def test_a_report_that_fits_no_day_any_more_is_kept_back_and_its_outcome_asked(server, agent_with):
    """The site lowered its cap: the client goes on, and learns whether the server had it already."""
    agent, path = agent_with(), server.assign(JOB)
    with cut(server), pytest.raises(RefusedError):
        agent.step()
    server.assignments.clear()
    server.outcomes[path] = wire.OUTCOME_NOT_INCLUDED
    agent = agent_with(bytes_a_day=agent.state.pending().size + ANSWER - 1)
    agent.step()
    assert server.reports == {}
    assert agent.state.pending() is None
    agent = agent_with()
    agent.step()
    assert [each.outcome for each in agent.state.reports()] == ["not-included"]


def test_an_assignment_that_does_not_fit_today_is_declined_before_anything_is_fetched(server, agent_with):
    agent = agent_with(bytes_a_day=10**6)
    model = safetensors.numpy.save({"model": np.zeros(130_000, dtype=np.float32)})
    path = server.assign(JOB, model)  # 520 kB come, and about as many go
    agent.step()
    assert "bytes_a_day" in why_declined(agent)
    assert not any(method == "GET" for method, _ in server.requests)
    agent.step()
    assert server.declined == [path]


def test_a_job_that_does_not_fit_today_is_declined_when_its_size_is_known(server, agent_with):
    agent = agent_with(bytes_a_day=3500)
    job = job_of(purpose="p" * 4000)
    path = server.assign(job)
    agent.step()
    assert "left of today" in why_declined(agent)
    assert agent.used_today() < 1500
    agent.step()
    assert server.declined == [path]


def test_an_answer_that_fits_no_day_is_declined_once_it_is_computed(server, agent_with, monkeypatch):
    agent, path = agent_with(bytes_a_day=20_000), server.assign(JOB)
    answer = agent._workshop.answer

    def larger(*given):
        found = answer(*given)
        return type(found)(found.content + bytes(20_000), found.rows, found.own, found.ring)

    monkeypatch.setattr(agent._workshop, "answer", larger)
    agent.step()
    assert "a whole day's bytes_a_day" in why_declined(agent)
    agent.step()
    assert server.declined == [path]
    assert agent.state.pending() is None


def test_a_secure_sum_that_may_not_fit_today_is_declined_before_it_begins(server, agent_with):
    agent, path = agent_with(bytes_a_day=60_000), server.assign_sum(job_of(SECURE))
    work(agent, lambda: path in server.declined)
    assert not any(call.endswith("Exchange") for _, call in server.requests)
    assert "secure sum takes" in why_declined(agent)


def test_a_secure_sum_stays_within_the_bytes_that_were_looked_for_before_it_began(server, agent_with):
    agent, path = agent_with(bytes_a_day=10**6), server.assign_sum(job_of(SECURE))
    work(agent, (agent.state.path / "sum").exists)
    vector, before = (agent.state.path / "sum" / "vector").stat().st_size, agent.used_today()
    work(agent, lambda: server.sums[path].result is not None)
    assert agent.used_today() - before < vector + 65_536 + 4 * 1024


def test_a_killed_process_forgets_nothing_that_it_sent(server, agent_with, monkeypatch):
    agent = agent_with(bytes_a_day=10**6)
    server.assign(JOB)
    put = agent._transport._put

    class Killed(BaseException):
        pass

    def dying(path, part, headers):
        put(path, part, headers)
        raise Killed

    monkeypatch.setattr(agent._transport, "_put", dying)
    monkeypatch.setattr(agent._limits.usage, "write", agent._limits.usage.write)
    with pytest.raises(Killed):
        agent._do_next()  # without what a step does in the end
    sent = len(next(iter(server.reports.values())))
    again = agent_with(bytes_a_day=10**6)
    assert again._limits.usage._counts["up"] >= sent


def test_a_dry_run_says_what_does_not_fit_today(server, agent_with):
    agent = agent_with(bytes_a_day=10**6)
    server.assign(JOB, safetensors.numpy.save({"model": np.zeros(130_000, dtype=np.float32)}))
    told = agent.rehearse()
    assert any("bytes_a_day" in each for each in told["policy_objects"])
    assert not any("/v1/models/" in path for _, path in server.requests)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=30), st.integers(0, 30_000))
@settings(max_examples=40, deadline=None)
def test_calls_whose_answers_were_asked_for_never_pass_the_cap(tmp_path_factory, calls, cap):
    site = Site(tmp_path_factory.mktemp("power"))
    state = StateFolder(tmp_path_factory.mktemp("state"))
    usage = Usage(state, site, kept=True)
    limits = Limits(Resources(bytes_a_day=cap), usage, site, site.machine())
    for up, down in calls:
        left = cap - usage.today()
        if up + ANSWER > left:
            with pytest.raises(RefusedError, match="bytes_a_day"):
                limits.begin_call(up)
            assert usage.today() == cap - left
            continue
        limits.begin_call(up)
        if down > left - up:
            with pytest.raises(RefusedError, match="bytes_a_day"):
                limits.require_bytes(down)
            continue
        limits.require_bytes(down)
        limits.received(down)
        assert usage.today() <= cap
    usage.write()
    assert Usage(state, site, kept=True).today() == usage.today()
    state.close()


# Disk


def used(agent) -> int:
    return sum(path.stat().st_size for path in agent.state.path.rglob("*") if path.is_file())


def fill(agent, but: int = 0) -> None:
    """Let the site's own records take all room of the folder, but some, and but what fetched files can give."""
    fetched = sum(path.stat().st_size for name in ("models", "jobs") for path in (agent.state.path / name).iterdir())
    (agent.state.path / OWN).write_bytes(bytes(1_000_000 - used(agent) + fetched - but))


def sized(count: int) -> bytes:
    return safetensors.numpy.save({"model": np.full(count, 1.0, dtype=np.float32)})


def test_a_model_and_its_answer_that_do_not_fit_are_declined_before_they_are_fetched(server, agent_with):
    agent, path = agent_with(disk_mb=1), server.assign(JOB, sized(130_000))
    agent.step()
    assert "disk_mb" in why_declined(agent)
    assert not any(method == "GET" for method, _ in server.requests)
    assert any("disk_mb" in each for each in agent.rehearse()["policy_objects"])
    agent.step()
    assert server.declined == [path]


def test_a_job_that_does_not_fit_is_declined_and_not_kept(server, agent_with):
    agent = agent_with(disk_mb=1)
    fill(agent, but=len(JOB.to_bytes()) - 1)
    path = server.assign(JOB, kind=wire.KIND_STATISTICS, round=0)
    agent.step()
    assert "disk_mb" in why_declined(agent)
    assert list((agent.state.path / "jobs").iterdir()) == []
    agent.step()
    assert server.declined == [path]


def test_models_that_were_kept_give_way_to_what_is_asked(server, agent_with):
    agent = agent_with(disk_mb=1)
    kept = agent.state.path / "models" / ("ab" * 32)
    kept.write_bytes(bytes(900_000))
    server.assign(JOB, sized(100_000))  # not the plan's: fetched, and then declined
    agent.step()
    assert any("/v1/models/" in path for _, path in server.requests)
    assert not kept.exists()
    assert used(agent) <= 1_000_000


def test_rows_and_reports_that_do_not_fit_are_not_written(server, agent_with, monkeypatch):
    agent, path = agent_with(disk_mb=1), server.assign(job_of(SCAFFOLD))
    own = agent.state.path / OWN
    own.write_bytes(bytes(980_000))
    answer = agent._workshop.answer

    def larger(*given):
        found = answer(*given)
        rows = {name: np.tile(row, 3000) for name, row in found.rows.items()}
        assert sum(row.nbytes for row in rows.values()) > 20_000
        return type(found)(found.content, rows, found.own, found.ring)

    monkeypatch.setattr(agent._workshop, "answer", larger)
    agent.step()
    assert "disk_mb" in why_declined(agent)
    assert used(agent) <= 1_000_000
    assert own.exists(), "what is the site's own never gives way"
    agent.step()
    assert server.declined == [path]


@pytest.mark.parametrize("confined", [False, True])
def test_a_report_that_does_not_fit_is_not_written(server, agent_with, monkeypatch, confined):
    more = {"cpu_share": 0.9} if confined else {}
    agent = agent_with(disk_mb=1, **more)
    if confined:  # its process has to see that itself, before it writes
        monkeypatch.setattr("hansa.client.agent.require_fits", lambda *_: None)
    server.assign(JOB, kind=wire.KIND_STATISTICS, round=0)
    answer = agent._workshop.answer

    def filled(*given):
        fill(agent)
        return answer(*given)

    monkeypatch.setattr(agent._workshop, "answer", filled)
    agent.step()
    assert "disk_mb" in why_declined(agent)
    assert agent.state.pending() is None
    assert server.reports == {}


def test_a_sum_whose_vectors_and_records_do_not_fit_is_declined_before_it_begins(server, agent_with):
    agent, path = agent_with(disk_mb=1), server.assign_sum(job_of(SECURE))
    (agent.state.path / OWN).write_bytes(bytes(960_000))
    work(agent, lambda: path in server.declined)
    assert not any(call.endswith("Exchange") for _, call in server.requests)
    assert "disk_mb" in why_declined(agent)


@pytest.mark.parametrize("records", [2, 3, 4])
def test_a_sum_for_which_the_disk_becomes_too_small_is_left(server, agent_with, records):
    """The folder grew meanwhile: what has no record is not said, and the others do not wait for it."""
    from hansa.client.sum_folder import SumFolder

    agent, path = agent_with(disk_mb=1), server.assign_sum(job_of(SECURE))
    work(agent, lambda: len(SumFolder(agent.state).records()) == records)
    taken = len(server.sums[path].taken)
    reported = path in server.reports
    fill(agent)
    work(agent, lambda: not (agent.state.path / "sum").exists())
    assert (path in server.reports) == reported, "no masked vector is written for which there is no room"
    assert "disk_mb" in why_declined(agent)
    assert len(server.sums[path].taken) <= taken + 1, "at most what had its record"
    work(agent, lambda: path in server.declined or path in server.reports)


def test_a_folder_is_never_larger_than_its_cap_over_many_rounds(server, agent_with):
    agent = agent_with(disk_mb=1)
    for number in range(1, 8):
        model = first_model(JOB) if number % 2 else sized(100_000 + number)
        server.assign(JOB, model, round=number)
        agent.step()
        agent.step()
        assert used(agent) <= 1_000_000
    assert len(server.reports) == 4
