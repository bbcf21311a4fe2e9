"""Published vectors of what secure sums are made of, and Hansa's own of what they are.

Those of Project Wycheproof are not here: no dependency of Hansa ships them, nor does ``cryptography_vectors``, and
nothing is downloaded by tests. What they are for, inputs that an implementation should refuse, is tried by hand: points
of small order in ``test_attacks.py``, signatures with another S in ``test_hostile.py``, sealed bytes of which
one is changed below.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from tests.secagg import plain
from tests.vectors import write_vectors

from hansa.core.ring import Ring
from hansa.secagg import field, keys
from hansa.secagg.masks import Mask, add, apply, stream, subtract
from hansa.secagg.messages import header_of
from hansa.secagg.oneshot_messages import Answer, Report
from hansa.secagg.sealing import Binding, open_seed, seed_key
from hansa.secagg.task import read_task

OWN = json.loads((write_vectors.FOLDER / "secagg.json").read_text())
ONESHOT = json.loads((write_vectors.FOLDER / "secagg-oneshot.json").read_text())


@pytest.mark.parametrize(
    ("scalar", "point", "product"),
    [
        # RFC 7748, section 5.2
        ("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
         "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
         "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"),
        ("4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
         "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
         "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957"),
        # section 6.1: Bob's key, Alice's public key, what they share
        ("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
         "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
         "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"),
        ("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb", "09" + "00" * 31,
         "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"),
    ],
)  # fmt: skip
def test_x25519_of_rfc_7748(scalar, point, product):
    scalar, point = bytes.fromhex(scalar), bytes.fromhex(point)
    assert keys.agree(keys.private_key(scalar), point).hex() == product
    assert plain.x25519(scalar, point).hex() == product


@pytest.mark.parametrize(
    ("secret", "salt", "info", "expected"),
    [
        # RFC 5869, appendix A.1 to A.3
        ("0b" * 22, "000102030405060708090a0b0c", "f0f1f2f3f4f5f6f7f8f9",
         "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"),
        (bytes(range(80)).hex(), bytes(range(0x60, 0xB0)).hex(), bytes(range(0xB0, 0x100)).hex(),
         ("b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
          "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87")),
        ("0b" * 22, "", "",
         "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
    ],
)  # fmt: skip
def test_hkdf_of_rfc_5869(secret, salt, info, expected):
    found = HKDF(
        algorithm=hashes.SHA256(), length=len(expected) // 2, salt=bytes.fromhex(salt) or None, info=bytes.fromhex(info)
    ).derive(bytes.fromhex(secret))
    assert found.hex() == expected


@pytest.mark.parametrize(
    ("secret", "public", "content", "signature"),
    [
        # RFC 8032, section 7.1, tests 1 and 2
        ("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
         "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
         ("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
          "d25bf5f0595bbe24655141438e7a100b")),
        ("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
         "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
         ("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
          "387b2eaeb4302aeeb00d291612bb0c00")),
    ],
)  # fmt: skip
def test_ed25519_of_rfc_8032(secret, public, content, signature):
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    assert key.public_key().public_bytes_raw().hex() == public
    assert key.sign(bytes.fromhex(content)).hex() == signature


def test_aes_256_in_counter_mode_of_sp_800_38a():
    """F.5.5; and the stream of masks is that mode from counter 0."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    content = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
    assert cipher.update(content).hex() == (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    source = plain.stream(key)
    assert stream(key, 100) == bytes(next(source) for _ in range(100))


@pytest.mark.parametrize(
    ("key", "nonce", "content", "bound", "sealed"),
    [
        # McGrew and Viega 2004, The Galois/Counter Mode of Operation, appendix B, test cases 13 and 14: our own nonce
        ("00" * 32, "00" * 12, "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
        ("00" * 32, "00" * 12, "00" * 16, "", "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"),
        # NIST CAVP, gcmtestvectors.zip, gcmEncryptExtIV256.rsp (CAVS 14.0), the first of four of its sections
        ("b52c505a37d78eda5dd34f20c22540ea1b58963cf8e5bf8ffa85f9f2492505b4", "516c33929df5a3284ff463d7", "", "",
         "bdc1ac884d332457a1d2664f168c76f0"),
        ("31bdadd96698c204aa9ce1448ea94ae1fb4a9a0b3c9d773b51bb1822666b8f22", "0d18e06c7c725ac9e362e1ce",
         "2db5168e932556f8089a0622981d017d", "",
         "fa4362189661d163fcd6a56d8bf0405ad636ac1bbedd5cc3ee727dc2ab4a9489"),
        ("92e11dcdaa866f5ce790fd24501f92509aacf4cb8b1339d50c9c1240935dd08b", "ac93a1a6145299bde902f21a",
         "2d71bcfa914e4ac045b2aa60955fad24", "1e0889016f67601c8ebea4943bc23ad6",
         "8995ae2e6df3dbf96fac7b7137bae67feca5aa77d51d4a0a14d9c51e1da474ab"),
        ("24501ad384e473963d476edcfe08205237acfd49b5b8f33857f8114e863fec7f", "9ff18563b978ec281b3f2794",
         ("27f348f9cdc0c5bd5e66b1ccb63ad920ff2219d14e8d631b3872265cf117ee86757accb158bd9abb3868fdc0d0b074b5"
          "f01b2c"), "adb5ec720ccf9898500028bf34afccbcaca126ef",
         ("eb7cb754c824e8d96f7c6d9b76c7d26fb874ffbf1d65c6f64a698d839b0b06145dae82057ad55994cf59ad7f67c0fa5e"
          "85fab8bc95c532fecc594c36d1550286a7a3f0")),
    ],
)  # fmt: skip
def test_aes_256_gcm_of_its_authors_and_of_nist(key, nonce, content, bound, sealed, monkeypatch):
    key, nonce, content, bound, sealed = map(bytes.fromhex, (key, nonce, content, bound, sealed))
    monkeypatch.setattr(keys, "_NONCE", nonce)
    assert keys.seal(key, content, bound) == sealed
    assert keys.unseal(key, sealed, bound) == content
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        assert keys.unseal(key, bytes(changed), bound) is None
    assert keys.unseal(key, sealed, bound + b"x") is None


def test_aes_256_gcm_refuses_what_nist_says_it_must(monkeypatch):
    """NIST CAVP, gcmDecrypt256.rsp (CAVS 14.0), 96-bit IV, 128 bits each of text, data and tag, count 2: FAIL."""
    key = "9a0343f850a6427120f764789ffec6d237447b898fbf51d2182f065d3861497d"
    sealed = "e93165935ac18e3a2845d15fe31a9286" + "f5fc50d18766bc3d9e16dd136d45816b"
    monkeypatch.setattr(keys, "_NONCE", bytes.fromhex("3deef6f453dd70d92143adcd"))
    bound = bytes.fromhex("dbb8226a624520863db6897017b2a4f8")
    assert keys.unseal(bytes.fromhex(key), bytes.fromhex(sealed), bound) is None


def test_hpke_of_rfc_9180():
    """Appendix A.1.1, base mode with AES-128-GCM: the same key schedule as ours, which has AES-256-GCM."""
    secret = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")
    )
    sealed = bytes.fromhex(
        "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431"
        "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"
    )
    info, aad = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e"), b"Count-0"
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
    assert openssl.hpke._decrypt_with_aad(suite, sealed, secret, info, aad) == b"Beauty is truth, truth beauty"


def test_the_own_vectors_that_are_kept_are_fresh():
    assert json.loads(write_vectors.written(write_vectors.deterministic())) == OWN


@pytest.mark.parametrize("case", OWN["masks"])
def test_masks_have_their_words(case):
    source = plain.words(bytes.fromhex(case["key"]), 4)
    assert [next(source) for _ in range(64)] == case["words"]


@pytest.mark.parametrize("case", OWN["shares"])
def test_shares_are_those_of_plain_integers(case):
    secrets = [bytes.fromhex(each) for each in case["secrets"]]
    given = plain.shares(secrets, case["threshold"], case["holders"], bytes.fromhex(case["coefficient_key"]))
    assert [given[each].hex() for each in case["holders"]] == case["shares"]
    some = case["holders"][-case["threshold"] :]
    places = np.array([some]) + 1
    shares = np.frombuffer(b"".join(given[each] for each in some), np.uint8).reshape(-1, 2, 44)
    assert [field.combine(places, shares[None, :, place])[0] for place in (0, 1)] == secrets


@pytest.mark.parametrize("case", OWN["rounds"], ids=lambda case: case["protocol"])
def test_a_rounds_transcript_is_of_its_task_and_gives_the_plain_sum(case):
    task = read_task(bytes.fromhex(case["task"]))
    assert hashlib.sha256(task.content).hexdigest() == case["task_hash"] == task.hash.hex()
    for each in case["messages"]:
        assert header_of(bytes.fromhex(each["message"])).task == task.hash if each["message"] else True
    for place, segment in enumerate(task.ring.segments):
        columns = zip(*(case["clients"][each]["vector"][place] for each in case["survivors"]), strict=True)
        assert case["sum"][place] == [sum(column) % 2**segment.bits for column in columns]


def test_the_one_shot_transcript_opens_with_its_keys():
    task = read_task(bytes.fromhex(ONESHOT["task"]))
    secrets = [bytes.fromhex(each) for each in ONESHOT["decryptor_secrets"]]
    messages = [bytes.fromhex(each) for each in ONESHOT["messages_to_server"]]
    total = task.ring.zeros()
    for message in messages:
        kind = header_of(message).kind
        if kind == Report.kind:
            report = Report.decode(message, task.hash)
            vector = tuple(row.copy() for row in task.ring.unpack(report.vector))
            content = hashlib.sha256(message[: -len(report.seeds + report.signature)]).digest()
            for place, secret in enumerate(secrets):
                binding = Binding(task.hash, report.client, place, content)
                seed = open_seed(report.seeds[80 * place : 80 * place + 80], secret, binding)
                apply([Mask(seed_key(seed, task.hash, report.client, place), minus=True)], vector)
            assert as_lists(task.ring, vector) == ONESHOT["vectors"][report.client]
            add(total, task.ring.unpack(report.vector))
        elif kind == Answer.kind:
            subtract(total, task.ring.unpack(Answer.decode(message, task.hash).vector))
    assert as_lists(task.ring, total) == ONESHOT["sum"]


def as_lists(ring: Ring, vector):
    return [row.tolist() for row in ring.reduce(vector)]
