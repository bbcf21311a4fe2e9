"""What holds for every test: the user's cache is not touched, and what auto chose for others is not read."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HANSA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
