"""Write the golden messages: bytes that every client and server of protocol version 1 reads and writes.

What it writes is kept under version control in docs/reference/golden, for whoever writes a client in another language.
A test holds today's code to it; it is written anew only where the protocol gets something more:
`python docs/golden_messages.py`.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from hansa.algorithms.plan import Plan, plan_from_mapping
from hansa.algorithms.prologue import statistics_layout
from hansa.algorithms.rounds import travelling_layout
from hansa.core.layout import Branch, Layout, Parameter
from hansa.core.nouns import Batch, Scaling, Signature
from hansa.core.ring import Ring, Segment
from hansa.secagg.client import MaskingClient
from hansa.secagg.contribution import Contribution
from hansa.secagg.convention import Convention, register
from hansa.secagg.messages import Announcement
from hansa.secagg.policy import ClientPolicy
from hansa.secagg.roster import Roster
from hansa.secagg.server import MaskingServer
from hansa.secagg.task import Task
from hansa.wire import signatures
from hansa.wire.generated import federation_pb2 as wire
from hansa.wire.jobs import JobDescriptor
from hansa.wire.server_models import ServedModel
from hansa.wire.signatures import read_credentials, sign_request
from hansa.wire.updates import encode_tallies, encode_update
from hansa.wire.verdicts import update_path

GOLDEN: Final = Path(__file__).parent / "reference" / "golden"

CLIENT_SEED: Final = bytes(range(32))
SERVER_SEEDS: Final = (b"\x01" * 32, b"\x02" * 32)
CERTIFICATE_SEED: Final = b"\x03" * 32
NEXT_CLIENT_SEED: Final = b"\x04" * 32
PEER_SEEDS: Final = (b"\x05" * 32, b"\x06" * 32, b"\x07" * 32)
"""Of the keys of the three other clients of the secure sum."""
SUM_SEEDS: Final = tuple(bytes((16 + place,)) * 32 for place in range(4))
"""What each client of the secure sum makes its keys of; in truth nobody can guess it."""
CLIENT: Final = "c0ffee00c0ffee00"
RUN: Final = "5eed5eed5eed5eed"
INVITATION: Final = "q2VnZ0ZzY2hlaW4gZsO8ciBlaW5lbiBLbGllbnRlbg"
TIME: Final = 1_767_225_600.5
"""Unix time of the signed request: 2026-01-01 00:00:00.500 UTC."""
NONCE: Final = "AAECAwQFBgcICQoL"
ATTRIBUTES: Final = {"region": '"eu"', "beds": "120", "teaching": "true"}
VERSION: Final = "0.1.0"

PLAN: Final[Mapping[str, Any]] = {
    "aggregator": {"kind": "mean"},
    "cohort": {"kind": "full"},
    "evaluation": {
        "baselines": [],
        "central": False,
        "every": 1,
        "federated": True,
        "local_only_clients": 16,
        "metrics": ["accuracy", "loss"],
    },
    "features": {
        "classes": [],
        "columns": [
            {"categories": [], "high": 100, "kind": "number", "low": 0, "missing": [], "name": "age"},
            {"categories": [], "high": 250, "kind": "number", "low": 50, "missing": [], "name": "pressure"},
        ],
        "imputation": "median",
        "label": "sick",
        "scaling": "federated",
    },
    "model": {"arguments": {}, "buffers": "keep-local", "factory": "hansa.training.linear:logistic"},
    "name": "golden",
    "rounds": 2,
    "schedule": {"kind": "sync", "over_selection": 0},
    "seed": 7,
    "server_optimizer": {"branches": {}, "kind": "sgd", "learning_rate": 1},
    "stopping": {"explosion_factor": 1000},
    "trainer": {
        "batch_size": 16,
        "epochs": 1,
        "hooks": [],
        "kind": "linear",
        "optimizer": {"kind": "sgd", "learning_rate": 0.1, "momentum": 0, "weight_decay": 0},
    },
    "transforms": [{"kind": "weigh-by-size"}],
}
"""As a server sends it: with its defaults filled in. It stays as it is when plans get more keys."""
PLAN_SHA256: Final = "9811c47c0993c05d9e7d9d9799f6271a32844fb20f6cc8f6eb50fc8bd53e18b5"
MODEL_LAYOUT: Final = Layout((Branch("params", (Parameter("weight", (2, 1)), Parameter("intercept", (1,)))),))


def generate(folder: Path = GOLDEN) -> None:
    """Write every golden file."""
    for name, content in files():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def files() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of every golden file."""
    yield "job.json", job()
    yield "model.safetensors", model()
    for kind, content in updates().items():
        yield f"update-{kind}.safetensors", content
    yield "certificate.der", certificate()
    for name, message in messages().items():
        yield f"messages/{name}.bin", message.SerializeToString(deterministic=True)
        yield f"messages/{name}.json", (MessageToJson(message, indent=2, sort_keys=True) + "\n").encode()
    for name, vector in vectors().items():
        yield f"{name}.json", (json.dumps(vector, indent=2) + "\n").encode()


def plan() -> Plan:
    """Return the plan of the golden job."""
    return plan_from_mapping(PLAN)


def layouts() -> dict[str, Layout]:
    """Return the vectors of the golden job: of training and of statistics."""
    features = plan().features
    if features is None:
        raise LookupError("the golden plan has features")
    return {"training": travelling_layout(plan(), MODEL_LAYOUT), "statistics": statistics_layout(features)}


def job() -> bytes:
    """Return the job's descriptor."""
    return JobDescriptor(
        name="golden",
        plan=PLAN,
        plan_sha256=PLAN_SHA256,
        signature=Signature((2,), classes=2),
        layout=MODEL_LAYOUT,
        population="hospitals",
        operator="Hanse",
        purpose="an example for those who write clients",
    ).to_bytes()


def model() -> bytes:
    """Return a model blob."""
    center, scale = np.array([55.5, 131.0], dtype=np.float32), np.array([9.25, 17.5], dtype=np.float32)
    return ServedModel(np.array([0.5, -0.25, 0.125], dtype=np.float32), Scaling(center, scale)).to_bytes()


def updates() -> dict[str, bytes]:
    """Return an update of each kind of round, of a client with ten examples."""
    layout = layouts()
    values = 10 * np.array([[0.5, -0.25, 0.125]], dtype=np.float32)  # weighed by size
    training = layout["training"].encode_lanes(
        {"count": np.ones(1), "train_loss": np.array([0.6875]), "weight.params": np.array([10.0])}, 1
    )
    sums = {"n.age": 10, "sum.age": 1.5, "squares.age": 0.75, "n.pressure": 9, "sum.pressure": -2.25}
    statistics = layout["statistics"].encode_lanes({name: np.array([value]) for name, value in sums.items()}, 1)
    return {
        "training": encode_update(Batch(values, training, layout["training"])),
        "statistics": encode_update(Batch(np.zeros((1, 0), dtype=np.float32), statistics, layout["statistics"])),
        "evaluation": encode_tallies({"accuracy": np.array([7.0, 10.0]), "loss": np.array([5.5, 10.0])}),
    }


def messages() -> dict[str, Message]:
    """Return a message of every kind, by the name of its file."""
    answered, declined = _id("training", 1), wire.AssignmentId(run=RUN, kind=wire.KIND_EVALUATION, round=0, attempt=2)
    keys, sums = server_keys(), sum_messages()
    asked = _id("training", 2)
    return {
        "enrol-request-token": wire.EnrolRequest(
            token=INVITATION,
            public_key=_public(CLIENT_SEED),
            key_proof=_key(CLIENT_SEED).sign(signatures.enrolment(INVITATION)),
            client_version=VERSION,
            attributes=ATTRIBUTES,
            consent=True,
        ),
        "enrol-request-certificate": wire.EnrolRequest(
            certificates=[certificate()],
            public_key=_public(CLIENT_SEED),
            key_proof=_key(CLIENT_SEED).sign(signatures.enrolment(certificate())),
            certificate_proof=_key(CERTIFICATE_SEED).sign(signatures.enrolment(certificate()) + _public(CLIENT_SEED)),
            client_version=VERSION,
            consent=True,
            population="hanse/hospitals",
        ),
        "enrol-response": wire.EnrolResponse(
            client=CLIENT, number=3, name="Lübeck", population="hospitals", server_keys=keys[:1]
        ),
        "check-in-request": wire.CheckInRequest(
            client_version=VERSION, attributes=ATTRIBUTES, consent=True, wait_seconds=25.0
        ),
        "check-in-request-reported": wire.CheckInRequest(
            client_version=VERSION, attributes=ATTRIBUTES, consent=True, reported=answered, declined=declined
        ),
        "check-in-request-looks": wire.CheckInRequest(
            client_version=VERSION, attributes=ATTRIBUTES, consent=True, looks=True
        ),
        "check-in-response-later": wire.CheckInResponse(
            come_back_seconds=12.5, outcome=wire.OUTCOME_INCLUDED, server_keys=keys
        ),
        "check-in-response-assignment": wire.CheckInResponse(
            assignment=signed_assignment(), outcome=wire.OUTCOME_OPEN, server_keys=keys
        ),
        "assignment-id": answered,
        "assignment": assignment(),
        "assignment-secure-sum": assignment(secure_sum=sums["announcement"]),
        "signed-assignment": signed_assignment(),
        "server-key": keys[1],
        "report-response-part": wire.ReportResponse(sha256=_sha256(updates()["training"]), offset=128),
        "report-response-accepted": wire.ReportResponse(
            verdict=wire.VERDICT_ACCEPTED, sha256=_sha256(updates()["training"])
        ),
        "report-response-late": wire.ReportResponse(verdict=wire.VERDICT_LATE, sha256=_sha256(updates()["training"])),
        "exchange-request": wire.ExchangeRequest(
            id=asked, message=sums["advert"], seen=Announcement.kind, wait_seconds=25.0
        ),
        "exchange-request-waiting": wire.ExchangeRequest(id=asked, seen=Announcement.kind, wait_seconds=25.0),
        "exchange-response": wire.ExchangeResponse(message=sums["keys"]),
        "exchange-response-later": wire.ExchangeResponse(come_back_seconds=1.0),
        "rotate-key-request": wire.RotateKeyRequest(
            public_key=_public(NEXT_CLIENT_SEED), key_proof=_key(NEXT_CLIENT_SEED).sign(signatures.client_key(CLIENT))
        ),
        "rotate-key-response": wire.RotateKeyResponse(),
        "goodbye-request": wire.GoodbyeRequest(),
        "goodbye-response": wire.GoodbyeResponse(),
        "problem": _problem(),
    }


def assignment(**more: Any) -> wire.Assignment:
    """Return an assignment of the golden job."""
    return wire.Assignment(
        id=_id("training", 2),
        job_sha256=_sha256(job()),
        plan_sha256=PLAN_SHA256,
        model_sha256=_sha256(model()),
        model_size=len(model()),
        client=CLIENT,
        number=3,
        cohort_size=4,
        population=5,
        deadline_ms=1_767_229_200_000,
        **more,
    )


def sum_messages() -> dict[str, bytes]:
    """Return the first messages of a secure sum of four clients: to the golden client, from it, and to it."""
    signers = [_key(CLIENT_SEED), *(_key(seed) for seed in PEER_SEEDS)]
    identities = tuple(each.public_key().public_bytes_raw() for each in signers)
    task = sum_task(Roster(identities))
    convention = Convention(
        task=task,
        roster=Roster(identities),
        signer=_key(SERVER_SEEDS[1]),
        registration=register(_key(SERVER_SEEDS[1]), Roster(identities)),
    )
    server, step = MaskingServer.start(convention)
    announced = {each.to: each.message for each in step.send}
    policy = ClientPolicy(server_key=_public(SERVER_SEEDS[1]), pinned=frozenset(identities))
    given = Contribution(task.plan_sha256, task.model_sha256, task.ring.zeros())
    adverts = []
    for place, signer in enumerate(signers):
        _, begun = MaskingClient.start(
            announced[place], signer=signer, identity=identities[place], policy=policy, given=given,
            random=_given(SUM_SEEDS[place]),
        )  # fmt: skip
        adverts.append(begun.send[0].message)
        step = server.on_message(adverts[-1])
    keys = {each.to: each.message for each in step.send}
    return {"announcement": announced[0], "advert": adverts[0], "keys": keys[0]}


def sum_task(roster: Roster) -> Task:
    """Return what the secure sum is over: an update of three values, and four lanes."""
    return Task(
        protocol="secagg-full",
        run=f"{RUN}/training",
        round=2,
        attempt=1,
        plan_sha256=bytes.fromhex(PLAN_SHA256),
        model_sha256=hashlib.sha256(model()).digest(),
        roster_root=roster.root,
        roster_size=len(roster.identities),
        registrar="pinned",
        ring=Ring((Segment("params", 3, 26), Segment("lanes.0", 4, 49))),
        minimum_cohort=3,
        minimum_survivors=3,
    )


def _given(seed: bytes) -> Callable[[int], bytes]:
    return lambda count: seed[:count]


def signed_assignment() -> wire.SignedAssignment:
    """Return the assignment, signed by the server's second key."""
    content = assignment().SerializeToString(deterministic=True)
    signature = _key(SERVER_SEEDS[1]).sign(signatures.assignment(content))
    return wire.SignedAssignment(assignment=content, signature=signature, key_id="signing-2")


def server_keys() -> list[wire.ServerKey]:
    """Return two keys of a server, of which the first vouches for the second."""
    first, second = (_public(seed) for seed in SERVER_SEEDS)
    endorsement = _key(SERVER_SEEDS[0]).sign(signatures.server_key("signing-2", second))
    return [
        wire.ServerKey(key_id="signing-1", public_key=first),
        wire.ServerKey(key_id="signing-2", public_key=second, endorsed_by="signing-1", endorsement=endorsement),
    ]


def certificate() -> bytes:
    """Return a certificate, DER, whose key signs an enrolment."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hospital-4.example")])
    builder = x509.CertificateBuilder(name, name, _key(CERTIFICATE_SEED).public_key(), serial_number=4)
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    made = builder.not_valid_before(start).not_valid_after(start.replace(year=2036))
    return made.sign(_key(CERTIFICATE_SEED), None).public_bytes(Encoding.DER)


def vectors() -> dict[str, Any]:
    """Return what is no message: a signed request, the headers of an upload, errors."""
    return {"signed-request": signed_request(), "upload": upload(), **errors()}


def signed_request() -> dict[str, str]:
    """Return a request, what of it is signed, and its Authorization header."""
    body = messages()["check-in-request"].SerializeToString(deterministic=True)
    call = {"method": "POST", "target": "/hansa.v1.Federation/CheckIn"}
    digest = hashlib.sha256(body).hexdigest()
    signed = f"hansa-request-1\n{call['method']}\n{call['target']}\n{int(TIME * 1000)}\n{NONCE}\n{digest}"
    signature = base64.urlsafe_b64encode(_key(CLIENT_SEED).sign(signed.encode())).decode().rstrip("=")
    header = f"Hansa-Ed25519 client={CLIENT}, time={int(TIME * 1000)}, nonce={NONCE}, signature={signature}"
    made = sign_request(_key(CLIENT_SEED), client=CLIENT, body=body, now=TIME, nonce=NONCE, **call)
    if made != header or read_credentials(header).nonce != NONCE:
        raise ValueError("what is signed is not what the specification says")
    return {
        "private_key_seed": CLIENT_SEED.hex(),
        "public_key": _public(CLIENT_SEED).hex(),
        "client": CLIENT,
        **call,
        "time_ms": str(int(TIME * 1000)),
        "nonce": NONCE,
        "body": body.hex(),
        "signed": signed,
        "authorization": header,
    }


def upload() -> dict[str, Any]:
    """Return the headers of an update that is sent in two parts."""
    content = updates()["training"]
    middle = 128
    parts = [
        {"content_range": f"bytes 0-{middle - 1}/{len(content)}", "status": 202},
        {"content_range": f"bytes {middle}-{len(content) - 1}/{len(content)}", "status": 200},
    ]
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    path = update_path(RUN, "training", 2, 1)
    return {"path": path, "size": len(content), "repr_digest": f"sha-256=:{digest}:", "parts": parts}


def errors() -> dict[str, Any]:
    """Return an error as Connect has it, and as plain HTTP has it."""
    problem = _problem()
    value = base64.b64encode(problem.SerializeToString(deterministic=True)).decode().rstrip("=")
    sentence = f"{problem.rule} {problem.found} {problem.action}"
    parts = {"code": problem.code, "rule": problem.rule, "found": problem.found, "action": problem.action}
    return {
        "error-connect": {
            "code": "permission_denied",
            "message": f"{problem.code}: {sentence}",
            "details": [{"type": "hansa.v1.Problem", "value": value}],
        },
        "error-http": {"error": parts},
    }


def _problem() -> wire.Problem:
    return wire.Problem(
        code="HANSA-CLIENT-STATE",
        rule="Only clients that are enrolled or active take part.",
        found="This one is suspended.",
        action="Ask the operator of the federation.",
    )


def _id(kind: str, number: int) -> wire.AssignmentId:
    return wire.AssignmentId(run=RUN, kind=wire.Kind.Value(f"KIND_{kind.upper()}"), round=number, attempt=1)


def _key(seed: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seed)


def _public(seed: bytes) -> bytes:
    return _key(seed).public_key().public_bytes_raw()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    generate()
