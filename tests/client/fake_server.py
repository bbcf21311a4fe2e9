"""A server of the client protocol for tests: real HTTP, real messages, and every failure that a test asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fake_sum import PEERS, FakeSum, ring_of

from hansa.algorithms import rounds
from hansa.algorithms.plan import plan_from_mapping, plan_sha256
from hansa.core.errors import CATALOGUE, RefusedError
from hansa.core.nouns import Signature
from hansa.core.schema import to_mapping
from hansa.core.streams import Stream
from hansa.wire import signatures
from hansa.wire.generated import federation_pb2 as wire
from hansa.wire.jobs import JobDescriptor
from hansa.wire.server_models import ServedModel

TOKEN = "an invitation"  # noqa: S105 - of this server only
PLAN = {
    "name": "two columns",
    "seed": 3,
    "rounds": 3,
    "features": {
        "label": "ill",
        "task": "classification",
        "classes": ["no", "yes"],
        "columns": [{"name": "age", "low": 0.0, "high": 100.0}, {"name": "dose", "low": 0.0, "high": 10.0}],
    },
    "model": {"factory": "hansa.training.linear:logistic"},
    "trainer": {"kind": "linear", "epochs": 1, "batch_size": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.5}},
    "evaluation": {"metrics": ["auc", "accuracy"]},
}
SCAFFOLD = {**PLAN, "recipe": "scaffold"}
SECURE = {**PLAN, "secure_aggregation": {"maximum_cohort": 4}}
SIGNATURE = Signature((2,), 2)
ROWS = [(20 + 3 * i % 61, round(0.37 * i % 9, 2), "yes" if (i * i) % 5 < 2 else "no") for i in range(23)]


def job_of(tables=PLAN, **changed) -> JobDescriptor:
    plan = plan_from_mapping(tables)
    model = plan.trainer.initial(plan.model, SIGNATURE, Stream(0))
    described = JobDescriptor(
        name="a job",
        plan=to_mapping(plan),
        plan_sha256=plan_sha256(plan),
        signature=SIGNATURE,
        layout=model.layout,
        population="hospitals",
        operator="the operator",
        purpose="research",
    )
    return replace(described, **changed)


def first_model(job: JobDescriptor) -> bytes:
    plan = plan_from_mapping(job.plan)
    state = rounds.start(plan, plan.trainer.initial(plan.model, SIGNATURE, Stream(0)))
    return ServedModel(state.model, None).to_bytes()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class FakeServer:
    """What the server knows, what it was told, and how it is to fail."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    key_id: str = "first"
    keys: list[wire.ServerKey] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    public_key: bytes = b""
    enrolments: list[wire.EnrolRequest] = field(default_factory=list)
    check_ins: list[wire.CheckInRequest] = field(default_factory=list)
    assignments: list[wire.Assignment] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    parts: dict[tuple[str, str], bytes] = field(default_factory=dict)
    reports: dict[str, bytes] = field(default_factory=dict)
    answers: int = 0
    declined: list[str] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    cut_downloads_after: list[int] = field(default_factory=list)
    cut_uploads: list[str] = field(default_factory=list)
    refuse: list[str] = field(default_factory=list)
    lose_answers: list[str] = field(default_factory=list)
    """What is answered in place of what was done."""
    verdict: str = "VERDICT_ACCEPTED"
    seen: set[bytes] = field(default_factory=set)
    peers: list[Ed25519PrivateKey] = field(default_factory=lambda: [Ed25519PrivateKey.generate() for _ in range(PEERS)])
    """Keys of the other clients of secure sums."""
    wanted_sums: dict[str, dict] = field(default_factory=dict)
    sums: dict[str, FakeSum] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        own = self.key.public_key().public_bytes_raw()
        self.keys = [wire.ServerKey(key_id=self.key_id, public_key=own)]
        handler = type("Handler", (_Handler,), {"server_state": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def assign(self, job: JobDescriptor, model: bytes | None = None, **changed) -> str:
        """Ask the client something; return how the assignment is called in paths."""
        described, content = job.to_bytes(), first_model(job) if model is None else model
        self.blobs |= {digest(described): described, digest(content): content}
        kind = changed.pop("kind", wire.KIND_TRAINING)
        number, attempt = changed.pop("round", 1), changed.pop("attempt", 1)
        fields = {
            "id": wire.AssignmentId(run="run-1", kind=kind, round=number, attempt=attempt),
            "job_sha256": digest(described),
            "plan_sha256": job.plan_sha256,
            "model_sha256": digest(content),
            "model_size": len(content),
            "client": "client-1",
            "number": 5,
            "cohort_size": 4,
            "population": 9,
        }
        asked = wire.Assignment(**{**fields, **changed})
        with self.lock:
            self.assignments.append(asked)
        return path_of(asked.id)

    def assign_sum(self, job: JobDescriptor, **task) -> str:
        """Ask the client to give its update to a secure sum; ``task`` is what the sum's task has otherwise."""
        with self.lock:
            path = self.assign(job)
            self.wanted_sums[path] = {"ring": ring_of(job), **task}
        return path

    def sum_of(self, asked: wire.Assignment) -> FakeSum:
        """Return the secure sum of an assignment, which begins when it is announced."""
        path = path_of(asked.id)
        if path not in self.sums:
            wanted = self.wanted_sums[path]
            self.sums[path] = FakeSum.begin(self.key, self.public_key, self.peers, asked, **wanted)
        return self.sums[path]

    def wait_for(self, condition, seconds: float = 20.0) -> None:
        ends = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends, "it did not happen"
            time.sleep(0.01)


def path_of(of: wire.AssignmentId) -> str:
    return f"{of.run}/{wire.Kind.Name(of.kind).removeprefix('KIND_').lower()}/{of.round}/{of.attempt}"


class _Handler(BaseHTTPRequestHandler):
    server_state: FakeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments) -> None:
        pass

    def _handle(self) -> None:
        state = self.server_state
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        with state.lock:
            state.requests.append((self.command, self.path))
            try:
                if state.refuse:
                    raise refused(state.refuse.pop(0))
                if self.path != "/hansa.v1.Federation/Enrol":
                    self._authenticate(state, body)
                self._route(state, body)
            except RefusedError as error:
                self._refuse(error)

    do_GET = do_PUT = do_HEAD = do_POST = _handle  # noqa: N815 - as the base class calls them

    def _authenticate(self, state: FakeServer, body: bytes) -> None:
        credentials = signatures.read_credentials(self.headers.get("authorization"))
        signatures.verify_request(credentials, state.public_key, method=self.command, target=self.path, body=body)
        assert credentials.client == "client-1"
        assert credentials.signature not in state.seen, "a request came twice"
        state.seen.add(credentials.signature)

    def _route(self, state: FakeServer, body: bytes) -> None:
        if self.path == "/hansa.v1.Federation/Enrol":
            self._enrol(state, wire.EnrolRequest.FromString(body))
        elif self.path == "/hansa.v1.Federation/CheckIn":
            self._check_in(state, wire.CheckInRequest.FromString(body))
        elif self.path == "/hansa.v1.Federation/Exchange":
            request = wire.ExchangeRequest.FromString(body)
            if path_of(request.id) not in state.sums:
                raise refused("HANSA-REPORT-UNEXPECTED")
            message = state.sums[path_of(request.id)].exchange(request)
            answer = wire.ExchangeResponse(message=message, come_back_seconds=0.0 if message else 0.02)
            self._answer(200, answer.SerializeToString())
        elif self.path == "/hansa.v1.Federation/RotateKey":
            self._rotate_key(state, wire.RotateKeyRequest.FromString(body))
        elif self.path == "/hansa.v1.Federation/Goodbye":
            self._answer(200, b"")
        elif self.path.startswith(("/v1/jobs/", "/v1/models/")):
            self._blob(state, self.path.rpartition("/")[2])
        elif self.path.startswith("/v1/updates/"):
            self._update(state, self.path.removeprefix("/v1/updates/"), body)
        else:
            raise refused("HANSA-NOT-FOUND")

    def _enrol(self, state: FakeServer, request: wire.EnrolRequest) -> None:
        state.enrolments.append(request)
        if request.token != TOKEN or state.public_key not in (b"", request.public_key):
            raise refused("HANSA-ENROL-TOKEN")
        signatures.verify(request.public_key, request.key_proof, signatures.enrolment(request.token))
        state.public_key = request.public_key
        answer = wire.EnrolResponse(
            client="client-1", number=5, name="a hospital", population="hospitals", server_keys=state.keys
        )
        self._answer(200, answer.SerializeToString())

    def _rotate_key(self, state: FakeServer, request: wire.RotateKeyRequest) -> None:
        signatures.verify(request.public_key, request.key_proof, signatures.client_key("client-1"))
        state.public_key = request.public_key
        if state.lose_answers:
            raise refused(state.lose_answers.pop(0))
        self._answer(200, b"")

    def _check_in(self, state: FakeServer, request: wire.CheckInRequest) -> None:
        state.check_ins.append(request)
        answer = wire.CheckInResponse(come_back_seconds=0.05, server_keys=state.keys)
        if request.HasField("declined"):
            state.declined.append(path_of(request.declined))
        if request.HasField("reported"):
            answer.outcome = state.outcomes.get(path_of(request.reported), wire.OUTCOME_OPEN)
        for asked in state.assignments:
            path = path_of(asked.id)
            if path not in state.reports and path not in state.declined:
                if path in state.wanted_sums:
                    asked.secure_sum = state.sum_of(asked).announcement
                content = asked.SerializeToString()
                answer.assignment.CopyFrom(
                    wire.SignedAssignment(
                        assignment=content,
                        signature=state.key.sign(signatures.assignment(content)),
                        key_id=state.key_id,
                    )
                )
                break
        self._answer(200, answer.SerializeToString())

    def _blob(self, state: FakeServer, name: str) -> None:
        content, status, headers = state.blobs[name], 200, {"ETag": f'"{name}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        if wanted and self.headers.get("if-range") == f'"{name}"':
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        if "/models/" in self.path and state.cut_downloads_after:
            whole, content = len(content), content[: state.cut_downloads_after.pop(0)]
            state.sent += len(content)
            self._answer(status, content, {**headers, "Content-Length": str(whole)}, ends=True)
            return
        state.sent += len(content) if "/models/" in self.path else 0
        self._answer(status, content, headers)

    def _update(self, state: FakeServer, path: str, body: bytes) -> None:
        announced = re.fullmatch(r"sha-256=:(.+):", self.headers["repr-digest"])
        sha256 = base64.b64decode(announced[1]).hex()
        have = state.parts.get((path, sha256), b"")
        if self.command == "HEAD":
            self._answer(204, b"", {"Upload-Offset": str(len(have))})
            return
        if path in state.reports and digest(state.reports[path]) != sha256:
            raise refused("HANSA-REPORT-ANSWERED")
        first, last, total = map(int, re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", self.headers["content-range"]).groups())
        assert last - first + 1 == len(body)
        how = state.cut_uploads.pop(0) if state.cut_uploads else ""
        if how == "before":
            self.close_connection = True
            return
        if first > len(have):
            raise refused("HANSA-UPLOAD-OFFSET")
        have = state.parts[path, sha256] = have[:first] + body if last >= len(have) else have
        if how == "after":
            self.close_connection = True
        if len(have) < total:
            told, status = {"offset": str(len(have)), "sha256": sha256}, 202
        else:
            if digest(have) != sha256:
                raise refused("HANSA-UPLOAD-DIGEST")
            if path in state.sums and path not in state.reports:
                state.sums[path].take(have)
            state.reports[path] = have
            state.answers += 1
            told, status = {"verdict": state.verdict, "sha256": sha256}, 200
        if how != "after":
            self._answer(status, json.dumps(told).encode())

    def _refuse(self, error: RefusedError) -> None:
        parts = {"code": error.code, "rule": error.rule, "found": error.found, "action": error.action}
        status = CATALOGUE[error.code].http
        if self.path.startswith("/hansa.v1."):
            problem = base64.b64encode(wire.Problem(**parts).SerializeToString()).decode().rstrip("=")
            told = {"code": CATALOGUE[error.code].connect, "details": [{"type": "hansa.v1.Problem", "value": problem}]}
        else:
            told = {"error": parts}
        self._answer(status, json.dumps(told).encode())

    def _answer(self, status: int, content: bytes, headers=None, *, ends: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.close_connection = self.close_connection or ends


def refused(code: str) -> RefusedError:
    return RefusedError(code, rule="A rule.", found="Something else.", action="Do this.")
