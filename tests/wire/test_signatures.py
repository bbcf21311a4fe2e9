"""Signatures of requests, assignments, keys and enrolments: nothing else passes for them."""

from __future__ import annotations

import random
import string

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import RefusedError
from hansa.wire import signatures
from hansa.wire.signatures import read_credentials, sign_request, verify, verify_request

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
OTHER = Ed25519PrivateKey.generate()
CALL = {"method": "PUT", "target": "/v1/updates/r/training/1/1?x=1", "body": b"body"}


def signed(**changes):
    return sign_request(KEY, client="client-7", now=1_700_000_000.1234, **{**CALL, **changes})


def test_a_signed_request_verifies_and_says_by_whom_and_when():
    credentials = read_credentials(signed())
    assert (credentials.client, credentials.time) == ("client-7", 1_700_000_000_123)
    verify_request(credentials, PUBLIC, **CALL)


@settings(max_examples=50)
@given(st.binary(max_size=100), st.text(string.ascii_letters + "/?=&%", max_size=40))
def test_any_body_and_target_can_be_signed(body, target):
    call = {"method": "POST", "target": target, "body": body}
    verify_request(read_credentials(sign_request(KEY, client="c", now=1.0, **call)), PUBLIC, **call)


@pytest.mark.parametrize(
    "change", [{"method": "GET"}, {"target": "/v1/updates/r/training/1/2?x=1"}, {"body": b"bodY"}, {"body": b""}]
)
def test_a_signature_is_for_one_request_only(change):
    with pytest.raises(RefusedError) as raised:
        verify_request(read_credentials(signed()), PUBLIC, **{**CALL, **change})
    assert raised.value.code == "HANSA-AUTH-SIGNATURE"


def test_time_and_nonce_are_signed_too():
    header = signed()
    credentials = read_credentials(header)
    for other in (
        header.replace(str(credentials.time), str(credentials.time + 1)),
        header.replace(credentials.nonce, "A" * 16),
    ):
        with pytest.raises(RefusedError) as raised:
            verify_request(read_credentials(other), PUBLIC, **CALL)
        assert raised.value.code == "HANSA-AUTH-SIGNATURE"


def test_every_request_has_a_nonce_of_its_own():
    assert len({read_credentials(signed()).nonce for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "key",
    [OTHER.public_key().public_bytes_raw(), b"", b"\0" * 32, b"\xff" * 32, b"x" * 33],
    ids=["another", "none", "zeros", "ones", "too long"],
)
def test_another_key_or_none_is_refused(key):
    with pytest.raises(RefusedError) as raised:
        verify_request(read_credentials(signed()), key, **CALL)
    assert raised.value.code == "HANSA-AUTH-SIGNATURE"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer abc",
        signed().replace("Hansa-Ed25519", "hansa-ed25519"),
        signed() + " ",
        signed() + "\n",
        signed() + "A",
        signed()[:-1],
        signed().replace("client-7", ""),
        signed().replace("client-7", "a" * 65),
        signed().replace("client-7", "a b"),
        signed().replace("client-7", "é"),
        signed().replace("time=", "time=-"),
        signed().replace("time=", "time=00000"),
        signed().replace("time=1", "time=\N{ARABIC-INDIC DIGIT ONE}"),
        signed().replace(", ", ","),
        signed().replace("nonce=", "nonce=A"),
        "x" * 100_000,
    ],
)
def test_a_header_that_cannot_be_read_is_no_credential(header):
    with pytest.raises(RefusedError) as raised:
        read_credentials(header)
    assert raised.value.code == "HANSA-AUTH-MISSING"


def test_mutated_headers_never_verify_as_another_caller():
    random_, header = random.Random(3), signed()  # noqa: S311 - a test that repeats
    letters = string.ascii_letters + string.digits + "-_=, "
    codes = set()
    for _ in range(3000):
        at = random_.randrange(len(header))
        other = header[:at] + random_.choice(letters) + header[at + 1 :]
        try:
            credentials = read_credentials(other)
            verify_request(credentials, PUBLIC, **CALL)
        except RefusedError as error:
            codes.add(error.code)
        else:
            original = read_credentials(header)
            assert (credentials.time, credentials.nonce) == (original.time, original.nonce)
            assert credentials.signature == original.signature
    assert codes == {"HANSA-AUTH-MISSING", "HANSA-AUTH-SIGNATURE"}


def test_one_kind_of_signature_never_stands_for_another():
    contents = [
        signatures.enrolment("token"),
        signatures.assignment(b"content"),
        signatures.server_key("key-1", PUBLIC),
        signatures._request("GET", "/", "1", "n", b""),
    ]
    prefixes = [content[:12] for content in contents]
    assert len(set(prefixes)) == len(prefixes)
    for signed_content in contents:
        signature = KEY.sign(signed_content)
        for content in contents:
            if content is signed_content:
                verify(PUBLIC, signature, content)
            else:
                with pytest.raises(RefusedError):
                    verify(PUBLIC, signature, content)


def test_a_token_and_a_certificate_are_signed_by_their_digest():
    assert signatures.enrolment("token") == signatures.enrolment(b"token")
    assert b"token" not in signatures.enrolment("token")


@settings(max_examples=50)
@given(st.binary(max_size=80))
def test_verify_refuses_any_other_bytes(signature):
    with pytest.raises(RefusedError) as raised:
        verify(PUBLIC, signature, b"content")
    assert raised.value.code == "HANSA-AUTH-SIGNATURE"
