"""An authority's answers: for which rosters it vouches, what it draws, and what it refuses, whoever asks."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from threading import Barrier, BrokenBarrierError, Event

import httpx
import pytest
from structlog.testing import capture_logs

from hansa.authority.app import create
from hansa.authority.book import FILE as BOOK
from hansa.authority.serve import opened
from hansa.authority.settings import AuthoritySettings
from hansa.authority.vouched import FILE, Vouched
from hansa.core.errors import HansaError, RefusedError, SettingsError
from hansa.secagg import keys
from hansa.secagg.beacon import Beacon, Draw, beacon_value
from hansa.secagg.convention import vouch
from hansa.secagg.encoding import Reader, prefixed, to_bitmap
from hansa.secagg.roster import Roster
from hansa.serving import own_files
from hansa.serving.own_files import OwnFiles
from hansa.testing.secagg import Federation, public
from hansa.wire.service_calls import BEACONS, ROSTERS, signed_call


class Clock:
    def now(self):
        return 1e9


def text(key):
    return base64.b64encode(key).decode()


class Asked:
    """A federation of five clients, and the folder of an authority that vouches for them."""

    def __init__(self, folder, **settings):
        self.one = Federation(5, settings={"registrar": "authority"})
        self.own = OwnFiles(folder, "authority")
        self.vouched = Vouched(self.own)
        for number, key in enumerate(self.one.roster.identities):
            self.vouched.add(text(key), f"site {number}")
        server = text(public(self.one.server_key))
        self.settings = AuthoritySettings(**{
            "operator": "notary", "server_keys": (server,), "folder": str(folder), **settings,
        })  # fmt: skip

    def ask(self, task=None, identities=None):
        with opened(self.settings, Clock()) as service:
            return service.answer(self.body(task, identities))

    def body(self, task=None, identities=None):
        joined = b"".join(self.one.roster.identities if identities is None else identities)
        return prefixed((task or self.one.task).content, joined)

    def of(self, identities):
        """Return the task and the keys of another roster."""
        roster = Roster(tuple(identities))
        return replace(self.one.task, roster_root=roster.root, roster_size=len(identities)), identities


@pytest.fixture
def asked(tmp_path):
    return Asked(tmp_path / "authority")


class Calls:
    """Calls an application without sockets."""

    def __init__(self, application):
        self.application = application

    def __getattr__(self, method):
        return lambda *where, **what: asyncio.run(self.call(method, *where, **what))

    async def call(self, method, *where, **what):
        transport = httpx.ASGITransport(self.application)
        async with httpx.AsyncClient(transport=transport, base_url="https://authority.test") as client:
            return await getattr(client, method)(*where, **what)


def refuses(work, code, match="."):
    with pytest.raises(HansaError, match=match) as caught:
        work()
    assert caught.value.code == code
    return caught.value


def test_a_roster_of_keys_on_the_list_is_vouched_for_and_clients_believe_it(asked):
    signature = asked.ask()
    assert asked.ask() == signature, "also after a restart"
    authority = asked.own.identity()
    one = Federation(
        5, settings={"registrar": "authority"}, demands={"registrar": "authority", "authority_key": public(authority)}
    )
    one.convention = replace(one.convention, registration=signature)
    assert [*map(list, one.run())] == [*map(list, one.expected())]


def test_what_is_signed_is_one_task_and_no_other_of_the_same_clients(asked):
    signature, key = asked.ask(), public(asked.own.identity())
    task = asked.one.task
    assert keys.signed(key, signature, "roster", *task.registered)
    for other in ({"round": 4}, {"attempt": 2}, {"run": "run-2"}, {"model_sha256": bytes(32)}):
        assert not keys.signed(key, signature, "roster", *replace(task, **other).registered)
    pinned = replace(task, registrar="pinned")
    assert not keys.signed(key, signature, "roster", *pinned.registered)


def test_a_key_that_is_not_on_the_list_or_was_taken_off_is_refused_and_nobody_is_named(asked):
    stranger = public(asked.one.key("stranger"))
    error = refuses(lambda: asked.ask(*asked.of((*asked.one.roster.identities, stranger))), "HANSA-AUTHORITY-STRANGER")
    assert text(stranger) not in f"{error} {error.action}"
    gone = text(asked.one.roster.identities[2])
    assert asked.vouched.remove(gone)
    assert not asked.vouched.remove(gone)
    refuses(asked.ask, "HANSA-AUTHORITY-STRANGER")
    rest = [each for each in asked.one.roster.identities if text(each) != gone]
    assert asked.ask(*asked.of(rest))
    asked.vouched.add(gone)
    assert asked.ask()


def test_the_list_is_read_again_by_a_service_that_runs(asked):
    with opened(asked.settings, Clock()) as service:
        first = service.answer(asked.body())
        path = asked.own.place / FILE
        lines = path.read_text().splitlines()
        path.write_text("\n".join(["# the sites", "", *lines[:-1]]))
        refuses(lambda: service.answer(asked.body()), "HANSA-AUTHORITY-STRANGER")
        path.write_text("\n".join([*lines, "half a li"]))
        refuses(lambda: service.answer(asked.body()), "HANSA-AUTHORITY-LIST", "line 6 is no key")
        refuses(lambda: service.answer(asked.body()), "HANSA-AUTHORITY-LIST", "line 6 is no key")
        path.write_text("\n".join([*lines, lines[0]]))
        refuses(lambda: service.answer(asked.body()), "HANSA-AUTHORITY-LIST", "line 6 is a key that a line above")
        path.write_bytes(b"\xff\xfe")
        refuses(lambda: service.answer(asked.body()), "HANSA-AUTHORITY-LIST", "no text")
        path.unlink()
        refuses(lambda: service.answer(asked.body()), "HANSA-AUTHORITY-STRANGER")
        path.write_text("\n".join(lines))
        assert service.answer(asked.body()) == first


def test_duplicates_and_rosters_below_its_own_minimum_are_refused(asked):
    first, *rest = asked.one.roster.identities
    refuses(lambda: asked.ask(identities=(first, first, *rest)), "HANSA-SECAGG-TASK", "a key twice")
    asked.settings = replace(asked.settings, minimum_cohort=6)
    refuses(asked.ask, "HANSA-AUTHORITY-FEW", "no fewer than 6")
    asked.settings = replace(asked.settings, minimum_cohort=3)
    refuses(lambda: asked.ask(identities=()), "HANSA-AUTHORITY-FEW")


def test_only_a_task_that_asks_an_authority_and_has_that_roster_is_signed(asked):
    one = asked.one
    for registrar in ("server", "pinned"):
        refuses(lambda name=registrar: asked.ask(replace(one.task, registrar=name)), "HANSA-SECAGG-REFUSED", registrar)
        with pytest.raises(RefusedError, match="no authority vouches"):
            vouch(one.server_key, replace(one.task, registrar=registrar))
    refuses(lambda: asked.ask(identities=one.roster.identities[::-1]), "HANSA-SECAGG-REFUSED", "not those of the task")
    refuses(lambda: asked.ask(identities=one.roster.identities[:4]), "HANSA-SECAGG-REFUSED", "not those of the task")


def test_an_authority_with_the_servers_key_vouches_for_nobody(asked):
    own = text(public(asked.own.identity()))
    asked.settings = replace(asked.settings, server_keys=(own,))
    refuses(asked.ask, "HANSA-SECAGG-REFUSED", "key is the server's")


def test_bytes_that_are_no_question_are_refused_and_a_changed_one_is_another_task(asked):
    body, task = asked.body(), asked.one.task
    with opened(asked.settings, Clock()) as service:
        for end in range(0, len(body), 7):
            with pytest.raises(RefusedError):
                service.answer(body[:end])
        for place in range(0, len(body), 3):
            changed = bytearray(body)
            changed[place] ^= 0x41
            with suppress(RefusedError):  # another plan, model or run is another task with the same roster
                assert not keys.signed(service.identity, service.answer(bytes(changed)), "roster", *task.registered)
        refuses(lambda: service.answer(body + b"x"), "HANSA-SECAGG-MESSAGE")
        ragged = prefixed(asked.one.task.content, bytes(33))
        refuses(lambda: service.answer(ragged), "HANSA-SECAGG-MESSAGE", "32 bytes each")


def test_over_http_only_a_known_server_is_answered_and_no_log_line_names_a_client(asked):
    body, server = asked.body(), asked.one.server_key
    with opened(asked.settings, Clock()) as service, capture_logs() as logs:
        calls = Calls(create(service))

        def post(content, key=server, path=ROSTERS, at=1e9):
            header = signed_call(key, path, content, at)
            return calls.post(ROSTERS, content=content, headers=header)

        assert post(body).content == service.answer(body)
        refused = [
            calls.post(ROSTERS, content=body), post(body, asked.one.key("another server")),
            post(body, path="/v1/tasks"), post(body, at=1e9 - 400), post(bytes(2**20 + 1)),
        ]  # fmt: skip
        assert [each.json()["error"]["code"] for each in refused] == [
            "HANSA-AUTH-MISSING", "HANSA-AUTH-SIGNATURE", "HANSA-AUTH-SIGNATURE", "HANSA-AUTH-CLOCK",
            "HANSA-REQUEST-TOO-LARGE",
        ]  # fmt: skip
        asked.vouched.remove(text(asked.one.roster.identities[0]))
        told = post(body)
        assert (told.status_code, told.json()["error"]["code"]) == (403, "HANSA-AUTHORITY-STRANGER")
        assert calls.get("/healthz").json() == {"status": "alive"}
        assert calls.get("/readyz").json() == {"status": "ready", "operator": "notary"}
        (asked.own.place / FILE).write_text("nothing")
        assert (calls.get("/readyz").status_code, post(body).status_code) == (503, 503)
    assert len(logs) == 8
    for key in asked.one.roster.identities:
        for shown in (text(key), key.hex(), repr(key)):
            assert shown not in repr(logs)
    assert "site " not in repr(logs)


def test_the_list_keeps_comments_and_the_order_and_takes_keys_only(asked):
    path = asked.own.place / FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().splitlines()[1] == f"{text(asked.one.roster.identities[1])}  # site 1"
    key = text(public(asked.one.key("new")))
    assert asked.vouched.add(key, "a\ncomment #1")
    assert not asked.vouched.add(key)
    assert path.read_text().splitlines()[-1] == f"{key}  # a comment #1"
    for bad in ("", "short", text(bytes(31)), key[:-2] + "!=", f"{key}\n{key}", "-" * 44):
        refuses(lambda text=bad: asked.vouched.add(text), "HANSA-AUTHORITY-KEY")
        refuses(lambda text=bad: asked.vouched.remove(text), "HANSA-AUTHORITY-KEY")
    before = path.read_bytes()
    path.write_bytes(before + b"?")
    refuses(lambda: asked.vouched.add(text(bytes(32))), "HANSA-AUTHORITY-LIST")
    assert path.read_bytes() == before + b"?"


def test_commands_at_the_same_time_lose_no_line(tmp_path):
    own = OwnFiles(tmp_path / "authority", "authority")
    added = [text(os.urandom(32)) for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda key: Vouched(own).add(key), added))
    assert len(Vouched(own).keys()) == 40


def test_one_process_has_a_folder_and_a_list_with_problems_does_not_start(asked):
    with opened(asked.settings), pytest.raises(HansaError, match="another authority uses it"), opened(asked.settings):
        pass
    (asked.own.place / FILE).write_text("nothing")
    with pytest.raises(HansaError, match="line 1 is no key"), opened(asked.settings):
        pass


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"server_keys": '["short"]'}, "server_keys.0"),
        ({"server_keys": "[]"}, "server_keys"),
        ({"minimum_cohort": "2"}, "minimum_cohort"),
        ({"tls": '"files"'}, "tls_key"),
        ({"port": "0"}, "port"),
        ({"vouched": '"x"'}, "vouched"),
    ],
)
def test_settings_with_problems_are_told_with_their_key(tmp_path, changes, path):
    values = {"operator": '"x"', "server_keys": f'["{text(bytes(32))}"]', **changes}
    file = tmp_path / "authority.toml"
    file.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
    with pytest.raises(SettingsError) as caught:
        AuthoritySettings.read(file)
    assert caught.value.code == "HANSA-AUTHORITY-SETTINGS"
    problems = {each.path for each in caught.value.problems}
    if path == "server_keys.0":
        assert "is 'short', which is no key" in str(caught.value)
    assert path in problems or (path == "tls_key" and "tls_certificate" in problems)


def test_a_list_with_an_older_time_that_changes_again_in_the_same_tick_is_read_again(asked, monkeypatch):
    """As by tools that keep the time of what they copy, where the clock of the files is coarse."""
    path = asked.own.place / FILE
    os.utime(path, (1e9, 1e9))
    assert len(asked.vouched.keys()) == 5
    status = path.stat()
    monkeypatch.setattr(type(path), "stat", lambda *_, **__: status)
    path.write_text("")
    assert asked.vouched.keys() == frozenset()


def test_of_two_that_begin_at_once_one_makes_the_key(tmp_path, monkeypatch):
    both, one_is_done, written = Barrier(2), Event(), own_files._private_pem

    def as_the_other_does(key):
        with suppress(BrokenBarrierError):
            if both.wait(0.5) == 0:
                one_is_done.wait(10)
        return written(key)

    def begin(_):
        found = public(OwnFiles(tmp_path, "authority").identity())
        one_is_done.set()
        return found

    monkeypatch.setattr(own_files, "_private_pem", as_the_other_does)
    with ThreadPoolExecutor(2) as pool:
        assert len({*pool.map(begin, range(2)), begin(0)}) == 1


class Drawing(Asked):
    """A federation of which everybody has advertised, on a graph that the authority draws."""

    def __init__(self, folder, **settings):
        super().__init__(folder, **settings)
        self.one = self.federation()
        self.server = public(self.one.server_key)

    @staticmethod
    def federation(clients=5, *, seed="federation", **settings):
        sparse = {"neighbours": 2, "threshold": 2, "registrar": "authority", "beacon": "authority"}
        return Federation(clients, protocol="secagg-plus", seed=seed, settings=sparse | settings)

    def question(self, one=None, gone=()):
        one = one or self.one
        for to, message in one.start().send:
            if to not in gone:
                step = one.deliver(one.ask(to, message))
        step = one.logged(one.server.on_deadline()) if gone else step
        return prefixed(one.task.content, b"".join(one.roster.identities), step.send[0].message)

    def draw(self, question, server=None):
        with opened(self.settings, Clock()) as service:
            return service.draw(server or self.server, question)


@pytest.fixture
def drawing(tmp_path):
    return Drawing(tmp_path / "authority")


def test_the_same_question_gets_the_same_beacon_also_after_a_restart_and_it_is_random(drawing, tmp_path):
    question = drawing.question()
    first = drawing.draw(question)
    assert drawing.draw(question) == first
    found = Beacon.decode(first, drawing.one.task.hash)
    own = public(drawing.own.identity())
    assert beacon_value(drawing.one.task, to_bitmap(range(5), 5), found.content, own) == found.value
    another = Drawing(tmp_path / "another")
    values = {Beacon.decode(another.draw(question), drawing.one.task.hash).value, found.value}
    for number in range(4, 8):
        other = drawing.federation(round=number)
        values.add(Beacon.decode(drawing.draw(drawing.question(other)), other.task.hash).value)
    assert len(values) == 6


def test_of_one_task_the_first_set_of_clients_and_the_first_server_have_the_beacon(drawing):
    first = drawing.draw(drawing.question())
    fewer = drawing.question(drawing.federation(), gone={4})
    refuses(lambda: drawing.draw(fewer), "HANSA-AUTHORITY-DRAWN", "others who advertised")
    another = public(drawing.one.key("another server"))
    refuses(lambda: drawing.draw(drawing.question(), another), "HANSA-AUTHORITY-DRAWN")
    assert drawing.draw(drawing.question()) == first


def test_nothing_is_drawn_for_a_roster_that_is_not_vouched_for_or_before_clients_took_part(drawing):
    question, one = drawing.question(), drawing.one
    drawing.vouched.remove(text(one.roster.identities[2]))
    refuses(lambda: drawing.draw(question), "HANSA-AUTHORITY-STRANGER")
    drawing.vouched.add(text(one.roster.identities[2]))
    parts = Reader(question)
    content, keys_, asked = parts.blob(), parts.blob(), Draw.decode(parts.blob(), one.task.hash)
    others = drawing.federation(round=4)
    for bad in (
        replace(asked, adverts=(bytes(160), *asked.adverts[1:])),
        replace(asked, advertised=to_bitmap(range(2), 5), adverts=asked.adverts[:2]),
        replace(asked, adverts=()),
    ):
        refuses(lambda bad=bad: drawing.draw(prefixed(content, keys_, bad.encode())), "HANSA-SECAGG-REFUSED")
    ahead = replace(asked, task=others.task.hash).encode()  # adverts of this round, for one that is to come
    refuses(lambda: drawing.draw(prefixed(others.task.content, keys_, ahead)), "HANSA-SECAGG-REFUSED", "not signed")
    refuses(lambda: drawing.draw(prefixed(others.task.content, keys_, asked.encode())), "HANSA-SECAGG-UNEXPECTED")
    plain = drawing.federation(beacon="")
    none = replace(asked, task=plain.task.hash).encode()
    refuses(lambda: drawing.draw(prefixed(plain.task.content, keys_, none)), "HANSA-SECAGG-REFUSED", "has no beacon")
    with opened(drawing.settings, Clock()) as service:
        assert service.book.drawn(one.task.hash) is None
        assert service.book.drawn(others.task.hash) is None


def test_draws_of_a_round_are_bounded_for_each_client_and_for_its_groups_and_other_rounds_are_not(drawing):
    drawing.settings = replace(drawing.settings, attempts_per_round=2)
    kept = {}
    for attempt in (1, 2):
        question = drawing.question(drawing.federation(attempt=attempt))
        kept[attempt] = question, drawing.draw(question)
    refused = drawing.question(drawing.federation(attempt=3))
    refuses(lambda: drawing.draw(refused), "HANSA-AUTHORITY-ATTEMPTS", "For some client of this sum")
    for question, answer in kept.values():
        assert drawing.draw(question) == answer
    group = drawing.federation(4, seed="another group", attempt=2)
    for number, key in enumerate(group.roster.identities):
        drawing.vouched.add(text(key), f"site {5 + number}")
    assert drawing.draw(drawing.question(group))
    assert drawing.draw(drawing.question(drawing.federation(attempt=3, round=4)))
    drawing.settings = replace(drawing.settings, attempts_per_round=3)
    assert drawing.draw(refused)


def test_a_server_that_changes_a_task_and_not_its_attempt_gets_no_more_draws(drawing):
    """Nor one that has some clients advertise in each of many tasks, and others in few."""
    drawing.settings = replace(drawing.settings, attempts_per_round=3)
    tasks = [drawing.federation(phase_seconds=(60 + each, 60, 60, 60, 60)) for each in range(4)]
    for each in tasks[:3]:
        assert drawing.draw(drawing.question(each, gone={4}))
    refuses(lambda: drawing.draw(drawing.question(tasks[3])), "HANSA-AUTHORITY-ATTEMPTS")


def test_changed_bytes_get_no_beacon_of_the_task_and_spend_none(drawing):
    question = drawing.question()
    with opened(drawing.settings, Clock()) as service:
        for end in range(0, len(question), 11):
            with pytest.raises(RefusedError):
                service.draw(drawing.server, question[:end])
        for place in range(0, len(question), 5):
            changed = bytearray(question)
            changed[place] ^= 0x41
            with pytest.raises(RefusedError):
                service.draw(drawing.server, bytes(changed))
        refuses(lambda: service.draw(drawing.server, question + b"x"), "HANSA-SECAGG-MESSAGE")
        assert service.draw(drawing.server, question)


def test_over_http_a_beacon_is_drawn_for_a_known_server_and_the_book_holds_no_key_of_a_client(drawing):
    question, one = drawing.question(), drawing.one
    with opened(drawing.settings, Clock()) as service, capture_logs() as logs:
        calls = Calls(create(service))

        def post(key, path=BEACONS):
            return calls.post(BEACONS, content=question, headers=signed_call(key, path, question, 1e9))

        assert post(one.key("another")).json()["error"]["code"] == "HANSA-AUTH-SIGNATURE"
        assert post(one.server_key, ROSTERS).json()["error"]["code"] == "HANSA-AUTH-SIGNATURE"
        assert post(one.server_key).content == service.draw(public(one.server_key), question)
        assert calls.get("/readyz").status_code == 200
    assert (drawing.own.place / BOOK).stat().st_mode & 0o777 == 0o600
    kept = (drawing.own.place / BOOK).read_bytes() + repr(logs).encode()
    for key in one.roster.identities:
        assert key not in kept
        assert text(key).encode() not in kept


@pytest.mark.parametrize(("point", "kept"), [("authority.drawn", False), ("authority.draw-written", True)])
def test_killed_before_and_after_a_draw_is_on_disk_the_authority_has_one_beacon_for_the_task(drawing, point, kept):
    question, folder = drawing.question(), drawing.own.place
    (folder / "question").write_bytes(question)
    work = (
        "import sys; from pathlib import Path; from hansa.authority.serve import opened;"
        "from hansa.authority.settings import AuthoritySettings;"
        "folder = Path(sys.argv[1]);"
        "settings = AuthoritySettings(operator='notary', server_keys=(sys.argv[2],), folder=str(folder));\n"
        "with opened(settings) as service: service.draw(bytes.fromhex(sys.argv[3]), (folder / 'question').read_bytes())"
    )
    line = [sys.executable, "-c", work, str(folder), text(drawing.server), drawing.server.hex()]
    died = subprocess.run(line, env={**os.environ, "HANSA_KILL_AT": point}, timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    with opened(drawing.settings, Clock()) as service:
        before = service.book.drawn(drawing.one.task.hash)
        assert (before is not None) is kept
        value = Beacon.decode(service.draw(drawing.server, question), drawing.one.task.hash).value
        assert before is None or before.value == value
    assert Beacon.decode(drawing.draw(question), drawing.one.task.hash).value == value


def test_a_book_that_cannot_be_read_stops_the_authority(drawing):
    (drawing.own.place / BOOK).write_bytes(b"no database, and longer than a header of one is" * 100)
    with pytest.raises(HansaError, match="what it has drawn cannot be read"), opened(drawing.settings):
        pass
