"""Random numbers as a function of (seed, purpose, round, client), vectorised over clients.

Each client has a SplitMix64 sequence (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators", section 4) whose seed is an element of the sequence that (seed, purpose, round) starts.
These numbers make runs repeatable. They protect nobody: see :data:`PURPOSES`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import HansaError

UInt64s = NDArray[np.uint64]
Int64s = NDArray[np.int64]
Floats = NDArray[np.float64]

PURPOSES: Final[dict[str, Literal["public", "secret"]]] = {
    "model": "public",
    "order": "public",
    "dropout": "public",
    "rotation": "public",
    "partition": "public",
    "split": "public",
    "evaluation": "public",
    "baseline": "public",
    "devices": "public",
    "departures": "public",
    "examples": "public",
    "cohort": "secret",
    "rounding": "secret",
    "example-sampling": "secret",
    "example-noise": "secret",
    "noise": "secret",
}
"""What numbers are drawn for. A secret purpose is served from the seed in simulations only."""

SECRET: Final = frozenset(name for name, kind in PURPOSES.items() if kind == "secret")

_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)


def mix(values: UInt64s) -> UInt64s:
    """Return the SplitMix64 finaliser of each value (in a new array)."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def element(seeds: UInt64s, numbers: Int64s) -> UInt64s:
    """Return the elements of some numbers (from 0) of the SplitMix64 sequences of some seeds, broadcast."""
    with np.errstate(over="ignore"):
        return mix(seeds + (numbers.astype(np.uint64) + np.uint64(1)) * _GAMMA)


@dataclass(frozen=True)
class Stream:
    """The numbers of one purpose in one round, for any client."""

    key: int

    def bits(self, clients: Int64s, count: int) -> UInt64s:
        """Return ``count`` 64-bit words for each client number: uint64 [n, count]."""
        numbers = np.asarray(clients, dtype=np.int64).astype(np.uint64)
        with np.errstate(over="ignore"):
            seeds = mix(np.uint64(self.key) + (numbers + np.uint64(1)) * _GAMMA)
            steps = np.arange(1, count + 1, dtype=np.uint64) * _GAMMA
            return mix(seeds[:, None] + steps[None, :])

    def uniform(self, clients: Int64s, count: int) -> Floats:
        """Return numbers in [0, 1) with 53 bits: float64 [n, count]."""
        return _unit(self.bits(clients, count))

    def permutations(self, clients: Int64s, sizes: Int64s, *, draw: int = 0, width: int | None = None) -> Int64s:
        """Return a shuffle of ``range(size)`` for each client, padded at the end with -1: int64 [n, width].

        ``draw`` numbers the shuffles that one client takes from the stream (one an epoch). A client's
        shuffle depends on its number, its size and the draw, never on the others in the batch.
        """
        width = int(sizes.max(initial=0)) if width is None else width
        words = self.draw(draw).bits(clients, width)
        padding = np.arange(width)[None, :] >= sizes[:, None]
        words >>= np.uint64(1)
        words[padding] = np.uint64(2**64 - 1)
        order = np.argsort(words, axis=1, kind="stable")
        order[padding] = -1
        return order

    def coins(self) -> Coins:
        """Return a reader of this stream's own words, for draws that belong to no client."""
        position = 0

        def draw(count: int) -> UInt64s:
            nonlocal position
            steps = np.arange(position + 1, position + count + 1, dtype=np.uint64)
            position += count
            with np.errstate(over="ignore"):
                return mix(mix(np.array([self.key], dtype=np.uint64)) + steps * _GAMMA)

        return Coins(draw)

    def seed(self) -> int:
        """Return a 63-bit seed for a library's own generator (torch, numpy)."""
        return int(self.coins().words(1)[0] >> np.uint64(1))

    def draw(self, number: int) -> Stream:
        """Return the stream of one of several draws of the same things."""
        return Stream(_key(self.key, "draw", number))


@dataclass(frozen=True)
class OwnStream(Stream):
    """Numbers of this machine's own secret generator, that of the operating system: nobody can draw them again."""

    key: int = 0

    def bits(self, clients: Int64s, count: int) -> UInt64s:
        """Return ``count`` fresh 64-bit words for each client: uint64 [n, count]."""
        return _fresh(len(clients) * count).reshape(len(clients), count)

    def coins(self) -> Coins:
        """Return a reader of fresh words."""
        return Coins(_fresh)

    def draw(self, number: int) -> Stream:  # noqa: ARG002 - every draw is fresh
        """Return this stream: every draw is fresh."""
        return self


class Coins:
    """Numbers read one after another from a source of 64-bit words.

    A simulation reads a seeded stream; a federation's server reads its secret generator.
    """

    def __init__(self, words: Callable[[int], UInt64s]) -> None:
        self.words = words

    def uniform(self, count: int) -> Floats:
        """Return ``count`` numbers in [0, 1): float64 [count]."""
        return _unit(self.words(count))

    def integers(self, high: int, count: int) -> Int64s:
        """Return ``count`` numbers of ``range(high)``, biased by less than high / 2^53: int64 [count]."""
        return (self.uniform(count) * high).astype(np.int64)

    def distinct(self, high: int, count: int) -> Int64s:
        """Return ``count`` distinct numbers of ``range(high)`` in random order, in O(count): int64 [count]."""
        if 3 * count > high:
            return np.argsort(self.words(high), kind="stable")[:count].astype(np.int64)
        chosen: dict[int, None] = {}
        while len(chosen) < count:
            chosen.update(dict.fromkeys(self.integers(high, count - len(chosen)).tolist()))
        return np.fromiter(chosen, dtype=np.int64, count=count)

    def generator(self) -> np.random.Generator:
        """Return a numpy generator seeded from the next words, for draws of other distributions."""
        return np.random.Generator(np.random.Philox(key=self.words(2)))


@dataclass(frozen=True)
class Streams:
    """All streams of one run: ``streams.of(purpose, round)``.

    ``own`` are the secret purposes for which this party draws from its own generator: a client's rounding in a
    federation, for one, and all of them in a simulation whose model is to be released.
    """

    seed: int
    runtime: Literal["simulation", "federation"] = "simulation"
    own: frozenset[str] = frozenset()

    def of(self, purpose: str, round_number: int = 0) -> Stream:
        """Return the stream of a purpose in a round.

        Raises HansaError for a secret purpose in a federation: there the party that needs the
        numbers draws them from its own generator.
        """
        if purpose in self.own:
            return OwnStream()
        if PURPOSES[purpose] == "secret" and self.runtime == "federation":
            raise HansaError(
                "HANSA-STREAM-SECRET",
                rule="In a federation the plan's seed serves public purposes only.",
                found=f"The seeded stream was asked for {purpose!r}.",
                action="Draw it from the secret generator of the party that adds it.",
            )
        return Stream(_key(self.seed, purpose, round_number))


def _fresh(count: int) -> UInt64s:
    """Return words of the operating system's generator: uint64 [count]."""
    return np.frombuffer(secrets.token_bytes(8 * count), dtype=np.uint64).copy()


def _unit(words: UInt64s) -> Floats:
    """Return the upper 53 bits as a fraction of 1."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _key(*parts: Any) -> int:
    """Return a 64-bit key: the head of SHA-256 over the parts, which cannot run into each other."""
    text = "\x1f".join(str(part) for part in ("hansa-stream-1", *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
