"""What the database refuses, as errors of Hansa."""

from __future__ import annotations

import errno
from typing import Final, NoReturn

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from hansa.core.errors import HansaError, StoreConflictError, StoreError

_OTHERS_FIRST: Final = frozenset({"40001", "40P01", "55P03"})
"""PostgreSQL: serialisation failure, deadlock, a lock that was waited for too long."""
_GONE: Final = ("08", "57P")
"""PostgreSQL: the connection broke, the server stops or starts."""
_FULL: Final = frozenset({"53100", "disk is full", "disk I/O error"})
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def reraise(error: SQLAlchemyError) -> NoReturn:
    """Raise an error of the database as one of Hansa; one that is a bug as it is."""
    told = translated(error)
    if told is None:
        raise error
    raise told from error


def translated(error: SQLAlchemyError) -> HansaError | None:
    """Return what to raise for an error of the database, or None for one that is a bug."""
    if isinstance(error, PoolTimeoutError):
        return busy()
    if not isinstance(error, DBAPIError):
        return None
    state, said = getattr(error.orig, "sqlstate", None) or "", str(error.orig)
    if isinstance(error, IntegrityError) or state in _OTHERS_FIRST:
        return StoreConflictError("A row that this one must agree with")
    if state in _FULL or any(words in said for words in _FULL):
        return full()
    gone = error.connection_invalidated or state.startswith(_GONE) or "connection" in said or "locked" in said
    return busy() if gone else None


def of_disk(error: OSError) -> StoreError | None:
    """Return what to raise for an error of the file system, or None for one that is not about space."""
    return full() if error.errno in _NO_SPACE else None


def full() -> StoreError:
    """Return the error that the disk is full."""
    return StoreError(
        "HANSA-SERVER-STORAGE",
        rule="What is acknowledged is on disk first.",
        found="The server's disk is full or cannot be written.",
        action="Make room on it; what was acknowledged is kept, and callers may try again.",
    )


def busy() -> StoreError:
    """Return the error that the database does not answer now."""
    return StoreError(
        "HANSA-SERVER-BUSY",
        rule="The server works while its database answers.",
        found="The database does not answer now.",
        action="Try again later; nothing that was acknowledged is lost.",
    )


def missing(what: str) -> StoreError:
    """Return the error that something is not there."""
    return StoreError(
        "HANSA-NOT-FOUND",
        rule="What is asked for exists.",
        found=f"There is no {what}.",
        action="Check its name; it may have been removed.",
    )
