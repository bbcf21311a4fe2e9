"""What clients are told of a job: canonical JSON (RFC 8785), named by its SHA-256."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, get_args, get_type_hints

import rfc8785

from hansa.core.errors import RefusedError
from hansa.core.layout import Branch, Lane, Layout, Parameter
from hansa.core.nouns import Signature
from hansa.wire.strict_json import LARGEST as LARGEST_NUMBER
from hansa.wire.strict_json import read_json, require_keys, shape_of, whole_number

FORMAT: Final = 1
"""Version of the descriptor."""
LARGEST: Final = 4 * 2**20
"""The most bytes of a descriptor."""
_KEYS: Final = ("format", "name", "plan", "plan_sha256", "signature", "layout", "population", "operator", "purpose")
_LANE: Final = tuple(each.name for each in fields(Lane))
_PURPOSE: Final = get_type_hints(Lane)["purpose"]


@dataclass(frozen=True, kw_only=True)
class JobDescriptor:
    """A plan with what a client must know beside it. Whoever approves it approves its digest."""

    name: str
    plan: Mapping[str, Any]
    plan_sha256: str
    signature: Signature
    layout: Layout
    """The model as it was submitted: branches without those of hooks, and no lanes."""
    population: str
    operator: str = ""
    purpose: str = ""

    def to_bytes(self) -> bytes:
        """Return the descriptor as canonical JSON."""
        return rfc8785.dumps(
            {
                "format": FORMAT,
                "name": self.name,
                "plan": dict(self.plan),
                "plan_sha256": self.plan_sha256,
                "signature": {**asdict(self.signature), "shape": list(self.signature.shape)},
                "layout": layout_to_mapping(self.layout),
                "population": self.population,
                "operator": self.operator,
                "purpose": self.purpose,
            }
        )

    @property
    def rounds(self) -> int:
        """Return how many rounds the plan has."""
        return whole_number(self.plan["rounds"])

    @classmethod
    def from_bytes(cls, content: bytes) -> JobDescriptor:
        """Return the descriptor in some bytes. Raises RefusedError for anything else."""
        if len(content) > LARGEST:
            raise malformed(f"It has {len(content)} bytes.")
        try:
            read = read_json(content)
            if read.get("format") != FORMAT:
                raise malformed(f"It is of another format than {FORMAT}.")
            return _descriptor(require_keys(read, _KEYS))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise malformed(f"It cannot be read ({type(error).__name__}).") from None


def _descriptor(read: Mapping[str, Any]) -> JobDescriptor:
    texts = {key: _text(read[key]) for key in ("name", "plan_sha256", "population", "operator", "purpose")}
    if not isinstance(read["plan"], dict):
        raise TypeError("a plan is an object")
    whole_number(read["plan"]["rounds"])  # a site looks at it before it reads the plan
    of = require_keys(read["signature"], ("shape", "classes", "integer_inputs", "vocabulary"))
    signature = Signature(
        shape=shape_of(of["shape"]),
        classes=whole_number(of["classes"]),
        integer_inputs=_truth(of["integer_inputs"]),
        vocabulary=whole_number(of["vocabulary"]),
    )
    return JobDescriptor(plan=read["plan"], signature=signature, layout=layout_from_mapping(read["layout"]), **texts)


def layout_to_mapping(layout: Layout) -> dict[str, Any]:
    """Return a layout as tables."""
    return {
        "branches": [
            {"name": branch.name, "parameters": [[each.name, list(each.shape)] for each in branch.parameters]}
            for branch in layout.branches
        ],
        "lanes": [asdict(lane) for lane in layout.lanes],
    }


def layout_from_mapping(tables: Mapping[str, Any]) -> Layout:
    """Return the layout that tables describe. Raises ValueError or TypeError for others."""
    read = require_keys(tables, ("branches", "lanes"))
    if not isinstance(read["branches"], list) or not isinstance(read["lanes"], list):
        raise TypeError("branches and lanes are lists")
    branches = []
    for table in read["branches"]:
        branch = require_keys(table, ("name", "parameters"))
        parameters = tuple(Parameter(_text(name), shape_of(shape)) for name, shape in branch["parameters"])
        branches.append(Branch(_text(branch["name"]), parameters))
    names = [branch.name for branch in branches]
    if len(set(names)) < len(names) or sum(branch.size for branch in branches) > LARGEST_NUMBER:
        raise ValueError("a branch comes twice, or they are too large")
    return Layout(tuple(branches), tuple(_lane(table) for table in read["lanes"]))


def _lane(table: Any) -> Lane:
    lane = Lane(**require_keys(table, _LANE))
    numbers = (lane.low, lane.high, lane.resolution)
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in numbers) or lane.resolution <= 0:
        raise ValueError("a lane has finite bounds and a resolution above 0")
    if lane.purpose not in get_args(_PURPOSE) or not _text(lane.name):
        raise ValueError("a lane has a name and a purpose")
    _truth(lane.weighted)
    return lane


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is a text")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("a truth value is true or false")
    return value


def malformed(found: str) -> RefusedError:
    """Return what to say of a job that cannot be read."""
    return RefusedError(
        "HANSA-REQUEST-INVALID",
        rule="A job is described by canonical JSON of format 1.",
        found=found,
        action="Submit it with `hansa submit` of the same version.",
    )
