"""Whether bytes are an update of the form that a round asks for, checked piece by piece: memory stays flat.

Nothing of an update is interpreted before its header is known to be that of the plan's vector: safetensors begin with
the length of a JSON header that says which array lies where. What passes here can be decoded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from hansa.algorithms.fixed_point import signed
from hansa.algorithms.ring_plan import RingCode
from hansa.core.errors import RefusedError
from hansa.core.layout import NON_FINITE, Array, Layout, weight_lane
from hansa.wire.strict_json import read_json, require_keys, shape_of, whole_number

_HEADER: Final = 1 << 20
"""The most bytes of a header."""
_ARRAYS: Final = 256
"""The most arrays of an update."""
_WINDOW: Final = 1 << 20
"""Bytes that are looked at together: what is made of them stays in the cache."""
_SLACK: Final = 1 + 1e-9
"""What rounding may add to a sum of squares."""
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
NAMES: Final[Mapping[str, str]] = {np.dtype(code).str: name for name, code in _TYPES.items()}
"""The type of an array as numpy names it -> as safetensors do."""
_SIZES: Final[Mapping[str, int]] = {name: np.dtype(code).itemsize for name, code in _TYPES.items()}


@dataclass(frozen=True)
class Wanted:
    """An array that an update must hold; None: any (what a transform made)."""

    dtype: str | None
    shape: tuple[int, ...] | None


@dataclass(frozen=True, order=True)
class Span:
    """Where an array lies in the data."""

    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass
class UpdateCheck:
    """Takes the bytes of one update in order and raises RefusedError as soon as something is wrong.

    ``layout`` is the plan's vector; an evaluation has ``tallies`` instead: metric -> how many numbers, each
    between 0 and ``most`` of it. ``encoded`` is
    the form of what a plan's transforms make of the values: "values" and "side/NAME" -> what they must be; without it
    an update with arrays of a side may have values of any form. ``limits`` are the largest L2 norms of an update of
    weight 1, of those branches that are there: see :func:`require_norms`. With the ``code`` of a plan with privacy the
    values are its integers, whose norm is bounded.

    The verdict does not depend on how the bytes are cut into pieces.
    """

    layout: Layout | None = None
    tallies: Mapping[str, int] | None = None
    most: Mapping[str, float] = field(default_factory=dict)
    encoded: Mapping[str, Wanted] | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    code: RingCode | None = None
    digest: Any = field(default_factory=hashlib.sha256)
    _header: bytearray = field(default_factory=bytearray)
    _spans: list[Span] | None = None
    """The arrays that are not empty, in order; None until the header is known."""
    _at: int = 0
    """The array that is being read."""
    _data: int = 0
    """Bytes of data that were read."""
    _rest: bytearray = field(default_factory=bytearray)
    """The beginning of a number whose end is in the next piece."""
    _lanes: bytearray = field(default_factory=bytearray)
    _entries: int = 0
    """Values that were measured."""
    _squares: dict[str, float] = field(default_factory=dict)
    """Branch -> the sum of the squares of its values."""

    def most_bytes(self) -> int | None:
        """Return how many bytes such an update has at most; None where it may hold arrays of any form."""
        if self.layout is not None and self.layout.size and self.encoded is None:
            return None
        size = _HEADER + 8
        for each in self._wanted(free=[]).values():
            if each.dtype is None or each.shape is None:
                return None
            size += math.prod(each.shape) * _SIZES[each.dtype]
        return size

    def whole(self, content: bytes, sha256: str, *, found: str | None = None) -> None:
        """Check an update that is all there; ``found`` is its digest, where the caller has computed it."""
        if found is None:
            self.digest.update(content)
        self._read(content)
        self._finish(sha256, found or self.digest.hexdigest())

    def feed(self, content: bytes) -> None:
        """Check the next bytes."""
        self.digest.update(content)
        self._read(content)

    def finish(self, sha256: str) -> None:
        """Check that nothing is missing, and that it is what was announced."""
        self._finish(sha256, self.digest.hexdigest())

    def _read(self, content: bytes) -> None:
        rest = memoryview(content)
        if self._spans is None:
            rest = self._read_header(rest)
        if self._spans is not None:
            self._read_data(self._spans, rest)

    def _finish(self, sha256: str, found: str) -> None:
        if found != sha256:
            raise other_digest()
        if self._spans is None or self._at < len(self._spans):
            raise invalid("It ends too early.")
        if self.layout is not None:
            self._check_lanes(self.layout)

    def _read_header(self, content: memoryview) -> memoryview:
        """Take what belongs to the header; return what comes after it."""
        content = self._take(content, 8)
        length = int.from_bytes(self._header[:8], "little")
        if len(self._header) < 8:
            return content
        if length > _HEADER:
            raise invalid("It is no safetensors file.")
        content = self._take(content, 8 + length)
        if len(self._header) == 8 + length:
            self._spans = self._arrays(bytes(self._header[8:]))
        return content

    def _take(self, content: memoryview, until: int) -> memoryview:
        missing = max(0, until - len(self._header))
        self._header += content[:missing]
        return content[missing:]

    def _arrays(self, header: bytes) -> list[Span]:
        """Return where the arrays lie that are not empty. Raises RefusedError unless they are those that are wanted."""
        try:
            spans = spans_of(header)
        except (ValueError, TypeError):
            raise invalid("Its header cannot be read.") from None
        self._check_form({span.name: span for span in spans})
        ends = [0, *(span.end for span in spans)]
        if any(span.begin != end for span, end in zip(spans, ends, strict=False)):
            raise invalid("Its arrays overlap, or leave gaps.")
        return [span for span in spans if span.end > span.begin]

    def _check_form(self, spans: Mapping[str, Span]) -> None:
        wanted = self._wanted(free=[name for name in spans if name.startswith("side/")])
        if spans.keys() != wanted.keys():
            raise invalid(f"It must hold {', '.join(sorted(wanted))}, and nothing else.")
        for name, want in wanted.items():
            span = spans[name]
            if (want.dtype or span.dtype) != span.dtype or (want.shape not in (None, span.shape)):
                shape = "any shape" if want.shape is None else list(want.shape)
                raise invalid(f"{name[:80]} must be {want.dtype or 'numbers'} of shape {shape}.")
            if span.end - span.begin != math.prod(span.shape) * _SIZES[span.dtype]:
                raise invalid(f"The bytes of {name[:80]} are not those of its shape.")

    def _wanted(self, free: list[str]) -> dict[str, Wanted]:
        """Return what an update must hold; ``free`` arrays are those of a side, of any form."""
        if self.layout is None:
            return {f"tallies/{name}": Wanted("F64", (width,)) for name, width in (self.tallies or {}).items()}
        lanes = {"lanes": Wanted("I64", (len(self.layout.lanes),))}
        if not self.layout.size:
            return lanes
        if self.encoded is not None:
            return {**lanes, **self.encoded}
        if not free:
            return {**lanes, "values": Wanted("F32", (self.layout.size,))}
        return {**lanes, "values": Wanted(None, None), **dict.fromkeys(free, Wanted(None, None))}

    def _read_data(self, spans: list[Span], content: memoryview) -> None:
        """Check the numbers that are here, array after array."""
        while len(content):
            if self._at == len(spans):
                raise invalid("It ends too late.")
            span = spans[self._at]
            part = content[: span.end - self._data]
            if span.name == "lanes":
                self._lanes += part
            elif (
                span.dtype.startswith("F") or span.dtype == "BOOL" or (self.code is not None and span.name == "values")
            ):
                self._read_numbers(span, part)
            content = content[len(part) :]
            self._data += len(part)
            self._at += self._data == span.end

    def _read_numbers(self, span: Span, part: memoryview) -> None:
        """Check numbers, of which the first may have begun in an earlier piece and the last may end in a later one."""
        size = _SIZES[span.dtype]
        if self._rest:
            missing = size - len(self._rest)
            self._rest += part[:missing]
            part = part[missing:]
            if len(self._rest) < size:
                return
            self._check_numbers(span, memoryview(bytes(self._rest)))
            self._rest.clear()
        complete = len(part) // size * size
        for begin in range(0, complete, _WINDOW):
            self._check_numbers(span, part[begin : min(begin + _WINDOW, complete)])
        self._rest += part[complete:]

    def _check_numbers(self, span: Span, content: memoryview) -> None:
        numbers = _checked_numbers(span.dtype, content)
        if self.code is not None and span.name == "values":
            self._measure_integers(self.code, numbers)
            return
        metric = span.name.removeprefix("tallies/")
        if metric in self.most and not ((numbers >= 0) & (numbers <= self.most[metric])).all():
            raise invalid(f"A number of {span.name} is not between 0 and {self.most[metric]:g}.")
        if self.layout is None or not self.limits or span.name != "values":
            return
        for name, place in self.layout.slices.items():
            some = numbers[max(0, place.start - self._entries) : max(0, place.stop - self._entries)]
            if name in self.limits and len(some):
                self._squares[name] = self._squares.get(name, 0.0) + sum_of_squares(some)
        self._entries += len(numbers)

    def _measure_integers(self, code: RingCode, numbers: Array) -> None:
        """Add up the squares of integers, which stand modulo 2^b of their branch."""
        for branch in code.branches:
            part = branch.part
            some = numbers[max(0, part.start - self._entries) : max(0, part.stop - self._entries)]
            if some.max(initial=0) >> branch.bits:
                raise invalid(f"An integer of {branch.name} has more than {branch.bits} bits.")
            whole = signed(some, branch.bits).astype(np.float64)
            self._squares[branch.name] = self._squares.get(branch.name, 0.0) + float(np.dot(whole, whole))
        self._entries += len(numbers)

    def _check_lanes(self, layout: Layout) -> None:
        totals, columns = np.frombuffer(bytes(self._lanes), dtype="<i8").tolist(), layout.lane_index
        if NON_FINITE.name in columns and totals[columns[NON_FINITE.name]] == 1:
            raise not_finite()  # such an update is empty and counts nothing: that is the reason to tell
        for lane, total in zip(layout.lanes, totals, strict=True):
            low, high = (round(bound / lane.resolution) for bound in (lane.low, lane.high))
            if total > high and lane.purpose == "weight":
                raise invalid(f"Its {lane.name!r} is above {lane.high:g}, the most that the plan or the server allows.")
            if not low <= total <= high:
                raise invalid(f"Lane {lane.name!r} is outside what it declares.")
        if self.code is not None:
            require_integers(self.code, sum(self._squares.values()))
            return
        weights = {
            name: layout.lanes[columns[weight_lane(name)]].decode(totals[columns[weight_lane(name)]])
            for name in self.limits
        }
        require_norms(self.limits, self._squares, weights)


def spans_of(header: bytes) -> list[Span]:
    """Return where a header says that each array lies, in order. Raises ValueError or TypeError for no header."""
    if not header.startswith(b"{"):
        raise ValueError("a header begins with a brace")
    tables: Any = read_json(header.rstrip(b" "))
    metadata = tables.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise TypeError("metadata are texts")
    if len(tables) > _ARRAYS:
        raise ValueError("too many arrays")
    spans = []
    for name, table in tables.items():
        entry = require_keys(table, ("dtype", "shape", "data_offsets"))
        begin, end = map(whole_number, entry["data_offsets"])
        if entry["dtype"] not in _TYPES or begin > end:
            raise ValueError("no array")
        spans.append(Span(begin, end, name, entry["dtype"], shape_of(entry["shape"])))
    return sorted(spans)


def _checked_numbers(dtype: str, content: memoryview) -> Array:
    """Return the numbers of some bytes. Raises RefusedError unless they are finite, and truth values 0 or 1."""
    numbers: Array = np.frombuffer(content, dtype="|u1" if dtype == "BOOL" else _TYPES[dtype])
    if dtype == "BOOL":
        if numbers.max(initial=0) > 1:
            raise invalid("A truth value is neither 0 nor 1.")
    elif not np.isfinite(numbers).all():
        raise not_finite()
    return numbers


def sum_of_squares(values: Array) -> float:
    """Return the sum of the squares of some values; infinite where it is beyond their type."""
    with np.errstate(over="ignore"):
        return float(np.dot(values, values))


def require_integers(code: RingCode, squares: float) -> None:
    """Raise RefusedError unless integers of which the squares add up to that are no longer than noise is sized for."""
    if code.norm is None or squares > code.norm**2 * _SLACK:
        raise RefusedError(
            "HANSA-REPORT-INVALID",
            rule="Under privacy an update is no longer than the norm that noise is sized for.",
            found="It is longer.",
            action="Clip and round it as the plan says; see docs/reference/client-protocol.md.",
        )


def require_norms(limits: Mapping[str, float], squares: Mapping[str, float], weights: Mapping[str, float]) -> None:
    """Raise RefusedError for an update with a branch that is larger than its limit times its weight.

    A weight below 1 counts as 1, and what weighs nothing holds zeros. All are by the name of the branch.
    """
    for name, limit in limits.items():
        most = limit * max(1.0, weights[name]) if weights[name] > 0 else 0.0
        if math.sqrt(squares.get(name, 0.0)) > most:
            raise invalid(f"Its norm over {name} is above {most:.4g}, the most that the plan or the server allows.")


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


def other_digest() -> RefusedError:
    """Return what to say of an update that is not what was announced."""
    return RefusedError(
        "HANSA-UPLOAD-DIGEST",
        rule="An update has the digest that was announced.",
        found="What arrived has another.",
        action="Send it again from the start.",
    )
