"""The page of guarantees names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "explanation" / "privacy-guarantees.md"


def test_every_sentence_of_the_guarantees_has_a_test() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!---|sentence)", line)]
    assert len(rows) > 15
    for row in rows:
        found = re.fullmatch(r"\| .+\. \| `(tests/[\w/]+\.py)::(\w+)` \|", row)
        assert found is not None, row
        tree = ast.parse((REPOSITORY / found[1]).read_text(encoding="utf-8"))
        assert found[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row
