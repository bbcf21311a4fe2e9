"""A decryptor's answers: one sum for each client's vector of a round, whatever dies and whoever asks again."""

from __future__ import annotations

import base64
import hashlib
import sqlite3
from dataclasses import replace

import pytest
from tests.server.authority import Authority

from hansa.core.errors import HansaError, RefusedError, SettingsError
from hansa.decryptor.book import Book
from hansa.decryptor.service import DecryptorService
from hansa.decryptor.settings import DecryptorSettings
from hansa.secagg import keys
from hansa.secagg.encoding import to_bitmap
from hansa.secagg.messages import header_of
from hansa.secagg.oneshot_messages import Answer, Batch, Request, Valid
from hansa.secagg.task import DecryptorKeys
from hansa.serving.own_files import OwnFiles, fingerprint
from hansa.testing.secagg import OneShotFederation, public

NONCE = bytes(32)


class Clock:
    def __init__(self):
        self.at = 1e9

    def now(self):
        return self.at


def text(key):
    return base64.b64encode(key).decode()


SERVER = text(bytes(range(32)))


class Operated:
    """A federation whose first decryptor is a service with a folder; the other is a machine."""

    def __init__(self, folder, clients=5, attempt=1, round_number=1, **settings):
        self.folder, self.clock = folder, Clock()
        probe = OneShotFederation(clients)
        self.peers = probe.roster.identities
        self.server = public(probe.server_key)
        self.settings = DecryptorSettings(**{
            "operator": "operator 0", "server_keys": (text(self.server),), "peers": tuple(map(text, self.peers)),
            "folder": str(folder), **settings,
        })  # fmt: skip
        self.key = OwnFiles(folder, "decryptor").identity()
        self.service = None
        self.restart()
        nonce = hashlib.sha256(f"{attempt}/{round_number}".encode()).digest()
        own = DecryptorKeys(operator="operator 0", identity=public(self.key), sealing=self.service.public_key(nonce))
        named = (own, *probe.settings["decryptors"][1:])
        self.one = OneShotFederation(
            clients, settings={"decryptors": named, "attempt": attempt, "round": round_number},
            demands={"decryptors": {each.operator: each.identity for each in named}},
        )  # fmt: skip

    def restart(self):
        if self.service is not None:
            self.service.book.close()
        self.service = DecryptorService(self.settings, self.key, Book(self.folder), self.clock)

    def ready(self, server=None):
        return self.service.stand_ready(server or self.server, self.one.task.content, self.one.convention.registration)

    def begun(self):
        """Return the batch and the request that the server sends to the service, which has answered the batch."""
        one = self.one
        one.start_decryptor(1)
        one.convention = replace(one.convention, decryptors=(self.ready(), one.decryptors[1].signature))
        step = super(OneShotFederation, one).start()
        step = [one.deliver(one.ask(to, message)) for to, message in step.send][-1]
        batch = dict(step.send)[0]
        return batch, self.service.exchange(self.server, batch)

    def request(self, members, place=0):
        unsigned = Request(place, self.one.task.hash, to_bitmap(members, self.one.clients), b"")
        signature = keys.sign(self.one.server_key, "request", *unsigned.signed_fields())
        return replace(unsigned, signature=signature).encode()

    def ask(self, message):
        return self.service.exchange(self.server, message)


def refuses(work, code, match="."):
    with pytest.raises(RefusedError, match=match) as caught:
        work()
    assert caught.value.code == code


def test_a_task_goes_through_with_a_restart_before_every_call(tmp_path):
    of = Operated(tmp_path)
    of.restart()
    signature = of.ready()
    assert keys.signed(public(of.key), signature, "task", of.one.task.hash)
    of.restart()
    batch, valid = of.begun()
    assert header_of(valid).kind == Valid.kind
    of.restart()
    assert of.ask(batch) == valid
    of.restart()
    answer = of.ask(of.request(range(5)))
    assert header_of(answer).kind == Answer.kind
    of.restart()
    assert of.ask(of.request(range(5))) == answer


def test_after_an_answer_no_other_set_of_clients_is_answered_whatever_dies(tmp_path):
    of = Operated(tmp_path)
    batch, _ = of.begun()
    of.ask(of.request(range(4)))
    for _ in range(2):
        for members in (range(5), range(3)):
            refuses(lambda members=members: of.ask(of.request(members)), "HANSA-SECAGG-ANSWERED", "one sum a task")
        refuses(lambda: of.ask(batch), "HANSA-SECAGG-ANSWERED")
        of.restart()


def test_another_attempt_of_the_round_is_answered_for_nobody_who_is_in_a_sum(tmp_path):
    first = Operated(tmp_path)
    first.begun()
    first.ask(first.request(range(4)))
    second = Operated(tmp_path, attempt=2)
    second.begun()
    refuses(lambda: second.ask(second.request(range(5))), "HANSA-SECAGG-ANSWERED", "another sum of the round")
    refuses(lambda: second.ask(second.request([2, 3, 4])), "HANSA-SECAGG-ANSWERED", "another sum of the round")
    following = Operated(tmp_path, round_number=2)
    following.begun()
    assert following.ask(following.request(range(5)))


def test_its_own_minimum_holds_whatever_the_task_says(tmp_path):
    of = Operated(tmp_path, minimum_survivors=4)
    refuses(of.ready, "HANSA-SECAGG-REFUSED", "policy demands 4")


def test_a_request_below_the_minimum_is_refused(tmp_path):
    of = Operated(tmp_path)
    of.begun()
    refuses(lambda: of.ask(of.request([0, 1])), "HANSA-SECAGG-REFUSED", "fewer than 3")


def test_reports_of_strangers_are_left_out(tmp_path):
    of = Operated(tmp_path)
    of.settings = replace(of.settings, peers=of.settings.peers[:4])
    of.restart()
    _, valid = of.begun()
    assert Valid.decode(valid, of.one.task.hash).members == to_bitmap(range(4), 5)


def test_only_plans_and_servers_that_its_settings_name_are_served(tmp_path):
    of = Operated(tmp_path, plans=("ab" * 32,))
    refuses(of.ready, "HANSA-SECAGG-REFUSED", "plan is not among")
    of = Operated(tmp_path)
    batch, _ = of.begun()
    stranger = public(of.one.key("another server"))
    refuses(lambda: of.ready(stranger), "HANSA-SECAGG-REFUSED", "Another server")
    refuses(lambda: of.service.exchange(stranger, batch), "HANSA-SECAGG-UNEXPECTED")


def test_a_key_serves_one_task_and_is_the_same_for_the_same_call(tmp_path):
    of = Operated(tmp_path)
    made = of.service.public_key(NONCE)
    of.restart()
    assert of.service.public_key(NONCE) == made
    assert of.service.public_key(b"another nonce of 32 bytes ......") != made
    refuses(lambda: of.service.public_key(b"short"), "HANSA-SECAGG-MESSAGE")
    of.ready()
    other = Operated(tmp_path, attempt=3)
    other.one.task = replace(other.one.task, decryptors=(of.one.task.decryptors[0], other.one.task.decryptors[1]))
    refuses(other.ready, "HANSA-SECAGG-REFUSED", "key that it has made for it")


def test_after_an_answer_the_disk_holds_neither_the_rounds_key_nor_a_sealed_seed(tmp_path):
    of = Operated(tmp_path)
    secret = of.service.book.secret_of(of.one.task.decryptors[0].sealing)
    batch, _ = of.begun()
    seeds = Batch.decode(batch, of.one.task.hash).reports[0].seeds
    on_disk = (tmp_path / "decryptor.sqlite").read_bytes()
    assert secret in on_disk
    assert seeds in on_disk
    of.ask(of.request(range(5)))
    for path in tmp_path.iterdir():
        assert secret not in path.read_bytes()
        assert seeds not in path.read_bytes()


def test_what_nobody_asks_for_is_forgotten_and_stays_spent(tmp_path):
    of = Operated(tmp_path, keep_days=1.0)
    of.begun()
    answer = of.ask(of.request(range(5)))
    late = Operated(tmp_path, round_number=2, keep_days=1.0)
    batch, _ = late.begun()
    for each in (of, late):
        each.clock.at += 2 * 86400
        each.restart()
        each.service.public_key(each.one.identities[0].public_key().public_bytes_raw())
    refuses(lambda: late.ask(batch), "HANSA-SECAGG-UNEXPECTED", "forgotten")
    refuses(lambda: of.ask(of.request(range(5))), "HANSA-SECAGG-UNEXPECTED", "not kept any more")
    refuses(lambda: of.ask(of.request(range(4))), "HANSA-SECAGG-ANSWERED")
    assert answer not in (tmp_path / "decryptor.sqlite").read_bytes()


def test_a_failed_write_leaves_nothing_answered(tmp_path, monkeypatch):
    of = Operated(tmp_path)
    of.begun()

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(of.service.book, "answer", full)
        with pytest.raises(sqlite3.OperationalError):
            of.ask(of.request(range(4)))
    assert header_of(of.ask(of.request(range(5)))).kind == Answer.kind


def test_one_process_has_a_folder(tmp_path):
    own = OwnFiles(tmp_path, "decryptor")
    with own.alone(), pytest.raises(HansaError, match="another decryptor uses it"), own.alone():
        pass
    with own.alone():
        pass


def test_an_identity_is_made_once_and_a_file_that_is_none_is_told(tmp_path):
    own = OwnFiles(tmp_path, "decryptor")
    assert public(own.identity()) == public(own.identity())
    assert len(fingerprint(public(own.identity())).split()) == 16
    (tmp_path / "identity.pem").write_text("nothing")
    with pytest.raises(HansaError, match="holds no Ed25519 key"):
        own.identity()


def test_a_certificate_of_another_key_is_told_before_anything_is_served(tmp_path):
    authority = Authority(tmp_path / "ca")
    (certificate, _), (_, key) = authority.issue("one"), authority.issue("another")
    own = base64.b64encode(bytes(32)).decode()
    options = {"operator": "a", "server_keys": (own,), "registrar": "server", "tls": "files"}
    with pytest.raises(SettingsError) as caught:
        DecryptorSettings(**options, tls_certificate=str(certificate), tls_key=str(key))
    assert [problem.path for problem in caught.value.problems] == ["tls_key"]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"server_keys": '["short"]'}, "server_keys.0: is 'short', which is no key"),
        ({"peers": "[]"}, "peers"),
        ({"plans": '["x"]'}, "plans.0"),
        ({"minimum_survivors": "2"}, "minimum_survivors"),
        ({"tls_key": '"key.pem"'}, "tls_key"),
        ({"oprator": '"x"'}, "oprator"),
        ({"registrar": '"authority"'}, 'authority_key: is needed with registrar = "authority"'),
        ({"registrar": '"authority"', "authority_key": '"short"'}, "authority_key: is 'short', which is no key"),
        ({"registrar": '"authority"', "authority_key": f'"{SERVER}"'}, "authority_key"),
        ({"authority_key": f'"{SERVER}"'}, "authority_key"),
    ],
)
def test_settings_with_problems_are_told_with_their_key(tmp_path, changes, path):
    key = SERVER
    values = {"operator": '"x"', "server_keys": f'["{key}"]', "peers": f'["{key}", "{key}", "{key}"]', **changes}
    file = tmp_path / "decryptor.toml"
    file.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
    with pytest.raises(SettingsError) as caught:
        DecryptorSettings.read(file)
    assert any(str(each).startswith(path) for each in caught.value.problems)
