"""What clients are told of a job: canonical JSON (RFC 8785), named by its SHA-256."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import rfc8785

from hansa.core.errors import RefusedError
from hansa.core.layout import Branch, Lane, Layout, Parameter
from hansa.core.nouns import Signature

FORMAT: Final = 1
"""Version of the descriptor."""
LARGEST: Final = 4 * 2**20
"""The most bytes of a descriptor."""


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

    @classmethod
    def from_bytes(cls, content: bytes) -> JobDescriptor:
        """Return the descriptor in some bytes. Raises RefusedError for anything else."""
        if len(content) > LARGEST:
            raise malformed(f"It has {len(content)} bytes.")
        try:
            read = json.loads(content)
            if read.pop("format") != FORMAT:
                raise malformed(f"It is of another format than {FORMAT}.")
            of = read.pop("signature")
            signature = Signature(
                shape=tuple(int(length) for length in of["shape"]),
                classes=int(of["classes"]),
                integer_inputs=bool(of["integer_inputs"]),
                vocabulary=int(of["vocabulary"]),
            )
            layout = layout_from_mapping(read.pop("layout"))
            described = cls(signature=signature, layout=layout, **read)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise malformed(f"It cannot be read ({type(error).__name__}).") from None
        texts = (described.name, described.plan_sha256, described.population, described.operator, described.purpose)
        if not isinstance(described.plan, dict) or not all(isinstance(text, str) for text in texts):
            raise malformed("A key holds another type of value.")
        return described


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
    """Return the layout that tables describe. Raises ValueError, TypeError or KeyError for others."""
    branches = tuple(
        Branch(
            str(branch["name"]),
            tuple(Parameter(str(name), tuple(int(length) for length in shape)) for name, shape in branch["parameters"]),
        )
        for branch in tables["branches"]
    )
    if any(length < 0 for branch in branches for each in branch.parameters for length in each.shape):
        raise ValueError("a length is negative")
    return Layout(branches, tuple(Lane(**lane) for lane in tables["lanes"]))


def malformed(found: str) -> RefusedError:
    """Return what to say of a job that cannot be read."""
    return RefusedError(
        "HANSA-REQUEST-INVALID",
        rule="A job is described by canonical JSON of format 1.",
        found=found,
        action="Submit it with `hansa submit` of the same version.",
    )
