"""The golden messages: today's code reads and writes exactly them, and they are what the specification says.

What is read here by hand is read as the specification says it, with nothing of Hansa.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import golden_messages
import httpx
import numpy as np
import pytest
import rfc8785
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.json_format import MessageToJson, Parse
from protobuf.wkt import Any as Detail

from hansa.algorithms.plan import plan_sha256
from hansa.core.errors import CATALOGUE
from hansa.wire import signatures
from hansa.wire.generated import federation_pb2 as wire
from hansa.wire.generated.federation_connect import FederationASGIApplication
from hansa.wire.jobs import JobDescriptor
from hansa.wire.server_models import ServedModel
from hansa.wire.signatures import read_credentials, verify_request
from hansa.wire.update_checks import UpdateCheck
from hansa.wire.updates import decode_tallies, decode_update

GOLDEN = golden_messages.GOLDEN
PAGE = (GOLDEN.parent / "client-protocol.md").read_text()
MESSAGES = golden_messages.messages()


def read(name):
    return (GOLDEN / name).read_bytes()


def read_json(name):
    return json.loads(read(name))


def message_json(name):
    return read_json(f"messages/{name}.json")


# What today's code writes and reads


def test_today_s_code_writes_exactly_the_golden_files():
    written = dict(golden_messages.files())
    kept = {str(path.relative_to(GOLDEN)): path.read_bytes() for path in GOLDEN.rglob("*") if path.is_file()}
    assert sorted(written) == sorted(kept)
    changed = [name for name, content in written.items() if kept[name] != content]
    assert changed == [], "these bytes are the protocol: others are another version of it"


@pytest.mark.parametrize("name", MESSAGES)
def test_a_golden_message_is_read_from_both_of_its_forms(name):
    kind = type(MESSAGES[name])
    binary = kind.FromString(read(f"messages/{name}.bin"))
    assert binary == MESSAGES[name]
    assert Parse(read(f"messages/{name}.json"), kind()) == binary
    assert json.loads(MessageToJson(binary)) == message_json(name)


def test_every_message_and_every_field_is_among_the_golden():
    seen = {}

    def look(message):
        fields = seen.setdefault(message.DESCRIPTOR.name, set())
        for field, value in message.ListFields():
            fields.add(field.name)
            if field.message_type is not None and not field.message_type.GetOptions().map_entry:
                for each in value if field.is_repeated else [value]:
                    look(each)

    for message in MESSAGES.values():
        look(message)
    for name, descriptor in wire.DESCRIPTOR.message_types_by_name.items():
        assert seen.get(name) == {field.name for field in descriptor.fields}, name


def test_a_server_reads_golden_requests_and_answers_in_the_golden_form():
    calls = {
        "Enrol": ("enrol-request-token", "enrol-response"),
        "CheckIn": ("check-in-request-reported", "check-in-response-assignment"),
        "Exchange": ("exchange-request", "exchange-response"),
        "RotateKey": ("rotate-key-request", "rotate-key-response"),
        "Goodbye": ("goodbye-request", "goodbye-response"),
    }
    got = []

    class Service:
        def __getattr__(self, name):
            async def answer(request, _context):
                got.append(request)
                call = "".join(word.capitalize() for word in name.split("_"))
                return MESSAGES[calls[call][1]]

            return answer

    async def talk():
        transport = httpx.ASGITransport(FederationASGIApplication(Service()))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            for call, (request, answer) in calls.items():
                for form, suffix in (("application/json", "json"), ("application/proto", "bin")):
                    response = await http.post(
                        f"/hansa.v1.Federation/{call}",
                        content=read(f"messages/{request}.{suffix}"), headers={"Content-Type": form},
                    )  # fmt: skip
                    assert response.status_code == 200
                    assert response.headers["content-type"] == form
                    assert got.pop() == MESSAGES[request]
                    kind = type(MESSAGES[answer])
                    body = response.content
                    told = Parse(body, kind()) if suffix == "json" else kind.FromString(body)
                    assert told == MESSAGES[answer]

    asyncio.run(talk())


def test_an_error_of_connect_has_the_golden_form():
    problem = MESSAGES["problem"]
    golden = read_json("error-connect.json")

    class Service:
        enrol = check_in = exchange = rotate_key = None

        async def goodbye(self, _request, _context):
            detail = Detail(type_url="type.googleapis.com/hansa.v1.Problem", value=problem.SerializeToString())
            raise ConnectError(Code(CATALOGUE[problem.code].connect), golden["message"], details=[detail])

    async def talk():
        transport = httpx.ASGITransport(FederationASGIApplication(Service()))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            return await http.post("/hansa.v1.Federation/Goodbye", json={})

    response = asyncio.run(talk())
    assert response.status_code == 403
    assert response.json() == golden
    value = golden["details"][0]["value"]
    assert wire.Problem.FromString(base64.b64decode(value + "=" * (-len(value) % 4))) == problem
    assert message_json("problem") == read_json("error-http.json")["error"]


def test_the_golden_job_model_and_updates_are_taken():
    job = JobDescriptor.from_bytes(read("job.json"))
    assert job.to_bytes() == read("job.json")
    assert plan_sha256(golden_messages.plan()) == job.plan_sha256
    layouts = golden_messages.layouts()
    served = ServedModel.from_bytes(read("model.safetensors"), layouts["training"].size)
    assert served.to_bytes() == read("model.safetensors")
    for kind, layout in layouts.items():
        content = read(f"update-{kind}.safetensors")
        UpdateCheck(layout).whole(content, hashlib.sha256(content).hexdigest())
        batch = decode_update(content, layout)
        assert batch.lanes.tolist() == golden_messages_lanes(kind)
    content = read("update-evaluation.safetensors")
    UpdateCheck(tallies={"accuracy": 2, "loss": 2}).whole(content, hashlib.sha256(content).hexdigest())
    assert {name: tally.tolist() for name, tally in decode_tallies(content).items()} == {
        "accuracy": [7.0, 10.0], "loss": [5.5, 10.0]
    }  # fmt: skip


def golden_messages_lanes(kind):
    """Return the lanes as the specification encodes them."""
    if kind == "training":
        return [[1, 0, round(0.6875 * 2**16), 10 * 2**8]]
    return [[10, round(1.5 * 2**20), round(0.75 * 2**20), 9, round(-2.25 * 2**20), 0]]


# What the specification says, by hand


def public(seed):
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed)).public_key()


def test_the_signed_request_is_as_the_specification_says():
    vector = read_json("signed-request.json")
    body = bytes.fromhex(vector["body"])
    assert body == read("messages/check-in-request.bin")
    text = "\n".join(
        ["hansa-request-1", vector["method"], vector["target"], vector["time_ms"], vector["nonce"],
         hashlib.sha256(body).hexdigest()]
    )  # fmt: skip
    assert text == vector["signed"]
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["private_key_seed"]))
    assert key.public_key().public_bytes_raw().hex() == vector["public_key"]
    signature = base64.urlsafe_b64encode(key.sign(text.encode())).rstrip(b"=").decode()
    assert vector["authorization"] == (
        f"Hansa-Ed25519 client={vector['client']}, time={vector['time_ms']}, nonce={vector['nonce']}, "
        f"signature={signature}"
    )
    call = {"method": vector["method"], "target": vector["target"], "body": body}
    verify_request(read_credentials(vector["authorization"]), bytes.fromhex(vector["public_key"]), **call)
    assert "".join(vector["authorization"].split()) in "".join(PAGE.split()), "the page shows it"
    assert hashlib.sha256(body).hexdigest() in PAGE


def test_enrolments_are_proven_as_the_specification_says():
    token = message_json("enrol-request-token")
    challenge = b"hansa-enrol-1\0" + hashlib.sha256(token["token"].encode()).digest()
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(token["publicKey"]))
    key.verify(base64.b64decode(token["keyProof"]), challenge)
    shown = message_json("enrol-request-certificate")
    (leaf,) = map(base64.b64decode, shown["certificates"])
    assert leaf == read("certificate.der")
    challenge = b"hansa-enrol-1\0" + hashlib.sha256(leaf).digest()
    key.verify(base64.b64decode(shown["keyProof"]), challenge)
    holder = x509.load_der_x509_certificate(leaf).public_key()
    holder.verify(base64.b64decode(shown["certificateProof"]), challenge + base64.b64decode(shown["publicKey"]))


def test_the_assignment_is_signed_by_a_key_for_which_the_first_key_vouches():
    first = message_json("enrol-response")["serverKeys"][0]
    answer = message_json("check-in-response-assignment")
    signed, second = answer["assignment"], answer["serverKeys"][1]
    assert second["endorsedBy"] == first["keyId"]
    vouched = b"hansa-server-key-1\0" + second["keyId"].encode() + b"\0" + base64.b64decode(second["publicKey"])
    root = Ed25519PublicKey.from_public_bytes(base64.b64decode(first["publicKey"]))
    root.verify(base64.b64decode(second["endorsement"]), vouched)
    assert signed["keyId"] == second["keyId"]
    content = base64.b64decode(signed["assignment"])
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(second["publicKey"]))
    key.verify(base64.b64decode(signed["signature"]), b"hansa-assignment-1\0" + content)
    assert content == read("messages/assignment.bin")
    signatures.verify(
        base64.b64decode(second["publicKey"]), base64.b64decode(signed["signature"]), signatures.assignment(content)
    )


def test_the_assignment_names_the_golden_job_and_model():
    assignment, enrolled = message_json("assignment"), message_json("enrol-response")
    job, model = read("job.json"), read("model.safetensors")
    assert assignment["jobSha256"] == hashlib.sha256(job).hexdigest()
    assert assignment["planSha256"] == json.loads(job)["plan_sha256"]
    assert assignment["modelSha256"] == hashlib.sha256(model).hexdigest()
    assert assignment["modelSize"] == str(len(model))
    assert (assignment["client"], assignment["number"]) == (enrolled["client"], enrolled["number"])
    assert rfc8785.dumps(json.loads(job)) == job


def test_the_secure_sum_of_the_golden_assignment_is_as_the_specification_says():
    announced = message_json("assignment-secure-sum")
    plain = {key: value for key, value in announced.items() if key != "secureSum"}
    assert plain == message_json("assignment")
    announcement = base64.b64decode(announced["secureSum"])
    request, answer = message_json("exchange-request"), message_json("exchange-response")
    advert, keys = base64.b64decode(request["message"]), base64.b64decode(answer["message"])
    kinds = [int.from_bytes(each[4:8], "little") for each in (announcement, advert, keys)]
    assert kinds == [1, 2, 3]
    assert all(each[:4] == b"HSA1" for each in (announcement, advert, keys))
    assert len({each[16:48] for each in (announcement, advert, keys)}) == 1, "one task"
    assert request["id"] == announced["id"]
    assert request["seen"] == kinds[0]
    waiting = message_json("exchange-request-waiting")
    assert waiting == {key: value for key, value in request.items() if key != "message"}
    assert message_json("exchange-response-later") == {"comeBackSeconds": 1.0}


def arrays(name):
    """Return the arrays of a safetensors file, read by hand."""
    types = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}
    content = read(name)
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    read_all = {}
    for array, of in header.items():
        begin, end = of["data_offsets"]
        read_all[array] = np.frombuffer(data[begin:end], dtype=types[of["dtype"]]).reshape(of["shape"])
    assert sum(array.nbytes for array in read_all.values()) == len(data)
    return read_all


def test_blobs_hold_what_the_specification_says():
    model = arrays("model.safetensors")
    assert model["model"].tolist() == [0.5, -0.25, 0.125]
    assert model["features/center"].tolist() == [55.5, 131.0]
    assert model["features/scale"].tolist() == [9.25, 17.5]
    training = arrays("update-training.safetensors")
    assert training["values"].tolist() == [5.0, -2.5, 1.25]
    assert training["lanes"].tolist() == golden_messages_lanes("training")[0]
    assert arrays("update-statistics.safetensors")["lanes"].tolist() == golden_messages_lanes("statistics")[0]
    evaluation = arrays("update-evaluation.safetensors")
    assert {name: array.tolist() for name, array in evaluation.items()} == {
        "tallies/accuracy": [7.0, 10.0], "tallies/loss": [5.5, 10.0]
    }  # fmt: skip


def test_the_upload_is_of_the_golden_update():
    upload, content = read_json("upload.json"), read("update-training.safetensors")
    assert upload["size"] == len(content)
    assert upload["repr_digest"] == f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"
    ranges = [re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", part["content_range"]).groups() for part in upload["parts"]]
    ends = [(int(first), int(last) + 1) for first, last, _ in ranges]
    assert ends[0][0] == 0
    assert ends[0][1] == ends[1][0] == int(message_json("report-response-part")["offset"])
    assert ends[1][1] == len(content) == int(ranges[0][2])
    assert message_json("report-response-accepted")["sha256"] == hashlib.sha256(content).hexdigest()


# The page


def table(before, first):
    """Return the rows of the table whose first cell is ``first`` below what matches ``before``, as lists of cells."""
    found = re.search(rf"{before}\n\n(\| {re.escape(first)} \|.*?\n)\n", PAGE, re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]
    return rows[2:]


def test_the_page_describes_every_field_with_its_number():
    for name, descriptor in wire.DESCRIPTOR.message_types_by_name.items():
        if not descriptor.fields:
            continue
        described = {row[0].strip("`"): int(row[1]) for row in table(rf"\n`{name}`[^\n]*", "field")}
        assert described == {field.name: field.number for field in descriptor.fields}, name


@pytest.mark.parametrize("name", ["Kind", "Outcome", "Verdict"])
def test_the_page_describes_every_enum_value(name):
    described = {row[0].strip("`"): int(row[1]) for row in table("", f"`{name}`")}
    values = wire.DESCRIPTOR.enum_types_by_name[name].values_by_name
    assert described == {value: descriptor.number for value, descriptor in values.items()}


def test_the_page_names_every_call():
    for method in wire.DESCRIPTOR.services_by_name["Federation"].methods:
        assert f"`POST /hansa.v1.Federation/{method.name}`" in PAGE


def test_errors_on_the_page_are_those_of_the_catalogue():
    statuses = {
        "invalid_argument": 400, "unauthenticated": 401, "permission_denied": 403, "not_found": 404,
        "already_exists": 409, "aborted": 409, "failed_precondition": 400, "resource_exhausted": 429,
        "unavailable": 503, "internal": 500, "data_loss": 500, "out_of_range": 400,
    }  # fmt: skip
    rows = {row[0].strip("`"): row[1:4] for row in table("", "code")}
    for code, (http, connect, through) in rows.items():
        entry = CATALOGUE[code]
        assert (int(http), connect.strip("`"), int(through)) == (entry.http, entry.connect, statuses[entry.connect])
    named = set(re.findall(r"HANSA-[A-Z]+-[A-Z-]+[A-Z]", PAGE))
    assert named <= rows.keys() | {"HANSA-SERVER-UNREACHABLE", "HANSA-SERVER-KEY"}  # these a client says to itself
    clients = {
        code for code in CATALOGUE if code.startswith(("HANSA-AUTH-", "HANSA-ENROL", "HANSA-REPORT", "HANSA-UP"))
    }
    assert clients - {"HANSA-AUTH-ROLE"} <= rows.keys()


def test_every_golden_file_is_linked_from_the_page():
    for path in GOLDEN.rglob("*"):
        if path.is_file() and path.suffix != ".bin":
            assert f"](golden/{path.relative_to(GOLDEN)})" in PAGE, path.name


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the example needs openssl")
def test_the_shell_of_the_page_signs_as_it_should(tmp_path: Path):
    (script,) = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "body").write_bytes(b"some body")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{script}\nauthorization POST /a?b=c body"],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "TOKEN": "an-invitation", "CLIENT": "c1"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    enrol = Parse((tmp_path / "enrol.json").read_text(), wire.EnrolRequest())
    signatures.verify(enrol.public_key, enrol.key_proof, signatures.enrolment("an-invitation"))
    header = done.stdout.strip().removeprefix("Authorization: ")
    verify_request(read_credentials(header), enrol.public_key, method="POST", target="/a?b=c", body=b"some body")
