"""Write the test vectors of secure sums anew: ``python -m tests.vectors.write_vectors``.

All randomness is known, but that of HPKE, which its library draws: ``secagg-oneshot.json`` differs every time. What
becomes of updates before they are masked, and of their sum, is in ``encoding.json``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from hansa.algorithms.fixed_point import decode, encode, vectors, whole_numbers
from hansa.algorithms.ring_plan import RingCode, ring_code
from hansa.algorithms.travelling import travelling_lanes
from hansa.core.layout import Branch, Layout, Parameter, weight_lane
from hansa.core.nouns import Assignment, Batch, ClientBatch, ClientContext, Signature
from hansa.core.ring import Ring, Segment
from hansa.core.secure_aggregation import BranchIntegers, SecureAggregation
from hansa.core.streams import Streams
from hansa.secagg import field
from hansa.secagg.masks import stream
from hansa.testing import MemoryClients
from hansa.testing.secagg import Federation, OneShotFederation

FOLDER = Path(__file__).parent
RING = Ring((Segment("params", 6, 20), Segment("weight", 1, 40)))


def seed(name: str) -> bytes:
    """Return 32 known bytes."""
    return hashlib.sha256(name.encode()).digest()


def masks() -> list[dict[str, object]]:
    """Return keys with the first 64 words of their streams."""
    keys = [bytes(32), bytes([255]) * 32, seed("mask")]
    return [{"key": key.hex(), "words": np.frombuffer(stream(key, 256), "<u4").tolist()} for key in keys]


def shares() -> list[dict[str, object]]:
    """Return secrets with their shares."""
    found = []
    for threshold, holders in ((2, [0, 1, 2]), (3, [0, 4, 7, 100]), (5, list(range(6)))):
        secrets, key = seed(f"secret {threshold}") + bytes([255]) * 32, seed(f"coefficients {threshold}")
        given = field.share(secrets, threshold=threshold, places=np.array(holders) + 1, key=key)
        found.append(
            {
                "secrets": [secrets[:32].hex(), secrets[32:].hex()],
                "threshold": threshold,
                "coefficient_key": key.hex(),
                "holders": holders,
                "shares": [each.tobytes().hex() for each in given.reshape(len(holders), -1)],
            }
        )
    return found


def transcript(protocol: str, *, beacon: bool = False) -> dict[str, object]:
    """Return a whole round: what every client knows, and every message in the order in which it left.

    The authority, where there is one, has the place after the last client.
    """
    plus: dict[str, object] = {"neighbours": 2, "threshold": 2} if protocol == "secagg-plus" else {}
    drawn = {"registrar": "authority", "beacon": "authority"} if beacon else {}
    one = Federation(5, protocol=protocol, ring=RING, settings=plus | drawn, seed="vectors")
    messages: list[dict[str, object]] = []
    ask = one.ask

    def noted(client: int, message: bytes) -> bytes | None:
        answer = ask(client, message)
        messages.append({"to_client": client, "message": bytes(message).hex()})
        messages.append({"to_server_from": client, "message": (answer or b"").hex()})
        return answer

    one.ask = noted  # type: ignore[method-assign,assignment] # a recorder in its place
    result = one.run(drop={(3, "mask")})
    return {
        "protocol": protocol,
        "task": one.task.content.hex(),
        "task_hash": one.task.hash.hex(),
        "server_key": one.server_key.private_bytes_raw().hex(),
        **({"authority_key": one.authority_key.private_bytes_raw().hex()} if beacon else {}),
        "clients": [
            {
                "identity_key": one.identities[each].private_bytes_raw().hex(),
                "seed": one.client_logs[each][0][4:36].hex(),
                "vector": [row.tolist() for row in one.vectors[each]],
            }
            for each in range(5)
        ],
        "messages": messages,
        "survivors": list(one.server.survivors),
        "sum": [row.tolist() for row in result or ()],
    }


def oneshot() -> dict[str, object]:
    """Return a round of ``oneshot-seeds``: keys, reports and answers."""
    one = OneShotFederation(3, ring=RING, seed="vectors")
    result = one.run()
    return {
        "task": one.task.content.hex(),
        "decryptor_secrets": [each.hex() for each in one.secrets],
        "vectors": [[row.tolist() for row in one.vectors[each]] for each in range(3)],
        "messages_to_server": [each.hex() for each in one.server_log if each[:4] == b"HSA1"],
        "sum": [row.tolist() for row in result or ()],
    }


SEED, ROUND = 7, 3
SIZES = {"params": 6, "control": 3}
VALUES = [[0.5, -0.25, 0.875, -0.9375, 0.0, 0.125, 3.0, -7.5, 0.0], [3.0, 1.5, -0.75, 0.0, 0.0, 0.5, 9.0, 0.0, 1.0]]
"""Updates: the second has entries that are too large in both branches."""


def encoding(*, rotation: bool, weights: tuple[float, float]) -> dict[str, object]:
    """Return what becomes of two updates of some weights: their integers, and their sum in the units of an update."""
    branches = tuple(Branch(name, (Parameter("w", (size,)),)) for name, size in SIZES.items())
    layout = Layout(branches, travelling_lanes(SIZES, [], integers=True))
    section = SecureAggregation(
        value_bits=12, rotation=rotation, branches=(BranchIntegers(name="control", max_value=8.0, value_bits=10),)
    )
    code = ring_code(section, layout, clients=5, weight=1000.0)
    carried = np.array(weights)
    columns = {weight_lane(name): carried for name in SIZES} | {"count": np.ones(2), "train_loss": np.array([0.5, 2.0])}
    values = np.array(VALUES, dtype=np.float32) * carried[:, None].astype(np.float32)
    batch = Batch(values, layout.encode_lanes(columns, 2), layout)
    data = MemoryClients([np.zeros((1, 1), np.float32)] * 2, [np.zeros(1)] * 2)
    who = np.arange(2)
    assignment = Assignment(ROUND, layout, np.zeros(layout.size, np.float32), who, population=2)
    streams = Streams(SEED)
    given = vectors(
        code, encode(code, batch, ClientContext(assignment, ClientBatch(who, data, Signature((1,), 0)), streams))
    )
    total = code.ring.reduce(tuple(first + second for first, second in zip(*given, strict=True)))
    whole, lanes = whole_numbers(code, total, 2)
    return {
        "clients": 5, "max_weight": 1000.0, "weight_bits": section.weight_bits, "rotation": rotation, "seed": SEED,
        "round": ROUND, "branches": [_numbers(code, each.name) for each in code.branches],
        "lanes": [[each.name, each.low, each.high, each.resolution] for each in layout.lanes],
        "weights": list(weights), "train_loss": [0.5, 2.0], "updates": VALUES,
        "coins": streams.of("rounding", ROUND).bits(who, -(-code.width // 2)).view("<u4")[:, : code.width].tolist(),
        "segments": [[each.name, each.length, each.bits] for each in code.ring.segments],
        "vectors": [[part.tolist() for part in each] for each in given],
        "sum_of_lanes": lanes.tolist(),
        "decoded": decode(code, whole, ROUND, streams).tolist(),
    }  # fmt: skip


def _numbers(code: RingCode, name: str) -> dict[str, object]:
    branch = next(each for each in code.branches if each.name == name)
    largest = 8.0 if name == "control" else 1.0
    return {"name": name, "size": branch.size, "max_value": largest, "value_bits": (branch.limit + 1).bit_length()}


def encodings() -> list[dict[str, object]]:
    """Return updates with whole weights, with one weight that is capped, and rotated."""
    return [
        encoding(rotation=False, weights=(1.0, 1.0)),
        encoding(rotation=False, weights=(10.0, 1200.0)),
        encoding(rotation=True, weights=(3.0, 500.0)),
    ]


def deterministic() -> dict[str, object]:
    """Return all vectors that are the same every time."""
    rounds = [transcript("secagg-full"), transcript("secagg-plus"), transcript("secagg-plus", beacon=True)]
    return {"masks": masks(), "shares": shares(), "rounds": rounds}


def written(content: dict[str, object]) -> str:
    """Return a file's text."""
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    (FOLDER / "secagg.json").write_text(written(deterministic()), encoding="utf-8")
    (FOLDER / "encoding.json").write_text(written({"encodings": encodings()}), encoding="utf-8")
    (FOLDER / "secagg-oneshot.json").write_text(written(oneshot()), encoding="utf-8")
