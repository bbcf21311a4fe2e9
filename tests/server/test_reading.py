"""Sealed updates read piece by piece."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import tracemalloc

import numpy as np
import pytest

from hansa.core.errors import StoreError
from hansa.server.reading import BrokenUpdateError, SealedUpdate, UpdateColumns
from hansa.server.rounds_at_rest import binding, part_name
from hansa.store.blobs import LocalBlobs
from hansa.store.records import Report, RoundKey
from hansa.store.sealing import RECORD, seal

KEY = bytes(range(32))
ROUND = RoundKey("run", "training", 1, 1)
SIZE = 600_000
LANES = np.array([1, 2, 3], dtype=np.int64)
CUTS = (1_100_003, 2_000_001)


def update_of(values, order=("lanes", "values")):
    """Return safetensors with the arrays in some order: other clients than Hansa's may choose theirs."""
    arrays = {"lanes": ("I64", LANES), "values": ("F32", values)}
    header, place = {}, 0
    for name in order:
        kind, array = arrays[name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [place, place + array.nbytes]}
        place += array.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + b"".join(arrays[name][1].tobytes() for name in order)


async def kept(folder, content, cuts=CUTS, sha256=None):
    """Keep an update in sealed parts, with one behind them that an earlier try left; return it to be read."""
    blobs, digest = LocalBlobs(folder), sha256 or hashlib.sha256(content).hexdigest()
    edges = [0, *cuts, len(content)]
    parts = [content[start:stop] for start, stop in itertools.pairwise(edges)]
    for number, part in enumerate([*parts, b"left over"]):
        sealed = b"".join(seal(KEY, binding(ROUND, "c", digest, number), [part]))
        await blobs.put_bytes(part_name(ROUND, "c", digest, number), sealed)
    return SealedUpdate(blobs, KEY, ROUND, Report(ROUND, "c", 0, digest, len(content), "", 0.0))


async def columns(update, step=123_457):
    reader = UpdateColumns(update)
    await reader.begin()
    pieces = [await reader.columns(min(step, SIZE - start)) for start in range(0, SIZE, step)]
    return np.concatenate(pieces), await reader.end()


@pytest.mark.parametrize("order", [("lanes", "values"), ("values", "lanes")])
@pytest.mark.parametrize("cuts", [(), CUTS])
def test_the_columns_of_an_update_are_its_values_whatever_its_parts(tmp_path, order, cuts):
    values = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)

    async def work():
        content = update_of(values, order)
        found, lanes = await columns(await kept(tmp_path, content, cuts))
        np.testing.assert_array_equal(found, values)
        np.testing.assert_array_equal(lanes, LANES)
        assert await (await kept(tmp_path, content, cuts)).whole() == content

    asyncio.run(work())


@pytest.mark.parametrize("cuts", [(), CUTS])
def test_an_update_is_in_memory_once_while_it_is_read(tmp_path, cuts):
    async def work():
        content = update_of(np.zeros(8 * SIZE, dtype=np.float32))
        update = await kept(tmp_path, content, cuts)
        size, few = len(content), 5 * RECORD
        tracemalloc.start()
        try:
            assert await update.whole() == content
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert size < most < size + few < 2 * size

    asyncio.run(work())


def test_what_was_not_acknowledged_is_not_counted(tmp_path):
    async def work():
        values = np.zeros(SIZE, dtype=np.float32)
        with pytest.raises(BrokenUpdateError):
            await columns(await kept(tmp_path, update_of(values), sha256="0" * 64))
        values[-1] = np.nan
        with pytest.raises(BrokenUpdateError):
            await columns(await kept(tmp_path, update_of(values)))
        update = await kept(tmp_path, update_of(np.zeros(SIZE - 1, dtype=np.float32)))
        with pytest.raises(BrokenUpdateError):
            await columns(update)  # it ends too early
        update = await kept(tmp_path, update_of(np.zeros(SIZE + 1, dtype=np.float32)))
        with pytest.raises(BrokenUpdateError):
            await columns(update)  # more behind it than lanes

    asyncio.run(work())


def test_a_part_that_is_gone_or_another_is_refused(tmp_path):
    async def work():
        content = update_of(np.zeros(SIZE, dtype=np.float32))
        update = await kept(tmp_path, content)
        names = [part_name(ROUND, "c", update.report.sha256, number) for number in (0, 1)]
        sealed = b"".join([chunk async for chunk in update.blobs.read(names[1])])
        await update.blobs.put_bytes(names[0], sealed)
        with pytest.raises(StoreError, match="Sealed bytes") as caught:
            await columns(update)
        assert caught.value.code == "HANSA-SEAL-BROKEN"
        update = await kept(tmp_path, content)
        await update.blobs.delete(names[1])
        with pytest.raises(StoreError) as caught:
            await columns(update)
        assert caught.value.code == "HANSA-NOT-FOUND"

    asyncio.run(work())
