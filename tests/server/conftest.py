"""The PostgreSQL of the store's tests."""

from __future__ import annotations

from tests.store.conftest import postgres

__all__ = ["postgres"]
