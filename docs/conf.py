"""Settings of the documentation's build."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import generate_reference

generate_reference.generate()

project = "Hansa"
author = "the authors of Hansa"
copyright = "the authors of Hansa"  # noqa: A001 - Sphinx's name
version = release = metadata.version("hansa")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    # other projects' names: their documentation is not fetched
    (r"py:.*", r"(numpy|np|np\.random|collections|fractions|pathlib|typing|types|torch|NDArray|np\.ndarray)(\..*)?"),
    # our short names of array types and of mappings
    (r"py:.*", r"(hansa\.core\.\w+\.)?(Array|Floats|Int64s|UInt64s|Bounds|ClientStates|Tallies|Rate|Callback)"),
    # what a protocol is generic over
    (r"py:.*", r"hansa\.core\.ledger\._Release_contra"),
    # rows of the store, which has no page
    (r"py:.*", r"hansa\.store\.records\.\w+"),
    # sections of a plan, which are in the generated reference, and what one room hands another
    (r"py:.*", r"(hansa\.\w+\.\w+\.)?(Privacy|AdaptiveClip|SecureAggregation|RingCode|NoiseOf)"),
    # the marks of a field
    (r"py:.*", r"(hansa\.core\.schema\.)?(Doc|Family|Ge|Gt|Le|Lt|MinLen)"),
]

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3

autodoc_class_signature = "separated"  # a section's fields are in the generated reference, with their help
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {
    name: name for name in ("Array", "Floats", "Int64s", "UInt64s", "Bounds", "ClientStates", "Callback")
}

html_theme = "furo"
html_title = "Hansa"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


def setup(app: Any) -> None:
    """Let docstrings be plain sentences: an asterisk or a bar in them is what it is."""
    app.connect("autodoc-process-docstring", _plain)
    app.connect("autodoc-process-signature", _short)
    app.connect("autodoc-skip-member", _skip)


def _plain(*event: Any) -> None:
    lines: list[str] = event[-1]
    lines[:] = [re.sub(r"(?<![`\\*\w|])([*|])(?=\w)", r"\\\1", line) for line in lines]


def _skip(*event: Any) -> bool | None:
    return True if event[2] in ("__init__", "__new__") else None


def _short(*event: Any) -> tuple[str | None, str | None]:
    """Return a signature and its result with our short names of array types, as they are in the code."""
    signature, result = (each and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", each) for each in event[-2:])
    return signature, result
