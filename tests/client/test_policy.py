from __future__ import annotations

import base64
import json
import threading
import time
from dataclasses import dataclass, replace

import pytest
from fake_server import PLAN, SCAFFOLD, TOKEN, job_of

from hansa.client import Agent, Policy, read_policy
from hansa.client.machine import Machine, obstacles
from hansa.client.policy import (
    Accept,
    Asked,
    Code,
    Recorded,
    Resources,
    SecureSums,
    allow,
    hours_of,
    objections,
    refused,
)
from hansa.core.errors import RefusedError
from hansa.core.schema import Unsound, fields_of
from hansa.wire.generated import federation_pb2 as wire

JOB = job_of()


@dataclass
class Noon:
    hour: float = 12.0

    def now(self) -> float:
        return 1_800_000_000.0


def written(tmp_path, text):
    (tmp_path / "policy.toml").write_text(text)
    return tmp_path / "policy.toml"


def test_a_policy_is_read(tmp_path):
    policy = read_policy(
        written(
            tmp_path,
            """
            [accept]
            plans = ["abc"]
            smallest_cohort = 4
            [resources]
            cpu_share = 0.5
            hours = "22-6"
            [code]
            allow = ["hansa.training.linear:*"]
            """,
        )
    )
    assert policy.accept.smallest_cohort == 4
    assert policy.resources.hours == "22-6"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[acept]", "acept: unknown key; did you mean 'accept'?"),
        ("[accept]\nplan = []", "accept.plan: unknown key; did you mean 'plans'?"),
        ("[resources]\ncpu_share = 2.0", "resources.cpu_share: must be less than or equal to 1"),
        ('[resources]\nhours = "22"', "write intervals of hours"),
        ('[code]\nallow = ["site_models:net"]', "hansa client allow site_models:net"),
        ("[accept\n", "is no TOML"),
        ('[secure_sums]\nregistrar = "authority"', 'authority_key is needed with registrar = "authority"'),
        ('[secure_sums]\nauthority_key = "AAAA"', 'authority_key has no use with registrar = "pinned"; set registrar'),
        ('[secure_sums]\nauthority_operator = "Notary"', 'authority_operator has no use with registrar = "pinned"'),
        ('[secure_sums]\nregistrar = "authority"\nauthority_key = "AAAA"', "no key as `hansa authority key` prints"),
    ],
)
def test_what_is_wrong_in_a_policy_is_said_with_its_place(tmp_path, text, said):
    with pytest.raises(RefusedError) as error:
        read_policy(written(tmp_path, text))
    assert error.value.code == "HANSA-POLICY-INVALID"
    assert said in str(error.value)


def test_a_policy_that_is_not_there_is_said(tmp_path):
    with pytest.raises(RefusedError, match="cannot be read"):
        read_policy(tmp_path / "none.toml")


def test_every_key_of_a_policy_has_a_help():
    for section in (Policy, Accept, Resources, Code, Recorded):
        assert all(field.help for field in fields_of(section).values())


@pytest.mark.parametrize(
    ("accept", "said"),
    [
        ({"plans": ("other",)}, "the plan"),
        ({"purposes": ("care",)}, "the purpose 'research'"),
        ({"operators": ("another",)}, "the operator 'the operator'"),
        ({"kinds": ("evaluation",)}, "training is not answered"),
        ({"smallest_cohort": 5}, "4 clients, fewer than 5"),
        ({"smallest_population": 10}, "9 clients are eligible, fewer than 10"),
    ],
)
def test_what_a_policy_does_not_accept_is_declined_and_the_server_told_no_reason(server, data, tmp_path, accept, said):
    agent = Agent(server.url, data, tmp_path / "state", Policy(accept=Accept(**accept)), wait=0.0)
    agent.enrol(TOKEN)
    path = server.assign(JOB)
    agent.step()
    line = json.loads((agent.state.path / "declined.jsonl").read_text())
    assert line["code"] == "HANSA-POLICY-REFUSED"
    assert said[1:] in line["why"]  # it begins a sentence
    agent.step()
    assert server.declined == [path]
    assert server.reports == {}
    assert not any(path.startswith("/v1/models") for _, path in server.requests)
    agent.close()


def test_names_in_a_refusal_are_as_they_were_written():
    job = replace(JOB, operator="Charité Berlin")
    reasons = objections(Policy(accept=Accept(operators=("NHS",), purposes=("Care",))), Asked("training", 1, job, 4, 9))
    found = refused(reasons).found
    assert found == "The purpose 'research' is not accepted; the operator 'Charité Berlin' is not accepted."


def test_what_is_accepted_is_answered(server, data, tmp_path):
    accept = Accept(plans=(JOB.plan_sha256,), purposes=("research",), operators=("the operator",), smallest_cohort=4)
    agent = Agent(server.url, data, tmp_path / "state", Policy(accept=accept), wait=0.0)
    agent.enrol(TOKEN)
    path = server.assign(JOB)
    agent.step()
    agent.close()
    assert path in server.reports


KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.mark.parametrize(
    ("section", "operator", "reasons"),
    [
        ({"authority": {"operator": "Notary", "key": KEY}}, "Notary", []),
        ({"authority": {"operator": "Anybody", "key": KEY}}, "", []),
        (
            {"authority": {"operator": "Anybody", "key": KEY}},
            "Notary",
            ["the plan names 'Anybody' as its authority's operator, not 'Notary'"],
        ),
        (
            {"authority": {"operator": "Notary", "key": "another"}},
            "Notary",
            ["the plan's authority has another key than authority_key"],
        ),
        ({"authority": None}, "Notary", []),
        ([], "Notary", []),
    ],
)
def test_a_plan_names_the_authority_that_the_site_trusts_or_is_declined(section, operator, reasons):
    demands = SecureSums(registrar="authority", authority_key=KEY, authority_operator=operator)
    job = replace(JOB, plan={**JOB.plan, "secure_aggregation": section})
    assert objections(Policy(secure_sums=demands), Asked("training", 1, job, 4, 9)) == reasons


def test_a_job_has_as_many_rounds_as_the_policy_bears_and_as_its_plan_says():
    def reasons(round_, rounds, **accept):
        job = job_of({**PLAN, "rounds": rounds})
        return objections(Policy(accept=Accept(**accept)), Asked("training", round_, job, 4, 9))

    assert reasons(10_000, 10_000) == []
    assert reasons(1, 10_001) == ["the plan has 10001 rounds, more than most_rounds (10000)"]
    assert reasons(1, 10_001, most_rounds=20_000) == []
    assert reasons(1, 3, most_rounds=2) != []
    assert reasons(3, 3) == []
    assert reasons(4, 3) == ["round 4 is asked of a plan of 3"]


def test_a_round_beyond_the_plans_last_is_declined(server, data, tmp_path):
    agent = Agent(server.url, data, tmp_path / "state", wait=0.0)
    agent.enrol(TOKEN)
    server.assign(JOB, round=4)
    agent.step()
    assert server.reports == {}
    assert "Round 4 is asked of a plan of 3" in (tmp_path / "state" / "declined.jsonl").read_text()
    agent.close()


@pytest.mark.parametrize(
    ("hours", "hour", "rests"),
    [("", 3, False), ("22-6", 23, False), ("22-6", 5.9, False), ("22-6", 6, True), ("8-12 13-18", 12.5, True)],
)
def test_work_is_done_within_hours(hours, hour, rests):
    machine = Machine(hour=lambda _: hour)
    assert bool(obstacles(Resources(hours=hours), Noon(), machine)) == rests


@pytest.mark.parametrize("text", ["22", "a-b", "5-5", "1-25", "-1-3"])
def test_hours_that_are_none_are_refused(text):
    with pytest.raises(Unsound):
        hours_of(text)


def supplies(tmp_path, **supplies):
    for name, told in supplies.items():
        (tmp_path / name).mkdir()
        for key, value in told.items():
            (tmp_path / name / key).write_text(f"{value}\n")
    return Machine(power=tmp_path, metered=lambda: True)


@pytest.mark.parametrize(
    ("mains", "status", "capacity", "least", "rests"),
    [
        (1, "Discharging", 20, 0.5, False),
        (0, "Charging", 20, 0.5, False),
        (0, "Discharging", 20, 0.5, True),
        (0, "Discharging", 60, 0.5, False),
        (0, "Discharging", 100, 1.0, True),
        (0, "Discharging", 5, 0.0, False),
    ],
)
def test_a_low_battery_rests(tmp_path, mains, status, capacity, least, rests):
    battery = {"type": "Battery", "status": status, "capacity": capacity}
    machine = supplies(tmp_path, AC={"type": "Mains", "online": mains}, BAT0=battery)
    assert bool(obstacles(Resources(battery=least), Noon(), machine)) == rests


def test_a_machine_that_tells_nothing_works(tmp_path):
    machine = Machine(power=tmp_path / "none", metered=lambda: False)
    assert obstacles(Resources(battery=1.0, metered_network=False), Noon(), machine) == []


def test_a_metered_network_rests_where_the_policy_says_so(tmp_path):
    machine = supplies(tmp_path)
    assert obstacles(Resources(metered_network=False), Noon(), machine) == ["the network is metered"]
    assert obstacles(Resources(), Noon(), machine) == []


@pytest.mark.parametrize("kind", [wire.KIND_TRAINING, wire.KIND_EVALUATION])
def test_a_confined_answer_is_the_same(server, data, tmp_path, kind):
    """With a quarter of the machine and 128 MB: the same bytes, rows and own figures."""
    job, contents, rows = job_of(SCAFFOLD), [], []
    for number, resources in enumerate((Resources(), Resources(cpu_share=0.25, memory_mb=128))):
        agent = Agent(server.url, data, tmp_path / f"state-{number}", Policy(resources=resources), wait=0.0)
        server.public_key = b""
        agent.enrol(TOKEN)
        path = server.assign(job, kind=kind)
        server.outcomes[path] = wire.OUTCOME_INCLUDED
        agent.step()
        contents.append(server.reports.pop(path))
        agent.step()
        rows.append({name: row.tolist() for name, row in agent.state.rows("run-1").items()})
        agent.close()
    assert contents[0] == contents[1]
    assert rows[0] == rows[1]
    lines = [(tmp_path / f"state-{number}" / "own_metrics.jsonl") for number in (0, 1)]
    assert not lines[0].exists() or lines[0].read_text() == lines[1].read_text()


def test_too_little_memory_declines(server, data, tmp_path):
    agent = Agent(server.url, data, tmp_path / "state", Policy(resources=Resources(memory_mb=128)), wait=0.0)
    agent.enrol(TOKEN)
    server.assign(job_of(), b"x" * 120_000_000)
    agent.step()
    line = json.loads((agent.state.path / "declined.jsonl").read_text())
    agent.close()
    assert line["code"] == "HANSA-POLICY-REFUSED"
    assert "memory_mb" in line["why"]
    assert not list(agent.state.path.glob("work-*"))


ENDLESS = {**PLAN, "trainer": {**PLAN["trainer"], "epochs": 10**6, "batch_size": 1}}


@pytest.mark.parametrize("limit", ["seconds", "deadline", "stop"])
def test_a_plan_without_end_is_ended_at_the_sites_limit_at_the_deadline_and_when_told_to_stop(
    server, data, tmp_path, limit
):
    resources = Resources(seconds=3.0 if limit == "seconds" else 1e6)
    agent = Agent(server.url, data, tmp_path / "state", Policy(resources=resources), wait=0.0)
    agent.enrol(TOKEN)
    server.assign(job_of(ENDLESS), deadline_ms=int((time.time() + 8) * 1000) if limit == "deadline" else 0)
    stop = threading.Event()
    working = threading.Thread(target=agent.run, args=(stop,), daemon=True)
    working.start()
    declined = agent.state.path / "declined.jsonl"
    while not list(agent.state.path.glob("work-*")) and not declined.exists():
        time.sleep(0.05)
    if limit != "stop":
        while not declined.exists():
            time.sleep(0.05)
    stop.set()
    working.join(30)
    assert not working.is_alive()
    assert "was ended" in json.loads(declined.read_text().splitlines()[0])["why"]
    assert not list(agent.state.path.glob("work-*"))
    agent.close()


def test_an_error_in_the_confined_process_keeps_its_code(server, data, tmp_path):
    agent = Agent(server.url, data, tmp_path / "state", Policy(resources=Resources(cpu_share=0.9)), wait=0.0)
    agent.enrol(TOKEN)
    (data / "train.csv").write_text("age,dose\n1,2\n")
    server.assign(job_of())
    agent.step()
    assert json.loads((agent.state.path / "declined.jsonl").read_text())["code"] == "HANSA-PLAN-INVALID"
    agent.close()


def test_allowing_writes_the_files_down(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    (site / "allowed_by_command.py").write_text("def net(): return 1\n")
    monkeypatch.syspath_prepend(str(site))
    path = written(tmp_path, "# ours\n[resources]\ncpu_share = 1.0\n")
    recorded = allow(path, "allowed_by_command:net")
    assert path.read_text().startswith("# ours\n")
    assert read_policy(path).code.allowances()[1] == recorded
    (site / "allowed_by_command.py").write_text("def net(): return 2\n")
    second = allow(path, "allowed_by_command:net")
    assert read_policy(path).code.allowances()[1:] == (second,)
    assert second.sha256 != recorded.sha256
    with pytest.raises(RefusedError) as error:
        allow(path, "no_such_module_at_all:net")
    assert error.value.code == "HANSA-CODE-FORBIDDEN"
