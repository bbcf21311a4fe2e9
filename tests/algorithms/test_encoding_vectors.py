"""From updates to the vector of a secure sum and back, as the specification says it, in plain Python numbers."""

from __future__ import annotations

import hashlib
import json
import math
from fractions import Fraction

import pytest
from tests.vectors import write_vectors

CASES = json.loads((write_vectors.FOLDER / "encoding.json").read_text())["encodings"]
WORD = 2**64


def mix(value):
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % WORD
    return value ^ (value >> 31)


def rotation_signs(seed, number, count):
    text = "\x1f".join(("hansa-stream-1", str(seed), "rotation", str(number)))
    first = mix(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
    words = [mix((first + (place + 1) * 0x9E3779B97F4A7C15) % WORD) for place in range(-(-count // 64))]
    packed = b"".join(word.to_bytes(8, "little") for word in words)
    return [1 - 2 * (packed[place // 8] >> (7 - place % 8) & 1) for place in range(count)]


def hadamard(block):
    half = len(block) // 2
    if not half:
        return block
    left, right = hadamard(block[:half]), hadamard(block[half:])
    return [a + b for a, b in zip(left, right, strict=True)] + [a - b for a, b in zip(left, right, strict=True)]


def turned(entries, block):
    blocks = (hadamard(entries[place : place + block]) for place in range(0, len(entries), block))
    return [Fraction(entry / math.sqrt(block)) for block_ in blocks for entry in block_]


def numbers(case):
    """Return the unit of weights and the most units, and for each branch its start, length, block, step and limit."""
    most = 2 ** case["weight_bits"] - 1
    unit = Fraction(1)
    while case["max_weight"] > most * unit:
        unit *= 2
    found, start = [], 0
    for branch in case["branches"]:
        block = 1
        while case["rotation"] and block < min(branch["size"], 4096):
            block *= 2
        length = -(-branch["size"] // block) * block
        limit = 2 ** (branch["value_bits"] - 1) - 1
        found.append((branch, start, length, block, Fraction(branch["max_value"] / limit), limit))
        start += length
    return unit, math.floor(Fraction(case["max_weight"]) / unit), found


def bits_of(most):
    return max(8, (2 * most).bit_length())


def lane(case, name, value):
    _, low, high, resolution = next(each for each in case["lanes"] if each[0] == name)
    return round(Fraction(min(max(value, low), high)) / Fraction(resolution))


def units_of(case, weight):
    unit, most, _ = numbers(case)
    return 0 if weight <= 0 else min(max(round(Fraction(weight) / unit), 1), most)


def encoded(case, client):
    """Return the whole numbers of a client: those of each branch, and its lanes."""
    unit, _, branches = numbers(case)
    weight, values, first, scaled, parts = case["weights"][client], case["updates"][client], 0, False, []
    units = units_of(case, weight)
    for branch, start, length, block, step, limit in branches:
        entries = [Fraction(each) * Fraction(weight) for each in values[first : first + branch["size"]]]
        first += branch["size"]
        entries += [Fraction(0)] * (length - len(entries))
        if block > 1:
            signs = rotation_signs(case["seed"], case["round"], start + length)[start:]
            entries = turned([entry * sign for entry, sign in zip(entries, signs, strict=True)], block)
        factor = units / (Fraction(weight) * step)
        largest = max(abs(entry) for entry in entries) * factor
        if largest > units * limit:
            scaled, factor = True, factor * (units * limit / largest)
        coins = case["coins"][client][start : start + length]
        parts.append(
            [math.floor(entry * factor + Fraction(coin, 2**32)) for entry, coin in zip(entries, coins, strict=True)]
        )
        assert all(abs(each) <= units * limit for each in parts[-1])
    told = {
        "count": 1,
        "train_loss": case["train_loss"][client],
        "scaled_down": scaled,
        "capped": weight > case["max_weight"],
    }
    told |= {f"weight.{branch['name']}": units * unit for branch in case["branches"]}
    return parts, [lane(case, each[0], told.get(each[0], 0)) for each in case["lanes"]]


def segments(case):
    """Return the segments of the ring: a branch each, then runs of lanes of equal bits."""
    _, most, branches = numbers(case)
    found = [
        [branch["name"], length, bits_of(case["clients"] * most * limit)] for branch, _, length, _, _, limit in branches
    ]
    for place, (_, low, high, resolution) in enumerate(case["lanes"]):
        bits = bits_of(case["clients"] * max(abs(round(low / resolution)), abs(round(high / resolution))))
        if place and found[-1][2] == bits:
            found[-1][1] += 1
        else:
            found.append([f"lanes.{place}", 1, bits])
    return found


def decoded(case, clients):
    """Return the sum of the clients' integers in the units of an update."""
    unit, _, branches = numbers(case)
    found = []
    for place, (branch, start, length, block, step, _) in enumerate(branches):
        total = [sum(column) * step * unit for column in zip(*(each[0][place] for each in clients), strict=True)]
        if block > 1:
            signs = rotation_signs(case["seed"], case["round"], start + length)[start:]
            total = [entry * sign for entry, sign in zip(turned(total, block), signs, strict=True)]
        found += [float(each) for each in total[: branch["size"]]]
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"rotation={case['rotation']}, weights={case['weights']}")
def test_updates_become_integers_and_their_sum_becomes_an_update_as_is_specified(case):
    clients = [encoded(case, client) for client in range(2)]
    assert segments(case) == case["segments"]
    for (parts, lanes), vector in zip(clients, case["vectors"], strict=True):
        whole, place = list(parts), 0
        for _, length, _ in case["segments"][len(parts) :]:
            whole.append(lanes[place : place + length])
            place += length
        expected = [
            [each % 2**bits for each in part] for part, (_, _, bits) in zip(whole, case["segments"], strict=True)
        ]
        assert vector == expected
    assert case["sum_of_lanes"] == [sum(column) for column in zip(*(each[1] for each in clients), strict=True)]
    assert decoded(case, clients) == pytest.approx(case["decoded"], rel=1e-12, abs=1e-9)


def test_the_file_is_what_the_encoder_makes():
    assert json.loads(write_vectors.written({"encodings": write_vectors.encodings()})) == {"encodings": CASES}
