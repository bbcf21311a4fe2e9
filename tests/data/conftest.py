"""Small files of every kind that the data room reads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(os.environ.get("HANSA_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Keep every test's cache to itself."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HANSA_CACHE", str(folder))
    return folder


@pytest.fixture
def mnist_path():
    path = SHARED / "mnist.npz"
    if not path.is_file():
        pytest.skip("mnist.npz is not here; set HANSA_SHARED_DATA")
    return str(path)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a text file and returns its path."""

    def write_text(name, text, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, **{"encoding": "utf-8", **options})
        return str(path)

    return write_text


@pytest.fixture
def save(tmp_path):
    """Return a function that writes an .npz archive and returns its path."""

    def save_arrays(name="arrays.npz", *, compressed=False, **arrays):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        return str(path)

    return save_arrays


@pytest.fixture
def table(write):
    """Return the path of a table of two clients with gaps, a category and a label."""
    return write(
        "table.csv",
        "site,age,smoker,outcome\n"
        "b,50,yes,ill\nb,,no,well\nb,54,no,ill\nb,52,?,well\n"
        "a,30,no,well\na,34,yes,ill\na,NA,no,well\na,32,yes,ill\n",
    )


@pytest.fixture
def everything():
    """Return a function that returns all examples of each client of a part: a list of (x, y)."""

    def read(part):
        sizes = part.sizes(np.arange(len(part.names)))
        batches = [part.gather(np.array([client]), np.arange(size)[None]) for client, size in enumerate(sizes)]
        return [(x[0], y[0]) for x, y in batches]

    return read
