"""The operator API: what its operations do."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace

import numpy as np
import pytest
from operating import LAYOUT, MODEL, MODEL_SHA256, PLAN, job

from hansa.server.rounds_at_rest import part_name, slots_name
from hansa.store.records import Round, RoundKey
from hansa.wire.jobs import JobDescriptor
from hansa.wire.server_models import ServedModel

HOSTILE = ("os:system", "subprocess:run", "builtins:eval", "os.path:join", "hansa.core.registry:sys", "site_models:net")


DECRYPTORS = [
    {"name": "first", "url": "https://first", "operator": "one"},
    {"name": "second", "url": "https://second", "operator": "two"},
]
AUTHORITY = {"url": "https://authority", "operator": "notary", "key": "short"}


def error_of(answer):
    return answer.status_code, answer.json()["error"]["code"]


def refused(world, **changes):
    """Return the error of a job with some keys changed."""
    answer = world.call("POST", "/jobs", json=job(**changes))
    assert not answer.is_success, answer.text
    assert world.ok("GET", "/runs")["runs"] == []
    return answer.json()["error"]


def test_a_submission_makes_a_job_and_a_run_that_begins_at_once(populated):
    taken = populated.ok(
        "POST", "/jobs", json=job(purpose="trials", eligibility='attributes.region == "eu"', priority=3)
    )
    run = populated.ok("GET", f"/runs/{taken['run']['id']}")
    assert (run["state"], run["round"], run["rounds"], run["priority"]) == ("running", 0, 3, 3)
    whole = populated.ok("GET", f"/jobs/{taken['job']['id']}")
    assert whole["plan"]["trainer"]["kind"] == "linear"
    assert whole["plan"]["aggregator"] == {"kind": "mean"}
    assert whole["signature"] == {"shape": [3], "classes": 2, "integer_inputs": False, "vocabulary": 0}
    assert whole["layout"]["branches"] == LAYOUT["branches"]
    assert (whole["submitted_by"], whole["purpose"]) == ("the owner", "trials")
    assert [event["kind"] for event in populated.ok("GET", f"/runs/{run['id']}/events")["events"]] == ["run.submitted"]


def test_what_clients_fetch_of_a_job_is_its_descriptor_under_its_digest(submitted):
    digest = submitted.taken["job"]["descriptor"]

    async def read():
        return b"".join([chunk async for chunk in submitted.services.blobs.read(f"jobs/{digest}")])

    content = submitted.run(read())
    assert hashlib.sha256(content).hexdigest() == digest
    described = JobDescriptor.from_bytes(content)
    assert (described.population, described.operator) == ("hospitals", "own")
    assert described.plan_sha256 == submitted.taken["job"]["plan_sha256"]


def test_what_only_a_simulation_has_does_not_reach_clients(populated):
    plan = {**PLAN, "data": {"source": "os:system"}, "devices": {"preset": "phones"}}
    taken = populated.ok("POST", "/jobs", json=job(plan=plan))
    whole = populated.ok("GET", f"/jobs/{taken['job']['id']}")
    assert not {"data", "devices"} & set(whole["plan"])


@pytest.mark.parametrize("target", HOSTILE)
@pytest.mark.parametrize(
    "changed",
    [{"recipe": "{}"}, {"recipe": {"kind": "{}"}}, {"cohort": "{}"}, {"cohort": {"kind": "{}"}},
     {"trainer": {"kind": "{}"}}, {"trainer": {**PLAN["trainer"], "hooks": [{"kind": "{}"}]}},
     {"transforms": [{"kind": "{}"}]}, {"aggregator": {"kind": "{}"}}, {"schedule": {"kind": "{}"}},
     {"server_optimizer": {"kind": "sgd", "branches": {"control": {"kind": "{}"}}}},
     {"evaluation": {"metrics": ["{}"]}}],
    ids=["recipe", "recipe-table", "cohort", "cohort-table", "trainer", "hook", "transform", "aggregator", "schedule",
         "branch", "metric"],
)  # fmt: skip
def test_a_plan_that_names_code_that_is_not_allowed_is_refused_before_anything_is_imported(
    populated, changed, target, monkeypatch, tmp_path
):
    (tmp_path / "site_models.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    import json

    plan = {**PLAN, **json.loads(json.dumps(changed).replace("{}", target))}
    assert refused(populated, plan=plan)["code"] == "HANSA-CODE-FORBIDDEN"
    assert "site_models" not in sys.modules


def test_a_factory_is_text_that_the_server_never_imports(populated, monkeypatch, tmp_path):
    (tmp_path / "bomb.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    populated.ok("POST", "/jobs", json=job(plan={**PLAN, "model": {"factory": "bomb:net"}}))
    assert "bomb" not in sys.modules


def test_every_problem_of_a_plan_is_told_with_its_key_path(populated):
    plan = {
        **PLAN,
        "cohort": {"kind": "uniform", "size": -1},
        "stopping": {"metric": "central.auc", "patience": 1},
        "rouns": 1,
    }
    error = refused(populated, plan=plan)
    assert error["code"] == "HANSA-PLAN-INVALID"
    assert {problem["path"] for problem in error["problems"]} >= {"cohort.size", "rouns"}


def test_what_cannot_work_in_a_federation_is_refused(populated):
    stopping = {"metric": "central.auc", "patience": 1}
    columns = [{"name": "age", "low": 0.0, "high": 100.0}, {"name": "sex", "kind": "category"}]
    for changed, paths in (
        ({"cohort": {"kind": "uniform", "size": 5}}, {"cohort.size"}),
        ({"stopping": stopping}, {"stopping.metric"}),
        ({"features": {"label": "ill"}}, {"features.task", "features.columns"}),
        (
            {"features": {"label": "ill", "task": "classification", "columns": columns}},
            {"features.classes", "features.columns.1.categories", "features.columns"},
        ),
        (
            {
                "features": {
                    "label": "ill",
                    "task": "classification",
                    "classes": ["a", "b", "c"],
                    "columns": columns[:1],
                }
            },
            {"features.classes", "features.columns"},
        ),
    ):
        error = refused(populated, plan={**PLAN, **changed})
        assert {problem["path"] for problem in error["problems"]} == paths, error
    assert refused(populated, plan={**PLAN, "evaluation": {"metrics": ["rmse"]}})["code"] == "HANSA-PLAN-INVALID"


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ({"protocol": "oneshot-seeds", "decryptors": DECRYPTORS}, "secure_aggregation.decryptors.1.key"),
        ({"protocol": "oneshot-seeds", "decryptors": DECRYPTORS}, "secure_aggregation.decryptors.0.url"),
        ({"registrar": "authority"}, "secure_aggregation.registrar"),
        ({"registrar": "authority", "authority": AUTHORITY}, "secure_aggregation.authority.key"),
        ({"registrar": "authority", "authority": AUTHORITY}, "secure_aggregation.authority.url"),
        ({"authority": AUTHORITY}, "secure_aggregation"),
    ],
)
def test_secure_sums_that_this_server_cannot_hold_are_refused(populated, section, path):
    section = {"maximum_cohort": 5, "max_weight": 9, **section}
    error = refused(populated, plan={**PLAN, "secure_aggregation": section})
    assert path in {problem["path"] for problem in error["problems"]}


@pytest.mark.parametrize(
    ("expression", "told"),
    [("attributes.region ==", "cannot be read"), ("region == 'eu'", "attributes.region"),
     ("attributes.regoin == 'eu'", "did you mean 'region'"), ("attributes.region > 3", "fails for attributes"),
     ("attributes.ram_gb + 1.0", "neither true nor false"), ("[1, 2].all(x, x > 0)", "comprehension"),
     (r'r"\" == "x" || [1, 2].all(x, x > 0) || "y" == "z"', "comprehension"),
     ("[1, 2]. // a comment\n all(x, x > 0)", "comprehension"),
     ('version.matches ("(a{400}){50}")', "regular expression"), ('matches(version, "a")', "regular expression"),
     ("[1][-1] == 1", "fails"), ("{1: 2}[3] == 1", "fails"), ("[1, 2].existsOne(x, x > 1)", "comprehension"),
     ("attributes", "neither true nor false"), ("(" * 500 + "true" + ")" * 500, "cannot be read")],
)  # fmt: skip
def test_an_eligibility_expression_that_cannot_be_is_refused(populated, expression, told):
    answer = populated.call("POST", "/jobs", json=job(eligibility=expression))
    assert error_of(answer) == (400, "HANSA-REQUEST-INVALID")
    assert told in answer.json()["error"]["found"]


@pytest.mark.parametrize(
    "expression",
    ['attributes.region == "eu" && attributes.ram_gb >= 4', 'version.startsWith("1.") || attributes.ram_gb > 2.5',
     'attributes.region in ["eu", "us"]', "", "  ", 'attributes.region == "https://all.eu"'],
)  # fmt: skip
def test_an_eligibility_expression_over_declared_attributes_is_taken(populated, expression):
    populated.ok("POST", "/jobs", json=job(eligibility=expression))


def layout(*parameters, name="params"):
    return {"branches": [{"name": name, "parameters": list(parameters)}]}


@pytest.mark.parametrize(
    "changes",
    [{"layout": {"branches": []}}, {"layout": layout(["weight", [4]], name="x")},
     {"layout": layout(["weight", [-4]])}, {"layout": {"branches": "x"}}, {"layout": {}},
     {"layout": {"branches": [*LAYOUT["branches"], *LAYOUT["branches"]]}},
     {"layout": {**LAYOUT, "lanes": [{"name": "x", "low": 0, "high": 1}]}}, {"layout": layout(["weight", [2**52]])},
     {"signature": {"shape": [3], "classes": 1}}],
)  # fmt: skip
def test_a_model_and_layout_that_do_not_fit_are_refused(populated, changes):
    assert refused(populated, **changes)["code"] in ("HANSA-MODEL-UNSUITABLE", "HANSA-PLAN-INVALID")


def test_a_job_names_a_model_that_its_own_tenant_uploaded(populated):
    digest = hashlib.sha256(b"elsewhere").hexdigest()
    assert refused(populated, model=digest)["code"] == "HANSA-NOT-FOUND"
    populated.ok("POST", "/populations", by="other", json={"name": "hospitals"})
    answer = populated.call("POST", "/jobs", by="other", json=job())
    assert error_of(answer) == (404, "HANSA-NOT-FOUND")


@pytest.mark.parametrize(
    ("content", "digest", "code"),
    [(MODEL[:-1], MODEL_SHA256, "HANSA-MODEL-UNSUITABLE"), (MODEL, "0" * 64, "HANSA-UPLOAD-DIGEST"),
     (b"", None, "HANSA-MODEL-UNSUITABLE"),
     (b"\x00" * 100, None, "HANSA-MODEL-UNSUITABLE"), (b"\xff" * 100, None, "HANSA-MODEL-UNSUITABLE"),
     (b"\x80\x04pickle", None, "HANSA-MODEL-UNSUITABLE"),
     (ServedModel(np.array([1, np.nan, 3], dtype=np.float32), None).to_bytes(), None, "HANSA-MODEL-UNSUITABLE"),
     (ServedModel(np.array([1, np.inf], dtype=np.float32), None).to_bytes(), None, "HANSA-MODEL-UNSUITABLE")],
)  # fmt: skip
def test_an_upload_that_is_no_finite_model_leaves_nothing(populated, content, digest, code):
    digest = digest or hashlib.sha256(content).hexdigest()
    before = populated.ok("GET", "/usage")["model_bytes"]
    answer = populated.call("PUT", f"/models/{digest}", content=content)
    assert answer.json()["error"]["code"] == code
    assert populated.ok("GET", "/usage")["model_bytes"] == before


def test_an_upload_in_any_pieces_is_checked_as_one(populated):
    content = ServedModel(np.random.default_rng(0).normal(size=1001).astype(np.float32), None).to_bytes()
    digest = hashlib.sha256(content).hexdigest()

    for size in (1, 7, 61, 4096):

        async def parts(size=size):
            for start in range(0, len(content), size):
                yield content[start : start + size]

        sent = populated.call(
            "PUT", f"/models/{digest}", content=parts(), headers={"Content-Length": str(len(content))}
        )
        assert (sent.status_code, sent.json()) == (201, {"sha256": digest, "size": len(content)})


def test_a_model_larger_than_allowed_or_than_the_quota_is_refused_before_it_is_read(make_world):
    assert error_of(make_world(largest_model_bytes=10).call("PUT", f"/models/{MODEL_SHA256}", content=MODEL)) == (
        413,
        "HANSA-REQUEST-TOO-LARGE",
    )
    small = make_world(quota_bytes=len(MODEL))
    small.ok("PUT", f"/models/{MODEL_SHA256}", content=MODEL)
    assert error_of(small.call("PUT", f"/models/{MODEL_SHA256}", content=MODEL)) == (507, "HANSA-SERVER-STORAGE")


def test_runs_are_paused_resumed_and_cancelled_and_that_is_told_once(submitted):
    path = f"/runs/{submitted.run_id}"
    assert submitted.ok("POST", f"{path}/pause", json={"why": "lunch"})["state"] == "paused"
    assert submitted.ok("POST", f"{path}/pause")["state"] == "paused"
    assert submitted.ok("GET", "/runs?state=paused")["runs"][0]["id"] == submitted.run_id
    assert submitted.ok("PUT", f"{path}/priority", json={"priority": 9})["priority"] == 9
    assert submitted.ok("POST", f"{path}/resume")["state"] == "running"
    ended = submitted.ok("POST", f"{path}/cancel", json={"why": "wrong data"})
    assert (ended["state"], ended["why"]) == ("cancelled", "wrong data")
    assert ended["ended_at"] is not None
    for what in ("pause", "resume"):
        assert error_of(submitted.call("POST", f"{path}/{what}")) == (409, "HANSA-RUN-STATE")
    assert error_of(submitted.call("PUT", f"{path}/priority", json={"priority": 1})) == (409, "HANSA-RUN-STATE")
    kinds = [event["kind"] for event in submitted.ok("GET", f"{path}/events")["events"]]
    assert kinds == ["run.submitted", "run.paused", "run.priority", "run.resumed", "run.cancelled"]


def test_a_run_that_the_coordinator_changes_meanwhile_is_changed_all_the_same(submitted, monkeypatch):
    from hansa.core.errors import StoreConflictError
    from hansa.store.runs import Runs

    change, failed = Runs.change, []

    async def contested(self, run):
        if len(failed) < 3:
            failed.append(run.version)
            raise StoreConflictError("run")
        return await change(self, run)

    monkeypatch.setattr(Runs, "change", contested)
    assert submitted.ok("POST", f"/runs/{submitted.run_id}/pause")["state"] == "paused"


def test_rounds_come_with_their_funnel_and_what_was_measured(released):
    rounds = released.ok("GET", f"/runs/{released.run_id}/rounds")["rounds"]
    assert [(each["kind"], each["round"], each["attempt"], each["state"]) for each in rounds] == [
        ("evaluation", 1, 1, "closed"), ("training", 1, 2, "closed"), ("training", 1, 1, "abandoned"),
        ("evaluation", 0, 1, "closed"),
    ]  # fmt: skip
    assert rounds[0]["report"]["federated"]["auc"]["overall"] == 0.8
    assert rounds[1]["funnel"] == {"eligible": 2, "picked": 2, "included": 2, "fates": {"included": 2}}
    assert rounds[2]["funnel"]["fates"] == {"late": 1, "lost": 1}
    cohort = released.ok("GET", f"/runs/{released.run_id}/rounds/training/1/1/clients")["clients"]
    assert [each["fate"] for each in cohort] == ["late", "lost"]
    assert released.call("GET", f"/runs/{released.run_id}/rounds/training/7/1/clients").status_code == 404


def test_a_model_is_downloaded_whole_in_ranges_and_not_again(released):
    path = f"/models/{released.release}"
    whole = released.call("GET", path)
    assert (whole.status_code, hashlib.sha256(whole.content).hexdigest()) == (200, released.release)
    assert whole.headers["etag"] == f'"{released.release}"'
    assert released.call("GET", path, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    size = len(whole.content)
    for wanted, part in (
        ("bytes=0-9", whole.content[:10]),
        ("bytes=10-", whole.content[10:]),
        ("bytes=-5", whole.content[-5:]),
    ):
        answer = released.call("GET", path, headers={"Range": wanted})
        assert (answer.status_code, answer.content) == (206, part)
    past = released.call("GET", path, headers={"Range": f"bytes={size}-"})
    assert (past.status_code, past.headers["content-range"]) == (416, f"bytes */{size}")
    stale = released.call("GET", path, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert stale.status_code == 200


def test_only_what_a_closed_round_gave_can_be_downloaded(submitted):
    assert error_of(submitted.call("GET", f"/models/{MODEL_SHA256}")) == (404, "HANSA-NOT-FOUND")


def test_a_model_goes_through_its_stages(released):
    path = f"/models/{released.release}/stage"
    assert released.ok("PUT", path, json={"stage": "canary"})["stage"] == "canary"
    assert released.ok("PUT", path, json={"stage": "production"})["stage"] == "production"
    assert error_of(released.call("PUT", path, json={"stage": "candidate"})) == (409, "HANSA-STATE")
    assert released.ok("PUT", path, json={"stage": "retired"})["stage"] == "retired"
    assert released.ok("GET", f"/models?run={released.run_id}")["models"][0]["stage"] == "retired"
    stages = [
        event["detail"]["to"] for event in released.ok("GET", "/events")["events"] if event["kind"] == "model.stage"
    ]
    assert stages == ["canary", "production", "retired"]


def test_clients_are_listed_counted_suspended_resumed_and_retired(populated):
    first, second = populated.clients
    page = populated.ok("GET", "/populations/hospitals/clients?limit=1")
    assert ([each["name"] for each in page["clients"]], page["next"]) == (["one"], 0)
    assert populated.ok("GET", "/populations/hospitals/clients?after=0")["clients"][0]["id"] == second
    assert populated.ok("GET", "/populations/hospitals/counts")["counts"] == [
        {"state": "invited", "version": "", "clients": 2}
    ]
    assert populated.ok("POST", f"/clients/{first}/suspend", json={"why": "odd"})["state"] == "suspended"
    assert error_of(populated.call("POST", f"/clients/{first}/resume")) == (409, "HANSA-STATE")
    assert populated.ok("POST", f"/clients/{first}/retire")["state"] == "retired"
    assert error_of(populated.call("POST", f"/clients/{first}/suspend")) == (409, "HANSA-STATE")
    told = [event for event in populated.ok("GET", "/events")["events"] if event["client"] == first]
    assert [event["kind"] for event in told] == ["client.invited", "client.suspended", "client.retired"]
    assert told[1]["detail"]["why"] == "by the owner: odd"


def enrol(world, token, key):
    async def use(rows):
        digest = hashlib.sha256(token.encode()).hexdigest()
        return await rows.clients.redeem(
            digest, public_key=key, attributes={"region": "eu"}, version="1.0.0", consent=True, at=world.clock.now()
        )

    return world.rows(use)


def test_an_invitation_lets_its_clients_in_and_a_lost_device_enrols_again_as_the_same_client(populated):
    made = populated.ok("POST", "/populations/hospitals/invitations", json={"name": "three"})
    client = enrol(populated, made["token"], b"k" * 32)
    assert (client.id, client.name) == (made["client"], "three")
    shown = populated.ok("GET", f"/clients/{client.id}")
    assert (shown["attributes"], shown["version"], shown["consent"]) == ({"region": "eu"}, "1.0.0", True)
    again = populated.ok("POST", "/populations/hospitals/invitations", json={"client": client.id})
    assert enrol(populated, again["token"], b"n" * 32).id == client.id
    several = populated.ok("POST", "/populations/hospitals/invitations", json={"uses": 2})
    assert several["client"] is None
    assert enrol(populated, several["token"], b"a" * 32).number == 3
    assert (
        populated.call("POST", "/populations/hospitals/invitations", json={"uses": 2, "name": "x"}).status_code == 400
    )
    assert error_of(populated.call("POST", "/populations/hospitals/invitations", json={"name": "three"})) == (
        409,
        "HANSA-STORE-CONFLICT",
    )


def test_populations_are_made_once_and_changed(world):
    made = world.ok(
        "POST", "/populations", json={"name": "phones", "admission": "checked-in", "minimum_version": "1.2"}
    )
    assert error_of(world.call("POST", "/populations", json={"name": "phones"})) == (409, "HANSA-STORE-CONFLICT")
    world.ok("POST", "/populations", by="other", json={"name": "phones"})
    changed = world.ok("PATCH", "/populations/phones", json={"attributes": {"region": "string"}})
    assert changed == {**made, "attributes": {"region": "string"}}
    assert world.ok("PATCH", "/populations/phones", json={"minimum_version": None})["minimum_version"] is None
    assert len(world.ok("GET", "/populations")["populations"]) == 1


def test_events_come_in_pages_and_go_on(released):
    first = released.ok("GET", "/events?limit=3")
    following = released.ok("GET", f"/events?after={first['next']}&limit=1000")
    numbers = [event["number"] for event in first["events"] + following["events"]]
    assert numbers == sorted(set(numbers))
    last = released.ok("GET", f"/events?after={following['next']}")
    assert (last["events"], last["next"]) == ([], following["next"])
    newest = released.ok("GET", "/events?limit=2&newest=true")["events"]
    assert [event["number"] for event in newest] == numbers[-2:]


def test_who_invites_a_name_that_is_there_hears_how_to_invite_it_again(populated):
    first = populated.clients[0]
    assert populated.ok("POST", f"/clients/{first}/suspend")["state"] == "suspended"
    answer = populated.call("POST", "/populations/hospitals/invitations", json={"name": "one"})
    assert error_of(answer) == (409, "HANSA-STORE-CONFLICT")
    told = answer.json()["error"]
    assert first in told["found"]
    assert f"--again {first}" in told["action"]


def test_usage_counts_what_a_tenant_has(released):
    usage = released.ok("GET", "/usage")
    assert (usage["slot_bytes"], usage["update_bytes"]) == (0, 0)
    assert (usage["populations"], usage["clients"], usage["jobs"], usage["runs_by_state"]) == (1, 2, 1, {"running": 1})
    assert usage["model_bytes"] == 2 * len(MODEL)
    assert released.ok("GET", "/usage", by="other")["model_bytes"] == 0


def test_usage_counts_the_updates_of_open_rounds_and_what_optimizers_keep(released):
    """A closed round's are swept; until then what is left of it is nobody's."""

    async def open_round(rows):
        run = await rows.runs.get(released.run_id)
        key = RoundKey(run.id, "training", 2, 1)
        await rows.rounds.add(Round(key, "opening", 0, run.model, 2, 2, 1.0, None, b"", {"tenant": run.tenant}), [])
        return run, key

    run, key = released.rows(open_round)
    blobs = released.services.blobs
    released.run(blobs.put_bytes(slots_name(run.slots), b"s" * 30))
    released.run(blobs.put_bytes(part_name(key, "somebody", "0" * 64, 0), b"u" * 500))
    released.run(blobs.put_bytes(part_name(replace(key, round=1), "somebody", "0" * 64, 0), b"u" * 9000))
    usage = released.ok("GET", "/usage")
    assert (usage["slot_bytes"], usage["update_bytes"]) == (30, 500)
    other = released.ok("GET", "/usage", by="other")
    assert (other["slot_bytes"], other["update_bytes"]) == (0, 0)


def test_a_submitted_plan_loads_no_heavy_library(populated):
    plan = {**PLAN, "trainer": {**PLAN["trainer"], "kind": "torch"}}
    before = set(sys.modules)
    populated.ok("POST", "/jobs", json=job(plan=plan))
    assert not {"torch", "pandas", "scipy"} & (set(sys.modules) - before)
