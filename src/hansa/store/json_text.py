"""JSON as it is kept: short, the same text for the same value, and no number that is not finite."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def dump(value: Any) -> str:
    """Return a value as JSON. Raises ValueError for what is not finite: no database would give it back."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def digest(value: Any) -> str:
    """Return the SHA-256 of a value, whatever the order of its keys."""
    content = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
