"""What a submitted model file must be, read as it arrives: flat memory, whatever the model's size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hansa.core.errors import RefusedError
from hansa.wire.server_models import unfit

HEADER: Final = 64 * 1024
"""The most bytes of a model file's header; a model blob has at most three tensors."""

_MODEL: Final = "model"
_FEATURES: Final = ("features/center", "features/scale")


@dataclass(frozen=True)
class ModelHeader:
    """What is in a model file: how many numbers of the model, how many features are scaled (None: no scaling)."""

    size: int
    features: int | None
    begins: int
    """Where the tensors begin, in bytes from the start of the file."""
    places: Mapping[str, tuple[int, int]]
    """Tensor -> its first byte and the one after its last, from the start of the file."""


def read_header(content: bytes, total: int) -> ModelHeader:
    """Return what the first bytes of a model file of ``total`` bytes say. Raises RefusedError for any other file."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 0 < length <= HEADER or len(content) < 8 + length:
        raise unfit("It is no safetensors file, or its header is too long.")
    try:
        tables = json.loads(content[8 : 8 + length])
        tensors = {name: table for name, table in tables.items() if name != "__metadata__"}
        begins = 8 + length
        shapes = {name: _shape(table) for name, table in tensors.items()}
        places = {
            name: (begins + table["data_offsets"][0], begins + table["data_offsets"][1])
            for name, table in tensors.items()
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise unfit(f"Its header cannot be read ({type(error).__name__}).") from None
    features = shapes.get(_FEATURES[0])
    if set(shapes) - {_MODEL, *_FEATURES} or _MODEL not in shapes or features != shapes.get(_FEATURES[1]):
        raise unfit('It must hold float32 "model", and "features/center" and "features/scale" or neither.')
    _check_places(shapes, places, begins, total)
    return ModelHeader(shapes[_MODEL], features, begins, places)


def _shape(table: Mapping[str, Any]) -> int:
    (length,) = table["shape"]
    if table["dtype"] != "F32" or not isinstance(length, int) or length < 0:
        raise ValueError("no vector of float32")
    return length


def _check_places(shapes: Mapping[str, int], places: Mapping[str, tuple[int, int]], begins: int, total: int) -> None:
    """Raise RefusedError unless the tensors fill the file one after another."""
    ends = begins
    for name, (start, stop) in sorted(places.items(), key=lambda place: place[1]):
        if start != ends or stop - start != 4 * shapes[name]:
            raise unfit(f"The place of {name!r} in it is not as its shape says.")
        ends = stop
    if ends != total:
        raise unfit(f"It has {total} bytes where its header says {ends}.")


async def checked(chunks: AsyncIterator[bytes], *, sha256: str, total: int) -> AsyncIterator[bytes]:
    """Yield what arrives, and raise RefusedError before its end unless it is the announced model, all of it finite."""
    digest, received, begins = hashlib.sha256(), 0, None
    head, rest = b"", b""
    async for chunk in chunks:
        digest.update(chunk)
        received += len(chunk)
        if received > total:
            break
        if begins is None:
            head += chunk
            begins, data = _begun(head, total)
        else:
            data = chunk
        rest = _finite(rest + data)
        yield chunk
    if begins is None or received != total or digest.hexdigest() != sha256:
        raise RefusedError(
            "HANSA-UPLOAD-DIGEST",
            rule="A model is uploaded under its SHA-256, with its length.",
            found="What arrived has another digest or length.",
            action="Upload it again.",
        )


def _begun(head: bytes, total: int) -> tuple[int | None, bytes]:
    """Return where the tensors begin, and what of them is there, once the header is; None before."""
    length = int.from_bytes(head[:8], "little") if len(head) >= 8 else HEADER
    if len(head) < 8 + min(length, HEADER) and len(head) < total:
        return None, b""
    begins = read_header(head, total).begins
    return begins, head[begins:]


def _finite(content: bytes) -> bytes:
    """Raise RefusedError where a number is not finite; return the bytes that are no whole number yet."""
    whole = len(content) // 4 * 4
    if not np.isfinite(np.frombuffer(content[:whole], dtype="<f4")).all():
        raise unfit("It holds numbers that are not finite.")
    return content[whole:]
