"""The code that a plan from outside may name: what the site has allowed, and the very files that it allowed.

Inside ``allowing(...)`` the registry refuses everything else before it is imported. What an allowance names is looked
up without importing it: it must be the recorded file, and never lie in the working directory.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from hansa.core.errors import RefusedError

_OWN: Final = "hansa"
_HOME: Final = Path(__file__).resolve().parents[1]
_NAMED: Final = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*|\*)")
_CODE: Final = re.compile(r"\s*[^\W\d][\w.]*\s*:\s*[^\W\d][\w.]*\s*")
"""What looks as if it named code, wherever it stands in a plan."""
_SOURCES: Final = frozenset({".py", ".pyc", ".so", ".pyd"})
_NO_CODE: Final = ("name", "features")
"""Sections of a plan whose texts are titles, columns and categories."""


@dataclass(frozen=True)
class Allowance:
    """What a site allows: ``"module:name"``, or ``"module:*"`` for what the module itself defines.

    The record says which files were meant: ``sha256`` is over the module, or over the whole package that it is in.
    Hansa's own modules need none.
    """

    pattern: str
    distribution: str = ""
    version: str = ""
    sha256: str = ""


DEFAULT: Final = (Allowance("hansa.training.linear:*"),)
"""What is allowed without a policy: Hansa's own linear models."""

_IN_FORCE: ContextVar[tuple[Allowance, ...] | None] = ContextVar("allowed", default=None)


@contextmanager
def allowing(allowances: Sequence[Allowance]) -> Iterator[None]:
    """Let names resolve through these allowances only, inside the block and in this thread."""
    token = _IN_FORCE.set(tuple(allowances))
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


def is_guarded() -> bool:
    """Return whether an allow-list is in force."""
    return _IN_FORCE.get() is not None


@dataclass(frozen=True)
class _Files:
    """A file, or all code below a folder."""

    root: Path
    only: Path | None

    def digest(self) -> str:
        """Return SHA-256 over the names and contents of the code."""
        whole = hashlib.sha256()
        for path in [self.only] if self.only is not None else sorted(self.root.rglob("*")):
            if path.suffix in _SOURCES and "__pycache__" not in path.parts and path.is_file():
                status = path.stat()
                content = _content_digest(path, status.st_mtime_ns, status.st_size, status.st_ino)
                whole.update(f"{path.relative_to(self.root)}\0{content}\n".encode())
        return whole.hexdigest()


def allowance_for(target: str) -> Allowance:
    """Return what allows a name, of which nothing has been imported.

    Raises RefusedError: HANSA-CODE-FORBIDDEN where nothing does, HANSA-CODE-CHANGED where the file is another.
    """
    match = _NAMED.fullmatch(target)
    if match is None or match["name"] == "*":
        raise _forbidden(f"{target!r} is no 'package.module:name'")
    named = f"{match['module']}:*"
    allowance = next((each for each in _IN_FORCE.get() or () if each.pattern in (target, named)), None)
    if allowance is None:
        raise _forbidden(f"{target!r} is not on it")
    if allowance.pattern == named and match["name"].startswith("_"):
        raise _forbidden(f"{target!r} is private to its module")
    _check(match["module"], allowance)
    return allowance


def refuse_borrowed(target: str, found: Any, allowance: Allowance) -> None:
    """Raise RefusedError for what a module allowed as a whole has itself imported from elsewhere."""
    module = target.partition(":")[0]
    if allowance.pattern.endswith(":*") and getattr(found, "__module__", None) != module:
        raise _forbidden(f"{target!r} is not defined in {module}")


def refuse_named(tables: Mapping[str, Any]) -> None:
    """Raise RefusedError for the first code named anywhere in a plan's tables that is not allowed."""
    for key, value in tables.items():
        if key not in _NO_CODE:
            for target in _named_in(value):
                allowance_for(target)


def record(pattern: str) -> Allowance:
    """Return the allowance of a pattern, with the files that it means now. Raises RefusedError where there are none."""
    match = _NAMED.fullmatch(pattern)
    if match is None:
        raise _forbidden(f"{pattern!r} is neither 'package.module:name' nor 'package.module:*'")
    if _is_own(match["module"]):
        _check(match["module"], Allowance(pattern))
        return Allowance(pattern)
    top = match["module"].partition(".")[0]
    distribution = next(iter(metadata.packages_distributions().get(top, ())), "")
    version = metadata.version(distribution) if distribution else ""
    return Allowance(pattern, distribution, version, _files(match["module"]).digest())


def _named_in(value: Any) -> Iterator[str]:
    if isinstance(value, str) and _CODE.fullmatch(value):
        yield value
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named_in(key)
            if key in ("kind", "factory", "source", "recipe") and isinstance(item, str) and ":" in item:
                yield item
            else:
                yield from _named_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named_in(item)


def _check(module: str, allowance: Allowance) -> None:
    """Raise RefusedError unless importing a module would run the files that were allowed."""
    files = _files(module)
    if _is_own(module):
        if not files.root.is_relative_to(_HOME):
            raise _changed(module, "it lies outside of Hansa")
        return
    if not allowance.sha256:
        raise _forbidden(f"{allowance.pattern!r} is on it without a record of its files")
    if allowance.distribution and _version(allowance.distribution) != allowance.version:
        raise _changed(module, f"{allowance.distribution} is no longer of version {allowance.version}")
    if files.digest() != allowance.sha256:
        raise _changed(module, "its files changed, or others are found in their place")


def _is_own(module: str) -> bool:
    return module.partition(".")[0] == _OWN


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _files(module: str) -> _Files:
    """Return what importing a module may run, found as an import would find it: its file, or its whole package.

    Raises RefusedError for what is not a file, and for what lies in the working directory.
    """
    path: Any = None
    found: _Files | None = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        spec = _spec(name, path) if depth == 1 or path is not None else None
        if spec is None or (spec.origin is None and spec.submodule_search_locations is None):
            raise _forbidden(f"There is no module {name!r} to be found without running code")
        if spec.origin is not None and not Path(spec.origin).is_file():
            raise _forbidden(f"{name!r} is not a file")
        path = spec.submodule_search_locations
        if found is None and spec.origin is not None:
            origin = Path(spec.origin).resolve()
            found = _Files(origin.parent, None if path is not None else origin)
            if not _is_own(module) and Path.cwd().resolve() == (origin.parent.parent if path else origin.parent):
                raise _forbidden(f"{name!r} lies in the working directory")
    if found is None:
        raise _forbidden(f"{module!r} is not a file")
    return found


def _spec(name: str, path: Any) -> Any:
    """Return what an import of a module would run, without running anything."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return getattr(loaded, "__spec__", None)
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = None if find is None else find(name, path)
        if spec is not None:
            return spec
    return None


@lru_cache(maxsize=4096)
def _content_digest(path: Path, changed: int, size: int, number: int) -> str:  # noqa: ARG001 - what tells a new file
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forbidden(found: str) -> RefusedError:
    return RefusedError(
        "HANSA-CODE-FORBIDDEN",
        rule="A plan from outside names only code that the site's policy allows.",
        found=f"{found}.",
        action="Have the site allow it (hansa client allow PACKAGE.MODULE:NAME), or ask for another plan.",
    )


def _changed(module: str, why: str) -> RefusedError:
    return RefusedError(
        "HANSA-CODE-CHANGED",
        rule="Allowed code is the files that were allowed.",
        found=f"{module!r} is not: {why}.",
        action="Look at what changed, then allow it anew: hansa client allow PACKAGE.MODULE:NAME.",
    )
