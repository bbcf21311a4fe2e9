"""Transforms that make updates smaller and are decoded row by row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np

from hansa.algorithms.rotation import hadamard, padded, signs
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
        blocks = self._rotate(padded(batch.values, self.block), context.assignment.round, context.streams)
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
        turned = hadamard(blocks) * self._signs(blocks.shape[1], assignment.round, streams)
        values = turned.reshape(len(batch), -1)[:, : batch.layout.size]
        side = {name: array for name, array in batch.side.items() if name != "scales"}
        return replace(batch, values=np.ascontiguousarray(values), side=side)

    def _rotate(self, blocks: Floats, round_number: int, streams: Streams) -> Floats:
        return hadamard(blocks * self._signs(blocks.shape[1], round_number, streams))

    def _signs(self, blocks: int, round_number: int, streams: Streams) -> Floats:
        return signs(blocks * self.block, round_number, streams).reshape(blocks, self.block)
