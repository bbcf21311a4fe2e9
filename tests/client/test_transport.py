from __future__ import annotations

import gzip
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
import safetensors.numpy
from fake_server import digest, job_of
from tests.server.authority import Authority

from hansa.client import Agent, transport
from hansa.client.transport import Reach, Transport, refusal, wanted_pause
from hansa.core.errors import RefusedError
from hansa.wire.generated import federation_pb2 as wire


def large(server):
    """Assign a job whose model has 600,000 numbers; return its path and the model's digest."""
    job = job_of()
    model = safetensors.numpy.save({"model": np.zeros(600_000, dtype=np.float32)})
    return server.assign(job, model), digest(model), len(model)


def test_a_download_that_is_cut_goes_on_where_it_ended(server, agent):
    path, name, size = large(server)
    server.cut_downloads_after = [1_000_000, 500_000]
    target = agent.state.model(name)
    agent._transport.download(name, target, size)
    assert digest(target.read_bytes()) == name
    assert server.sent == size
    assert path not in server.reports


def test_a_download_is_resumed_by_the_next_process(server, agent, data, tmp_path):
    _, name, size = large(server)
    server.cut_downloads_after = [1_000_000] * 9
    agent._transport.reach = Reach(server.url, tries=1)
    target = agent.state.model(name)
    with pytest.raises(RefusedError) as error:
        agent._transport.download(name, target, size)
    assert error.value.code == "HANSA-SERVER-UNREACHABLE"
    agent.close()
    server.cut_downloads_after = []
    again = Agent(server.url, data, tmp_path / "state")
    again._transport.download(name, target, size)
    again.close()
    assert target.stat().st_size == size
    assert server.sent == size


def test_a_download_of_more_than_was_named_ends(server, agent):
    _, name, size = large(server)
    with pytest.raises(RefusedError) as error:
        agent._transport.download(name, agent.state.model(name), size - 1)
    assert error.value.code == "HANSA-UPLOAD-DIGEST"


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(transport, "PART", 100)


@pytest.mark.parametrize(
    "cuts", [[], ["before"], ["after"], ["", "before"], ["", "after"], ["", "", "after", "before"]]
)
def test_an_upload_that_is_cut_goes_on_where_it_ended(server, agent, small_parts, cuts):
    path = server.assign(job_of())
    server.cut_uploads = cuts
    agent.step()
    assert server.answers >= 1
    [(_, content)] = server.parts.items()
    assert server.reports[path] == content
    assert agent.state.pending() is None


@pytest.mark.parametrize(
    "told", [b'{"offset": "100"}', b'{"offset": "-7"}', b'{"offset": "999999999"}', b"[" * 100_000, b"{}"]
)
def test_a_server_that_says_nonsense_of_what_arrived_is_not_sent_the_same_for_ever(
    server, agent, small_parts, monkeypatch, told
):
    sent, send = [], agent._transport._send

    def answered(method, path, body, **more):
        if method == "HEAD":
            return b"", httpx.Headers({"Upload-Offset": "9" * 5000})
        if method != "PUT":
            return send(method, path, body, **more)
        sent.append(body)
        return told, httpx.Headers()

    server.assign(job_of())
    agent._transport.reach = Reach(server.url, tries=2)
    monkeypatch.setattr(agent._transport, "_send", answered)
    with pytest.raises(RefusedError, match="did not arrive|no server of Hansa"):
        agent.step()
    assert len(sent) <= 4
    assert agent.state.pending() is not None


def test_a_report_waits_on_disk_while_the_server_is_away(server, agent):
    path = server.assign(job_of())
    agent._transport.reach = Reach(server.url, tries=1)
    server.cut_uploads = ["before", "after"]
    for _ in range(2):
        with pytest.raises(RefusedError, match="Disconnected|disconnected"):
            agent.step()
    pending = agent.state.pending()
    assert pending.sha256 == digest(server.reports[path])
    agent.step()
    assert agent.state.pending() is None
    assert len({sha256 for _, sha256 in server.parts}) == 1


@pytest.mark.parametrize("code", ["HANSA-REPORT-NOT-FINITE", "HANSA-REPORT-UNEXPECTED", "HANSA-REPORT-ANSWERED"])
def test_a_report_that_is_refused_for_good_is_given_up(server, agent, code):
    server.assign(job_of())
    put = agent._transport._put
    agent._transport._put = lambda *arguments: server.refuse.append(code) or put(*arguments)
    agent.step()
    assert [each.outcome for each in agent.state.reports()] == ["refused"]
    assert agent.state.pending() is None


@pytest.mark.parametrize(
    "code",
    [
        "HANSA-AUTH-CLOCK",
        "HANSA-CLIENT-STATE",
        "HANSA-INTERNAL",
        "HANSA-KEY-MISSING",
        "HANSA-STORE-CONFLICT",
        "HANSA-UPLOAD-DIGEST",
    ],
)
def test_a_report_is_kept_when_the_call_was_refused(server, agent, code):
    server.assign(job_of())
    put = agent._transport._put
    agent._transport._put = lambda *arguments: server.refuse.append(code) or put(*arguments)
    with pytest.raises(RefusedError) as error:
        agent.step()
    assert error.value.code == code
    assert agent.state.pending() is not None


@pytest.mark.parametrize("status", [403, 404, 407])
def test_a_report_is_kept_when_something_on_the_way_refused_it(server, agent, monkeypatch, status):
    server.assign(job_of())

    def refuse(*_):
        raise refusal(status, b"<html>")

    monkeypatch.setattr(agent._transport, "_put", refuse)
    with pytest.raises(RefusedError):
        agent.step()
    assert agent.state.pending() is not None


@pytest.mark.parametrize(
    ("seconds", "rest"), [(float("inf"), 86400.0), (1e300, 86400.0), (-1.0, 0.0), (float("nan"), 60.0), (7.0, 7.0)]
)
def test_no_server_sends_an_agent_away_for_ever_or_makes_it_call_without_rest(agent, monkeypatch, seconds, rest):
    answer = wire.CheckInResponse(come_back_seconds=seconds)
    monkeypatch.setattr(agent._transport, "check_in", lambda _: answer)
    assert agent.step() == rest


def test_a_busy_server_is_asked_again(server, agent):
    server.refuse = ["HANSA-SERVER-BUSY", "HANSA-SERVER-LIMIT"]
    agent.step()
    assert len(server.check_ins) == 1


@pytest.mark.parametrize(
    "code", ["HANSA-CLIENT-RETIRED", "HANSA-CLIENT-ATTRIBUTES", "HANSA-AUTH-UNKNOWN", "HANSA-AUTH-SIGNATURE"]
)
def test_an_agent_ends_where_no_waiting_mends_it(server, agent, code):
    server.refuse = [code]
    with pytest.raises(RefusedError) as error:
        agent.run(threading.Event())
    assert (error.value.code, error.value.exit_status) == (code, 3)


def test_an_agent_runs_through_failures_until_it_is_told_to_stop(server, agent):
    stop = threading.Event()
    worker = threading.Thread(target=agent.run, args=(stop,))
    server.refuse = ["HANSA-CLIENT-STATE"]
    path = server.assign(job_of())
    worker.start()
    server.wait_for(lambda: path in server.reports)
    stop.set()
    worker.join(10)
    assert not worker.is_alive()


def test_an_agent_ends_where_no_waiting_helps(server, agent):
    server.refuse = ["HANSA-AUTH-UNKNOWN"]
    with pytest.raises(RefusedError) as error:
        agent.run(threading.Event())
    assert error.value.code == "HANSA-AUTH-UNKNOWN"


@pytest.mark.parametrize("url", ["http://example.org", "ftp://localhost", "localhost:80", ""])
def test_what_is_no_safe_address_is_refused(url, data, tmp_path):
    with pytest.raises(RefusedError) as error:
        Transport(Reach(url))
    assert error.value.code == "HANSA-SERVER-UNREACHABLE"
    assert Transport(Reach("http://example.org", plain=True))


def test_a_server_of_another_authority_is_not_believed(tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(RefusedError, match="ca.pem holds no certificates"):
        Transport(Reach("https://localhost", ca=tmp_path / "ca.pem"))
    with pytest.raises(RefusedError, match="none.pem cannot be read: No such file"):
        Transport(Reach("https://localhost", ca=tmp_path / "none.pem"))


def test_of_a_certificate_and_its_key_the_file_that_cannot_be_used_is_named(tmp_path):
    authority, empty = Authority(tmp_path / "ca"), tmp_path / "empty.pem"
    certificate, key = authority.issue("hospital")
    other, _ = authority.issue("other")
    empty.write_text("nothing")
    for pair, found, place in (
        ((tmp_path / "no.pem", key), "no.pem cannot be read: No such file or directory.", "HANSA_CERTIFICATE "),
        ((certificate, tmp_path / "no.pem"), "no.pem cannot be read: No such file or directory.", "--certificate-key"),
        ((empty, key), "empty.pem holds no certificate as PEM.", "HANSA_CERTIFICATE "),
        ((certificate, empty), "empty.pem holds no private key as PEM without a password.", "--certificate-key"),
        ((other, key), f"hospital-key.pem is not the key of {other}.", "--certificate-key"),
    ):
        with pytest.raises(RefusedError) as caught:
            Reach("https://localhost", ca=authority.ca, certificate=pair).client()
        assert caught.value.code == "HANSA-CERTIFICATE-FILE"
        assert caught.value.found.endswith(found)
        assert str(tmp_path) in caught.value.found
        assert str(authority.ca) not in caught.value.found
        assert place in caught.value.action


def test_nobody_answers(agent, server, tmp_path):
    lonely = Transport(Reach("http://127.0.0.1:9", tries=2))
    with pytest.raises(RefusedError) as error:
        lonely.goodbye()
    assert error.value.code == "HANSA-SERVER-UNREACHABLE"


@pytest.mark.parametrize(
    ("status", "content", "code"),
    [
        (502, b"<html>", "HANSA-SERVER-BUSY"),
        (404, b"", "HANSA-NOT-FOUND"),
        (403, b'{"error": {"code": "HANSA-CLIENT-STATE", "found": "x"}}', "HANSA-CLIENT-STATE"),
        (403, b'{"error": {"code": "SOMETHING"}}', "HANSA-REQUEST-INVALID"),
        (400, b'{"details": [{"type": "hansa.v1.Problem", "value": "!"}]}', "HANSA-REQUEST-INVALID"),
        (400, b'{"details": 3}', "HANSA-REQUEST-INVALID"),
        (400, b"[]", "HANSA-REQUEST-INVALID"),
        (400, b"\xff\xfe", "HANSA-REQUEST-INVALID"),
        (400, b'{"error": {"code": ["HANSA-SERVER-BUSY"]}}', "HANSA-REQUEST-INVALID"),
        (400, b'{"error": {"code": {}, "rule": 7}}', "HANSA-REQUEST-INVALID"),
        (400, b'{"details": [{"type": "hansa.v1.Problem", "value": 7}]}', "HANSA-REQUEST-INVALID"),
        (400, b"[" * 100_000, "HANSA-REQUEST-INVALID"),
    ],
)
def test_every_answer_becomes_a_code(status, content, code):
    assert refusal(status, content).code == code


def test_a_server_says_when_to_come_back():
    assert wanted_pause(refusal(503, b"", httpx.Headers({"Retry-After": "7"}))) == 7
    assert wanted_pause(refusal(503, b"")) == 0


def test_something_else_that_answers_is_no_server_of_hansa(server, agent, monkeypatch):
    monkeypatch.setattr(agent._transport, "_send", lambda *_, **__: (b"<html>\xff", httpx.Headers()))
    with pytest.raises(RefusedError, match="no server of Hansa"):
        agent.step()


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    ("content", "headers"), [(b"0" * (2**20 + 1), {}), (gzip.compress(bytes(2**24)), {"Content-Encoding": "gzip"})]
)
def test_no_answer_becomes_larger_than_answers_are(server, agent, monkeypatch, status, content, headers):
    def route(handler, *_):
        assert handler.headers["Accept-Encoding"] == "identity"
        handler._answer(status, content, headers)

    read = []

    def received(size):
        read[-1] += size

    monkeypatch.setattr("fake_server._Handler._route", route)
    monkeypatch.setattr(agent._limits, "begin_call", lambda _: read.append(0))
    monkeypatch.setattr(agent._limits, "received", received)
    with pytest.raises(RefusedError):
        agent.step()
    with pytest.raises(RefusedError):
        agent._transport.job("0" * 64, 10)
    assert max(read) <= 2**20 + 2**16, "it is read until it is too large, by a block"


def test_enrolling_by_certificate_proves_both_keys(tmp_path):
    import datetime as dt

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from hansa.client.certificates import certified
    from hansa.wire.signatures import enrolment, verify

    key, own = ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a hospital")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256())
    paths = Path(tmp_path / "c.pem"), Path(tmp_path / "k.pem")
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths[1].write_bytes(pem)
    request = certified(*paths, "tenant/hospitals", own)
    content = enrolment(request.certificates[0])
    public = own.public_key().public_bytes_raw()
    verify(public, request.key_proof, content)
    key.public_key().verify(request.certificate_proof, content + public, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(RefusedError):
        certified(paths[1], paths[0], "tenant/hospitals", own)
