"""Examples made from numbers: what the source ``synthetic`` hands to a run.

A client's words choose its size, its own two classes and its shift; words of (client, position) choose a label and
every number of an example. All steps are elementwise on integers and float32, so that an example is the same whoever
is asked for beside it. A standard normal number is one of 65,536 equally likely quantiles, so it lies within 4.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, Final, Literal, overload

import numpy as np

from hansa.core.layout import Array, Floats, Int64s
from hansa.core.streams import Stream, Streams, UInt64s, element

Part = Literal["train", "validation", "test", "all"]

_HALF: Final = np.uint64(32)
_LOW: Final = np.uint64(2**32 - 1)
_SIZES: Final = 4096
"""Different sizes, equally likely: quantiles of a log-normal law."""
_PREFERRED: Final = 16
"""Tokens that a class prefers."""
_COARSE: Final = 4
"""Pixels across the even patches that the classes of images are made of, so that convolutions see something."""
_CLIENT_WORDS: Final = 4
"""A client's words: size, split, own classes (or own offset), and the key of its examples."""
_SIZE_WORDS: Final = 2
"""Those of them that a size needs."""
_AT_ONCE: Final = 1 << 16
"""Clients whose sizes are found at once."""
_LABEL_WORDS: Final = 2
"""An example's words before those of its numbers: which class of all, and whether one of its client's own."""


@cache
def normal_quantiles() -> Floats:
    """Return the middles of 65,536 equally likely intervals of the standard normal law: float32 [65536]."""
    law, half = NormalDist(), 1 << 15
    upper = np.array([law.inv_cdf(0.5 + (place + 0.5) / (2 * half)) for place in range(half)], dtype=np.float32)
    return np.concatenate([-upper[::-1], upper])


@dataclass(frozen=True)
class Parts:
    """How large a share of a client's examples is held out, rounded up or down by the client's own draw."""

    test: float
    validation: float

    def of(self, part: Part, sizes: Int64s, words: UInt64s) -> tuple[Int64s, Int64s]:
        """Return where a part begins among each client's examples, and how many are in it: int64 [n] each.

        The last examples test and those before them validate; one is left to train.
        """
        if part == "all":
            return np.zeros_like(sizes), sizes
        high, low = (words >> _HALF) * 2.0**-32, (words & _LOW) * 2.0**-32
        tests = np.minimum(np.floor(sizes * self.test + high).astype(np.int64), sizes - 1)
        validations = np.minimum(np.floor(sizes * self.validation + low).astype(np.int64), sizes - 1 - tests)
        learned = sizes - tests - validations
        if part == "train":
            return np.zeros_like(sizes), learned
        return (learned, validations) if part == "validation" else (learned + validations, tests)


@dataclass(frozen=True, eq=False)
class Recipe:
    """All that is kept of a population: a few tables, and where its words come from.

    ``means`` float32 [classes, p] are those of the classes (of a real-valued label one row, its direction);
    ``preferred`` int64 [classes, 16] the tokens that a class prefers, and ``share`` how often it does.
    """

    clients: Stream
    others: Stream
    shape: tuple[int, ...]
    classes: int
    vocabulary: int
    sizes: Int64s
    means: Floats
    preferred: Int64s
    share: float
    heterogeneity: float
    shift: float

    @classmethod
    def of(  # noqa: PLR0913 - the settings of the source
        cls,
        streams: Streams,
        *,
        shape: tuple[int, ...],
        classes: int,
        vocabulary: int,
        mean_size: float,
        size_sigma: float,
        heterogeneity: float,
        signal: float,
    ) -> Recipe:
        """Return the tables that settings and a seed determine."""
        tables = streams.of("examples", 1)
        numbers, kinds = int(np.prod(shape)), np.arange(max(1, classes))
        means = np.zeros((0, 0), dtype=np.float32)
        if not vocabulary:
            means = _directions(tables, kinds, shape) * np.float32(signal)
        preferred = (tables.uniform(kinds, _PREFERRED) * vocabulary).astype(np.int64)
        return cls(
            clients=streams.of("examples"),
            others=streams.of("examples", 2),
            shape=shape,
            classes=classes,
            vocabulary=vocabulary,
            sizes=_sizes(mean_size, size_sigma),
            means=means,
            preferred=preferred,
            share=min(1.0, signal / 10),
            heterogeneity=heterogeneity,
            shift=heterogeneity * signal / float(np.sqrt(numbers)),
        )

    def sizes_of(self, words: UInt64s) -> Int64s:
        """Return the sizes that clients' words [n, _CLIENT_WORDS] choose, all parts together: int64 [n]."""
        return self.sizes.take((words[:, 0] >> np.uint64(52)).astype(np.int64))

    def examples(self, words: UInt64s, positions: Int64s) -> tuple[Array, Array]:
        """Return examples of clients with these words [n, _CLIENT_WORDS] at ``positions`` [n, b]: x, y."""
        keys = element(words[:, 3, None], positions)
        y = self._labels(keys, words[:, 2, None], self.heterogeneity)
        x = self._inputs(keys, y)
        if self.shift and not self.vocabulary:
            x += self._noise(words[:, 2, None]) * np.float32(self.shift)
        return x.reshape(*positions.shape, *self.shape), y

    def central(self, count: int) -> tuple[Array, Array]:
        """Return examples that belong to no client: x [count, ...], y [count]."""
        words = self.others.bits(np.zeros(1, dtype=np.int64), _CLIENT_WORDS)
        keys = element(words[:, 3, None], np.arange(count)[None, :])
        y = self._labels(keys, words[:, 2, None], 0.0)
        return self._inputs(keys, y).reshape(count, *self.shape), y[0]

    def _labels(self, keys: UInt64s, own: UInt64s, heterogeneity: float) -> Array:
        """Return labels [n, b]: of any class, or of one of two that the client's word ``own`` [n, 1] says."""
        first = element(keys, np.zeros(1, dtype=np.int64))
        if not self.classes:
            value, offset = _normal(first >> np.uint64(48)), _normal(own >> np.uint64(48))
            return np.asarray(value + offset * np.float32(heterogeneity))
        whose = element(keys, np.ones(1, dtype=np.int64))
        one_of_two = np.where(whose & np.uint64(1), own & _LOW, own >> _HALF)
        drawn = np.where(whose >> _HALF < np.uint64(heterogeneity * 2**32), one_of_two, first >> _HALF)
        return ((drawn * np.uint64(self.classes)) >> _HALF).astype(np.int64)

    def _inputs(self, keys: UInt64s, y: Array) -> Array:
        """Return x float32 or int64 [n, b, p], without the clients' shifts."""
        if self.vocabulary:
            return self._tokens(keys, y)
        x = self._noise(keys)
        x += self.means.take(y, axis=0) if self.classes else y[..., None] * self.means[0]
        return x

    def _noise(self, keys: UInt64s) -> Array:
        """Return standard normal numbers, each from 16 bits of the words of a key: float32 [..., p]."""
        numbers = int(np.prod(self.shape))
        words = _number_words(keys, -(-numbers // 4))
        return _normal(words.view("<u2")[..., :numbers])

    def _tokens(self, keys: UInt64s, y: Array) -> Int64s:
        """Return tokens [n, b, p]: 8 of 32 bits say whether the class chooses, 24 which token."""
        words = _number_words(keys, -(-self.shape[0] // 2))
        bits = words.view("<u4")[..., : self.shape[0]].astype(np.int64)
        chosen, rest = bits >> 24, bits & 0xFFFFFF
        preferred = self.preferred[y[..., None], rest % _PREFERRED]
        return np.where(chosen < round(256 * self.share), preferred, (rest * self.vocabulary) >> 24)


def _number_words(keys: UInt64s, count: int) -> UInt64s:
    """Return the words of an example's numbers, those after its label's, little-endian: uint64 [..., count]."""
    return element(keys[..., None], np.arange(_LABEL_WORDS, _LABEL_WORDS + count)).astype("<u8", copy=False)


def _normal(places: Array) -> Array:
    """Return the standard normal numbers at places below 2^16: float32, of the same shape."""
    return normal_quantiles().take(places.astype(np.int64))


def _directions(tables: Stream, kinds: Int64s, shape: tuple[int, ...]) -> Floats:
    """Return a random direction of length about 1 for each class [classes, p]; of images, even patches."""
    *above, height, width = (1, *shape)
    image = len(shape) > 1 and height >= 2 * _COARSE and width >= 2 * _COARSE
    coarse = (*above, -(-height // _COARSE), -(-width // _COARSE)) if image else (*above, height, width)
    bits = tables.bits(kinds, _PREFERRED + int(np.prod(coarse)))[:, _PREFERRED:]
    rows = _normal(bits >> np.uint64(48)).reshape(len(kinds), *coarse)
    if image:
        rows = rows.repeat(_COARSE, axis=-2).repeat(_COARSE, axis=-1)[..., :height, :width]
    rows = rows.reshape(len(kinds), -1)
    return np.asarray(rows / np.float32(np.sqrt(rows.shape[1])))


def _sizes(mean: float, sigma: float) -> Int64s:
    """Return equally likely sizes of at least 1: int64 [4096]."""
    law = NormalDist()
    logarithms = np.array([law.inv_cdf((place + 0.5) / _SIZES) for place in range(_SIZES)])
    factors = np.exp(sigma * logarithms)
    sizes: Int64s = np.floor(mean * factors / factors.mean() + 0.5).astype(np.int64)
    return np.maximum(1, sizes)


@dataclass(frozen=True, eq=False)
class MadeExamples:
    """One part of the examples of a made population; a ``core.nouns.ClientDatasets``.

    The client with ordinal 0 has the number ``first``.
    """

    names: Sequence[str]
    recipe: Recipe
    parts: Parts
    part: Part
    first: int = 0

    def sizes(self, ordinals: Int64s) -> Int64s:
        """Return how many examples each client has: int64 [n]."""
        sizes = np.empty(len(ordinals), dtype=np.int64)
        for start in range(0, len(ordinals), _AT_ONCE):
            here = slice(start, start + _AT_ONCE)
            words = self._words(ordinals[here], _SIZE_WORDS)
            sizes[here] = self.parts.of(self.part, self.recipe.sizes_of(words), words[:, 1])[1]
        return sizes

    def labels_at(self, ordinals: Int64s, positions: Int64s) -> Array:
        """Return the labels alone, y of ``gather``."""
        return self.gather(ordinals, positions)[1]

    def gather(self, ordinals: Int64s, positions: Int64s) -> tuple[Array, Array]:
        """Return examples at ``positions`` [n, b] of each client: x [n, b, ...], y [n, b].

        A position of -1 is padding: its row holds some example. Raises IndexError past a client's end.
        """
        words, positions = self._words(ordinals, _CLIENT_WORDS), np.asarray(positions, dtype=np.int64)
        starts, sizes = self.parts.of(self.part, self.recipe.sizes_of(words), words[:, 1])
        if (positions >= sizes[:, None]).any():
            raise IndexError("a position lies past a client's last example")
        return self.recipe.examples(words, starts[:, None] + np.maximum(positions, 0))

    def _words(self, ordinals: Int64s, count: int) -> UInt64s:
        return self.recipe.clients.bits(self.first + np.asarray(ordinals, dtype=np.int64), count)


@dataclass(frozen=True)
class Numbered(Sequence[str]):
    """The names of clients with some numbers, made into strings when they are asked for."""

    numbers: range
    width: int

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Numbered: ...
    def __getitem__(self, index: Any) -> str | Numbered:
        found = self.numbers[index]
        return Numbered(found, self.width) if isinstance(found, range) else f"client-{found:0{self.width}d}"
