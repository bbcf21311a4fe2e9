"""The databases of the store's tests."""

from __future__ import annotations

from tests.store.conftest import database, migrated_file, postgres, run_on

__all__ = ["database", "migrated_file", "postgres", "run_on"]
