"""httpx without its own command line, which would load click, rich and pygments: 3 MB of a client at rest."""

from __future__ import annotations

import sys

_COMMAND = "httpx._main"
_absent = "httpx" not in sys.modules and _COMMAND not in sys.modules
if _absent:
    sys.modules[_COMMAND] = None  # type: ignore[assignment]  # how an import is told that there is no such module
try:
    import httpx
finally:
    if _absent:
        del sys.modules[_COMMAND]

__all__ = ["httpx"]
