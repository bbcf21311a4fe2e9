"""Settings of the documentation's build."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

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
    (r"py:.*", r"(numpy|np|np\.random|collections|pathlib|typing|types|torch|NDArray|np\.ndarray)(\..*)?"),
    # our short names of array types and of mappings
    (r"py:.*", r"(hansa\.core\.\w+\.)?(Array|Floats|Int64s|UInt64s|Bounds|ClientStates|Tallies|Rate|Callback)"),
]

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "Hansa"
html_static_path: list[str] = []
html_show_sphinx = False
html_show_copyright = False
