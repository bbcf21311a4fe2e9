"""Transforms that make updates smaller and are decoded row by row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, ClassVar, Literal

import numpy as np

from hansa.algorithms.transforms import Identity
from hansa.core.layout import Array, Floats
from hansa.core.nouns import Assignment, Batch, ClientContext
from hansa.core.schema import Doc
from hansa.core.streams import Streams


@dataclass(frozen=True, kw_only=True)
class Int8Rotation(Identity):
    """One byte an entry: random signs, Walsh-Hadamard rotation, then unbiased rounding to 255 levels a block.

    The rotation spreads large entries, so that a block's largest entry sets fine levels for all. The
    signs are the same for all clients of a round and public; the rounding's coins are the client's own.
    Source: Suresh, Yu, Kumar, McMahan 2017, "Distributed mean estimation with limited communication",
    sections 2 and 3, https://arxiv.org/abs/1611.00429.
    """

    linear: ClassVar[bool] = False

    block: Annotated[
        Literal[64, 256, 1024, 4096, 16384], Doc("entries that are rotated together and share one scale")
    ] = 4096

    def encode(self, batch: Batch, context: ClientContext, states: dict[str, Array]) -> Batch:  # noqa: ARG002 - the transform protocol
        """Return int8 values [n, padded] and side arrays "scales" float32 [n, blocks]."""
        blocks = self._rotate(_padded(batch.values, self.block), context.assignment.round, context.streams)
        scales = np.abs(blocks).max(axis=2) / np.float32(127)
        levels = blocks / np.maximum(scales, np.finfo(np.float32).tiny)[..., None]
        coins = context.streams.of("rounding", context.assignment.round)
        uniform = coins.uniform(context.clients.ordinals, blocks[0].size).reshape(blocks.shape)
        rounded = np.clip(np.floor(levels + uniform), -127, 127).astype(np.int8)
        return replace(batch, values=rounded.reshape(len(batch), -1), side={**batch.side, "scales": scales})

    def decode_rows(self, batch: Batch, assignment: Assignment, streams: Streams) -> Batch:
        """Return float32 values [n, d]."""
        scales = batch.side["scales"]
        blocks = batch.values.reshape(len(batch), -1, self.block) * scales[..., None]
        turned = _hadamard(blocks) * self._signs(blocks.shape[1], assignment.round, streams)
        values = turned.reshape(len(batch), -1)[:, : batch.layout.size]
        side = {name: array for name, array in batch.side.items() if name != "scales"}
        return replace(batch, values=np.ascontiguousarray(values), side=side)

    def _rotate(self, blocks: Floats, round_number: int, streams: Streams) -> Floats:
        return _hadamard(blocks * self._signs(blocks.shape[1], round_number, streams))

    def _signs(self, blocks: int, round_number: int, streams: Streams) -> Floats:
        words = streams.of("rotation", round_number).coins().words(-(-blocks * self.block // 64))
        bits = np.unpackbits(words.astype("<u8").view(np.uint8))[: blocks * self.block]
        return (1 - 2 * bits.astype(np.float32)).reshape(blocks, self.block)


def _padded(values: Floats, block: int) -> Floats:
    """Return values [n, d] with zeros at the end, as [n, blocks, block]."""
    count, size = values.shape
    blocks = -(-size // block)
    padded = np.zeros((count, blocks * block), dtype=np.float32)
    padded[:, :size] = values
    return padded.reshape(count, blocks, block)


def _hadamard(blocks: Floats) -> Floats:
    """Return the orthonormal Walsh-Hadamard transform of the last axis, its own inverse, as two products."""
    size = blocks.shape[-1]
    left = 1 << (size.bit_length() - 1) // 2
    right = size // left
    square = blocks.reshape(*blocks.shape[:-1], left, right)
    turned = _hadamard_matrix(left) @ square @ _hadamard_matrix(right)
    return (turned.reshape(blocks.shape) / np.float32(np.sqrt(size))).astype(np.float32, copy=False)


@cache
def _hadamard_matrix(size: int) -> Floats:
    if size == 1:
        return np.ones((1, 1), dtype=np.float32)
    half = _hadamard_matrix(size // 2)
    matrix: Floats = np.block([[half, half], [half, -half]]).astype(np.float32)
    return matrix
