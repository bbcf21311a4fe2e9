"""Write the test vectors of secure sums anew: ``python -m tests.vectors.write_vectors``.

All randomness is known, but that of HPKE, which its library draws: ``secagg-oneshot.json`` differs every time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from hansa.core.ring import Ring, Segment
from hansa.secagg import field
from hansa.secagg.masks import stream
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


def deterministic() -> dict[str, object]:
    """Return all vectors that are the same every time."""
    rounds = [transcript("secagg-full"), transcript("secagg-plus"), transcript("secagg-plus", beacon=True)]
    return {"masks": masks(), "shares": shares(), "rounds": rounds}


def written(content: dict[str, object]) -> str:
    """Return a file's text."""
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    (FOLDER / "secagg.json").write_text(written(deterministic()), encoding="utf-8")
    (FOLDER / "secagg-oneshot.json").write_text(written(oneshot()), encoding="utf-8")
