"""Whether bytes are an update of the form that a round asks for, checked piece by piece: memory stays flat.

Nothing of an update is interpreted before its header is known to be that of the plan's vector: safetensors begin with
the length of a JSON header that says which array lies where.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from hansa.core.errors import RefusedError
from hansa.core.layout import NON_FINITE, Layout

_HEADER: Final = 1 << 20
"""The most bytes of a header."""
_TYPES: Final[Mapping[str, str]] = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "<i1",
    "U8": "<u1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
    "BOOL": "|b1",
}


@dataclass(frozen=True)
class Wanted:
    """An array that an update must hold; ``shape`` None: any (what a transform made)."""

    dtype: str | None
    shape: tuple[int, ...] | None


@dataclass
class UpdateCheck:
    """Takes the bytes of one update in order and raises RefusedError as soon as something is wrong.

    ``layout`` is the plan's vector; an evaluation has ``tallies`` instead: metric -> how many numbers.
    """

    layout: Layout | None = None
    tallies: Mapping[str, int] | None = None
    digest: Any = field(default_factory=hashlib.sha256)
    _held: bytearray = field(default_factory=bytearray)
    _arrays: list[tuple[int, int, str, str]] = field(default_factory=list)
    """(begin, end, name, dtype) of each array in the data, in order."""
    _data: int = 0
    _header: bool = False
    _lanes: bytearray = field(default_factory=bytearray)

    def whole(self, content: bytes, sha256: str) -> None:
        """Check an update that is all there."""
        self.feed(content)
        self.finish(sha256)

    def feed(self, content: bytes) -> None:
        """Check the next bytes."""
        self.digest.update(content)
        self._held += content
        if not self._header and not self._read_header():
            return
        self._read_data()

    def finish(self, sha256: str) -> None:
        """Check that nothing is missing, and that it is what was announced."""
        if self.digest.hexdigest() != sha256:
            raise RefusedError(
                "HANSA-UPLOAD-DIGEST",
                rule="An update has the digest that was announced.",
                found="What arrived has another.",
                action="Send it again from the start.",
            )
        if not self._header or self._held or (self._arrays and self._data != self._arrays[-1][1]):
            raise invalid("It ends too early, or too late.")
        if self.layout is not None:
            self._check_lanes(self.layout)

    def _read_header(self) -> bool:
        if len(self._held) < 8:
            return False
        length = int.from_bytes(self._held[:8], "little")
        if length > _HEADER:
            raise invalid("It is no safetensors file.")
        if len(self._held) < 8 + length:
            return False
        try:
            described = json.loads(bytes(self._held[8 : 8 + length]))
            arrays = {name: _placed(entry) for name, entry in described.items() if name != "__metadata__"}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise invalid("Its header cannot be read.") from None
        self._check_header(arrays)
        self._arrays = sorted((begin, end, name, dtype) for name, (dtype, _, begin, end) in arrays.items())
        ends = [0, *(end for _, end, _, _ in self._arrays)]
        if any(begin != end for (begin, _, _, _), end in zip(self._arrays, ends, strict=False)):
            raise invalid("Its arrays overlap, or leave gaps.")
        del self._held[: 8 + length]
        self._header = True
        return True

    def _check_header(self, arrays: Mapping[str, tuple[str, tuple[int, ...], int, int]]) -> None:
        wanted = self._wanted(any(name.startswith("side/") for name in arrays))
        unknown = [name for name in arrays if name not in wanted and not (self.layout and name.startswith("side/"))]
        if unknown or wanted.keys() - arrays.keys():
            raise invalid(f"It must hold {', '.join(sorted(wanted))}.")
        for name, (dtype, shape, begin, end) in arrays.items():
            want = wanted.get(name, Wanted(None, None))
            if dtype not in _TYPES or (want.dtype or dtype) != dtype or (want.shape or shape) != shape:
                raise invalid(f"{name} must be {want.dtype or 'numbers'} {list(want.shape or ())}.")
            if end - begin != math.prod(shape) * np.dtype(_TYPES[dtype]).itemsize:
                raise invalid(f"The bytes of {name} are not those of its shape.")

    def _wanted(self, compressed: bool) -> dict[str, Wanted]:  # noqa: FBT001 - what the header says
        if self.layout is None:
            return {f"tallies/{name}": Wanted("F64", (width,)) for name, width in (self.tallies or {}).items()}
        lanes = {"lanes": Wanted("I64", (len(self.layout.lanes),))}
        if not self.layout.size:
            return lanes
        return lanes | {"values": Wanted(None, None) if compressed else Wanted("F32", (self.layout.size,))}

    def _read_data(self) -> None:
        """Check all whole numbers that are here."""
        for begin, end, name, dtype in self._arrays:
            if end <= self._data or not self._held:
                continue
            size = np.dtype(_TYPES[dtype]).itemsize
            count = min(end - self._data, len(self._held)) // size * size
            if self._data < begin or not count:
                return
            part = bytes(self._held[:count])
            if dtype.startswith("F") and not np.isfinite(np.frombuffer(part, dtype=_TYPES[dtype])).all():
                raise not_finite()
            if name == "lanes":
                self._lanes += part
            self._data += count
            del self._held[:count]
            if self._data < end:
                return

    def _check_lanes(self, layout: Layout) -> None:
        totals = np.frombuffer(bytes(self._lanes), dtype="<i8").tolist()
        for lane, total in zip(layout.lanes, totals, strict=True):
            low, high = (round(bound / lane.resolution) for bound in (lane.low, lane.high))
            if not low <= total <= high:
                raise invalid(f"Lane {lane.name!r} is outside what it declares.")
            if lane.name == NON_FINITE.name and total:
                raise not_finite()


def _placed(entry: Mapping[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    begin, end = entry["data_offsets"]
    shape = tuple(int(length) for length in entry["shape"])
    if min((*shape, int(begin), int(end) - int(begin)), default=0) < 0:
        raise ValueError("negative")
    return str(entry["dtype"]), shape, int(begin), int(end)


def invalid(found: str) -> RefusedError:
    """Return what to say of an update of another form."""
    return RefusedError(
        "HANSA-REPORT-INVALID",
        rule="An update has the form that the plan's layout gives it.",
        found=found,
        action="Check that client and plan are of the same version; the update was not counted.",
    )


def not_finite() -> RefusedError:
    """Return what to say of numbers that are not finite."""
    return RefusedError(
        "HANSA-REPORT-NOT-FINITE",
        rule="An update holds finite numbers only.",
        found="Some are infinite or not a number.",
        action="Look at the client's data and learning rate; the update was not counted.",
    )
