"""Servers of an older version go on, on a schema that is raised under them: "drain, schema migrations forward".

What such a server says was frozen when its schema was the newest (``write_statements.py``): none of today's tables and
none of today's code is in it. It is said over connections that stay open, as a server's do, before, while and after
``hansa server upgrade`` is at work, on both databases; and the new version finds what the old one wrote, and the other
way round.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import NullPool
from tests.store.rows import report_of, round_of

from hansa.cli.main import main
from hansa.store import tables
from hansa.store.records import Assigned, RoundKey
from hansa.store.schema import current, parse_url, upgrade
from hansa.store.store import Store

FOLDER = Path(__file__).parent / "statements"
FROZEN = sorted(int(path.stem) for path in FOLDER.glob("*.json"))
CLIENTS = ("c0", "c1")
PATIENCE = 60.0
SLOW = 0.25
"""Seconds that an upgrade rests after each statement that changes the schema, so that others come in between."""


class OlderServer:
    """What a server that was written for an older schema does, in its own words, over one connection."""

    def __init__(self, number, url):
        self.words = json.loads((FOLDER / f"{number}.json").read_text())
        self.dialect = url.get_backend_name()
        self.lists = (lambda each: json.dumps([*each])) if self.dialect == "sqlite" else self._array
        engine = create_engine(url, poolclass=NullPool)
        self.connection = engine.connect()
        self.driver = self.connection.connection.driver_connection
        if self.dialect == "sqlite":
            self.driver.isolation_level = None
            for pragma in ("journal_mode=WAL", "foreign_keys=ON", f"busy_timeout={int(PATIENCE * 1000)}"):
                self.driver.execute(f"PRAGMA {pragma}")
        else:
            self.connection.exec_driver_sql("SET lock_timeout = '15s'")
            self.connection.commit()

    @staticmethod
    def _array(members):
        return "{" + ",".join(map(str, members)) + "}"

    @contextmanager
    def transaction(self, *, writes=True):
        if self.dialect == "sqlite":
            self.connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
        yield
        self.connection.commit()

    def say(self, name, /, **values):
        """Say something; return the rows that it gives, or how many rows it changed."""
        words = self.words[name][self.dialect]
        result = self.connection.exec_driver_sql(words["text"], {**words["fixed"], **values})
        return result.all() if result.returns_rows else result.rowcount

    def found(self):
        """Do what comes before a round: a tenant, a population with its clients, a job and its run."""
        with self.transaction():
            self.say("tenants.insert", id="t", name="hospitals")
            self.say(
                "populations.insert", id="p", tenant="t", name="wards", admission="enrolled", schema="{}",
                minimum_version=None,
            )  # fmt: skip
            self.say("profiles.insert", id=1, population="p", digest="d", attributes="{}", version="1.0", consent=True)
            for number, name in enumerate(CLIENTS):
                self.say(
                    "clients.insert", id=name, tenant="t", population="p", number=number, name=name, state="active",
                    public_key=name.encode(), profile=1, invitation=None, invited_at=1.0, enrolled_at=1.0,
                    declared_at=None,
                )  # fmt: skip
            self.say(
                "jobs.insert", id="j", tenant="t", population="p", name="a job", plan="{}", plan_sha256="s",
                descriptor="d", model="m", eligibility="", priority=0, submitted_by="o", submitted_at=1.0,
            )  # fmt: skip
            self.say(
                "runs.insert", id="r", tenant="t", job="j", population="p", state="running", version=0, round=0,
                model="m0", slots=None, notes="{}", priority=0, started_at=1.0, ended_at=None, why=None,
                lease_owner=None,
            )  # fmt: skip

    def opens(self, number):
        with self.transaction():
            (free,) = self.say("runs._FREE", owner="old", now=2.0, count=10)
            assert free[0] == "r"
            assert self.say("runs._TAKE", which=self.lists(["r"]), owner="old", until=1e9) == 1
            assert self.say("runs._LOCKED", id="r")[0][6] == number - 1
            key = {"run": "r", "kind": "training", "round": number, "attempt": 1}
            assert self.say(
                "rounds._ADD", **key, state="collecting", version=0, model="m", cohort_size=2, population=2,
                opened_at=float(number), deadline=None, key=b"wrapped", notes="{}", closed_at=None, report=None,
            ) == [("r",)]  # fmt: skip
            for place, client in enumerate(CLIENTS):
                self.say("rounds._ASSIGN", **key, client=client, number=place, position=place, fate=None, notes="{}")
            self.tells("round.opened", number)

    def checks_in(self, number):
        key = of(number)
        with self.transaction(writes=False):
            for client in CLIENTS:
                assert self.say("enrolments.BY_ID", id=client)[0][5] == "active"
                assert self.say("rounds._OPEN_PARTS", client=client) == [("r", "training", number, 1)]
            assert len(self.say("rounds._OPEN_ASSIGNMENTS")) == 2
            assert len(self.say("rounds._OPEN_OF", run="r")) == 1
            assert self.say("rounds._BY_ID", **key)[0][4] == "collecting"
            assert self.say("runs._GOING_ON")[0][0] == "r"
            self.say("participation._SOME", run="r", numbers=self.lists([0, 1]))
            assert len(self.say("clients._CHANGES", after=0)) == number - 1

    def takes(self, number, place, client):
        key = of(number)
        with self.transaction():
            assert self.say("rounds._SHARED", **key)[0][4] == "collecting"
            assert self.say("rounds._LOCKED_ASSIGNMENT", **key, of_client=client)[0][3] is None
            assert self.say("reports._GET", **key, of_client=client) == []
            self.say(
                "reports._ADD", run="r", kind="training", round=number, attempt=1, client=client, position=place,
                sha256="a" * 64, size=10, blob=f"updates/{number}/{client}", received_at=2.0,
            )  # fmt: skip
            assert self.say("rounds._SET_FATE", **key, of_client=client, fate="reported") == 1
            added = self.say(
                "sums._ADD", run="r", kind="training", round=number, attempt=1, part=0, place=place,
                content=b"sealed", at=2.0,
            )  # fmt: skip
            assert added == [(place,)]

    def closes(self, number, version=0):
        key = of(number)
        with self.transaction():
            run = self.say("runs._LOCKED", id="r")[0]
            assert [row[0] for row in self.say("reports._OF", **key)] == [*CLIENTS]
            assert self.say("rounds._COUNT_FATES", **key) == [("reported", 2)]
            assert self.say("rounds._SET_FATES", **key, of_clients=self.lists(CLIENTS), fate="included") == 2
            assert {row[3] for row in self.say("rounds._ASSIGNED", **key)} == {"included"}
            assert len(self.say("sums._OF", **key)) == 2
            assert self.say("sums._REMOVE", **key) == 2
            assert self.say(
                "rounds._CHANGE", **key, read=version, state="closed", model="m", deadline=None, key=b"", notes="{}",
                closed_at=3.0, report='{"cohort":2}',
            ) == 1  # fmt: skip
            self.say("participation._RECORD", run="r", numbers=self.lists([0, 1]), round=number)
            assert self.say(
                "runs._CHANGE", which="r", read=run[5], state="running", round=number, model=f"m{number}", slots=None,
                notes="{}", priority=0, ended_at=None, why=None,
            ) == 1  # fmt: skip
            assert self.say("clients._DECLARE", which="c0", profile=1, at=float(number), withdraws=False) == 1
            self.tells("round.closed", number)
            self.say("events._ADD_CHANGES", client="c0")

    def tells(self, kind, number):
        detail = json.dumps({"kind": "training", "round": number, "attempt": 1})
        self.say("events._ADD", tenant="t", at=2.0, kind=kind, run="r", client=None, detail=detail)
        told = self.say("events._OF_RUN", run="r", count=1)
        assert told[0][3] == kind

    def whole_round(self, number):
        self.opens(number)
        self.checks_in(number)
        for place, client in enumerate(CLIENTS):
            self.takes(number, place, client)
        self.closes(number)

    def close(self):
        self.connection.close()


def of(number):
    return {"of_run": "r", "of_kind": "training", "of_round": number, "of_attempt": 1}


class Upgrading:
    """``hansa server upgrade``, which rests after each statement that changes the schema."""

    def __init__(self, database, folder, monkeypatch):
        monkeypatch.setenv("HANSA_SERVER_DATABASE", database)
        monkeypatch.setenv("HANSA_SERVER_FOLDER", str(folder))
        self.at_work = threading.Event()
        self.changes = []

    def run(self):
        def rest(_connection, _cursor, statement, *_):
            if statement.strip().split()[0].upper() in ("ALTER", "CREATE", "DROP"):
                self.changes.append(statement)
                self.at_work.set()
                time.sleep(SLOW)

        event.listen(Engine, "after_cursor_execute", rest)
        try:
            with pytest.raises(SystemExit) as ended:
                main(["server", "upgrade"])
        finally:
            event.remove(Engine, "after_cursor_execute", rest)
        assert ended.value.code == 0


def test_what_servers_say_was_frozen_for_every_schema_before_this_one_that_may_still_serve(database):
    assert {*range(current(parse_url(database)).oldest, tables.SCHEMA)} <= {*FROZEN}, "see write_statements.py"


@pytest.mark.parametrize("number", FROZEN)
def test_an_older_server_goes_on_while_the_schema_is_raised_and_after(number, empty_database, tmp_path, monkeypatch):
    url = parse_url(empty_database)
    assert upgrade(url, number).number == number
    upgrading = Upgrading(empty_database, tmp_path, monkeypatch)
    old, stop, held_meanwhile = OlderServer(number, url), threading.Event(), []

    def serve(following):
        """Hold round after round; return the number of the next."""
        until = time.monotonic() + PATIENCE
        while not stop.is_set() and time.monotonic() < until:
            old.whole_round(following)
            if upgrading.at_work.is_set():
                held_meanwhile.append(following)
            following += 1
        return following

    old.found()
    for each in range(1, 9):  # so often that drivers have prepared every statement
        old.whole_round(each)
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve, 9)
        try:
            upgrading.run()
        finally:
            stop.set()
        following = serving.result(PATIENCE)
    assert current(url).number == tables.SCHEMA
    assert bool(upgrading.changes) == bool(held_meanwhile) == (number < tables.SCHEMA)
    last = following + 8
    for each in range(following, last):
        old.whole_round(each)
    asyncio.run(new_version_finds(empty_database, last - 1))
    old.takes(last, 1, "c1")  # of a round that the new version has opened, and in which it has taken a report
    with old.transaction():
        old.say("sums._ADD", run="r", kind="training", round=last, attempt=1, part=0, place=0, content=b"s", at=2.0)
    old.closes(last)
    old.close()


async def new_version_finds(database, last):
    """Look at every row with today's code, then open a round and take its reports: the older server will close it."""
    store = await Store.open(database, migrate=False)
    try:
        async with store.reading() as rows:
            found = await rows.rounds.of("r")
            assert [each.id for each in found] == [RoundKey("r", "training", each, 1) for each in range(last, 0, -1)]
            assert {(each.state, each.report["cohort"], each.version) for each in found} == {("closed", 2, 1)}
            for each in found:
                assert [one.fate for one in await rows.rounds.assigned(each.id)] == ["included"] * 2
                reports = await rows.reports.of(each.id)
                assert [(one.client, one.folded) for one in reports] == [(client, 0) for client in CLIENTS]
                assert [one.blob for one in reports] == [f"updates/{each.id.round}/{client}" for client in CLIENTS]
                assert await rows.sums.of(each.id) == []
            run = await rows.runs.get("r")
            assert (run.round, run.version, run.model) == (last, last, f"m{last}")
            told = [each.kind for each in await rows.events.of_run("r", 10 * last)]
            assert told == ["round.opened", "round.closed"] * last
        async with store.transaction() as rows:
            key = RoundKey("r", "training", last + 1, 1)
            cohort = [Assigned(key, client, place, place) for place, client in enumerate(CLIENTS)]
            await rows.rounds.add(round_of(key, size=2), cohort)
        async with store.transaction() as rows:
            clients = await rows.clients.page("p", limit=1)
            await rows.reports.add([report_of(key, clients[0])])
            await rows.rounds.set_fates(key, {clients[0].id: "reported"})
    finally:
        await store.close()
