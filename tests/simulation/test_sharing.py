"""Objects shared between processes of one machine: mapped, not copied, equal and read-only."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, boolean_dtypes, floating_dtypes, integer_dtypes

from hansa.core.errors import RunError
from hansa.core.own_folder import LOCK
from hansa.simulation import memory, sharing
from hansa.simulation.sharing import Folder, Packed, share, shared

NUMBERS = st.one_of(boolean_dtypes(), integer_dtypes(), floating_dtypes())


@dataclass
class Holder:
    name: str
    parts: dict[str, Any]


def files(folder):
    return [path for path in folder.iterdir() if path.name != LOCK]


@settings(max_examples=60, deadline=None)
@given(st.lists(arrays(NUMBERS, array_shapes(min_dims=0, min_side=0, max_side=5)), max_size=5))
def test_arrays_come_back_equal_whatever_their_kind(tmp_path_factory, content):
    back = shared(share(Holder("arrays", {"all": content}), tmp_path_factory.mktemp("shared")))
    assert back.name == "arrays"
    for given_, found in zip(content, back.parts["all"], strict=True):
        assert found.dtype == given_.dtype
        np.testing.assert_array_equal(found, given_)


def test_arrays_in_memory_come_back_as_read_only_views_of_the_file_and_aligned(tmp_path):
    content = [np.arange(count, dtype=np.float32) for count in (1, 7, 1000, 33)]
    back = shared(share(content, tmp_path))
    for found in back:
        assert not found.flags.writeable
        assert not found.flags.owndata
        assert found.ctypes.data % 64 == 0
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 1


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[:, ::2],
        lambda array: array.T,
        lambda array: array[::-1],
        lambda array: np.broadcast_to(array[:1], (50, 40)),
        np.asfortranarray,
    ],
    ids=["columns", "transposed", "reversed", "spread", "fortran"],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_that_are_not_contiguous_come_back_equal(view, mapped, tmp_path):
    array = np.arange(2000, dtype=np.float64).reshape(50, 40)
    if mapped:
        np.save(tmp_path / "data.npy", array)
        array = np.load(tmp_path / "data.npy", mmap_mode="r")
    np.testing.assert_array_equal(shared(share(view(array), tmp_path)), view(array))


def test_an_array_mapped_from_a_file_is_shared_by_its_name(tmp_path):
    np.save(tmp_path / "data.npy", np.arange(1_000_000, dtype=np.float32).reshape(1000, 1000))
    mapped = np.load(tmp_path / "data.npy", mmap_mode="r")
    content = {"whole": mapped, "rows": mapped[17:600], "row": mapped[3], "plain": np.asarray(mapped[100:])}
    path = share(content, tmp_path)
    assert path.stat().st_size < 4096
    back = shared(path)
    for name, found in back.items():
        assert isinstance(found, np.memmap)
        assert not found.flags.writeable
        np.testing.assert_array_equal(found, content[name])


def test_what_was_shared_is_shared_again_without_its_arrays(tmp_path):
    """A worker that hands on what it was given does not copy it."""
    back = shared(share({"array": np.arange(100_000)}, tmp_path))
    np.testing.assert_array_equal(shared(share(back, tmp_path))["array"], np.arange(100_000))


def test_objects_without_arrays_and_arrays_of_objects_come_back(tmp_path):
    content = {"text": "ö", "none": None, "objects": np.array([{"a": 1}, None], dtype=object)}
    back = shared(share(content, tmp_path))
    assert back["text"] == "ö"
    assert back["objects"].tolist() == [{"a": 1}, None]


def test_an_array_that_two_hold_is_written_once(tmp_path):
    array = np.zeros(100_000)
    path = share([array, {"again": array}], tmp_path)
    assert path.stat().st_size < 1.5 * array.nbytes
    first, second = shared(path)
    assert first is second["again"]


# The folder


def test_the_folder_goes_when_it_is_closed_and_when_nobody_holds_it():
    closed, dropped = Folder(1), Folder(1)
    share(np.arange(3), closed.path)
    paths = closed.path, dropped.path
    assert all(path.stat().st_mode & 0o077 == 0 for path in paths)
    closed.close()
    closed.close()
    del dropped
    assert not any(path.exists() for path in paths)


def test_memory_that_is_too_small_is_left_for_the_folder_of_temporary_files(monkeypatch, tmp_path):
    monkeypatch.setattr(sharing.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(sharing.tempfile, "tempdir", str(tmp_path))
    small, large = Folder(10), Folder(501)
    assert small.path.parent == sharing._MEMORY
    assert large.path.parent == tmp_path
    small.close()
    large.close()


def test_a_folder_without_room_is_told_with_what_to_do(monkeypatch, tmp_path):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sharing.tempfile, "mkstemp", full)
    with pytest.raises(RunError, match="it is full") as caught:
        share(np.zeros(3), tmp_path)
    assert caught.value.code == "HANSA-RUN-STORAGE"
    assert str(tmp_path) in caught.value.found


def test_the_size_of_what_is_shared_is_known_before_it_is_written(tmp_path):
    for content in (np.zeros(100_000), [np.zeros(3)] * 4 + [np.ones(5)], {"text": "x" * 5000}):
        packed = Packed.of(content)
        written = packed.write(tmp_path).stat().st_size
        assert abs(packed.size - written) <= 64 * (1 + len(packed.buffers))


@pytest.mark.parametrize("memory", ["nothing-here", "file"])
def test_a_machine_without_shared_memory_has_the_folder_of_temporary_files(memory, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sharing, "_MEMORY", tmp_path / memory)
    monkeypatch.setattr(sharing.tempfile, "tempdir", str(tmp_path))
    folder = Folder(1)
    assert folder.path.parent == tmp_path
    folder.close()


LEAVES = """
import os, signal
from hansa.simulation.sharing import Folder
folder = Folder(1)
print(folder.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_left_by_a_killed_run_is_removed_by_the_next_one_but_not_one_in_use(monkeypatch):
    done = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, check=False)
    left, used = Path(done.stdout.strip()), Folder(1)
    assert left.exists()
    Folder(1).close()
    assert left.exists()  # it is new: its run may be about to lock it
    for path in (left, used.path):
        os.utime(path, (1, 1))
    Folder(1).close()
    assert not left.exists()
    assert used.path.exists()
    used.close()


@pytest.mark.parametrize("change", ["written", "replaced", "longer"])
def test_a_mapped_file_that_changed_meanwhile_is_refused(change, tmp_path):
    """Whoever maps it again would read other examples than the run began with, or past its end."""
    file = tmp_path / "data.npy"
    np.save(file, np.arange(1000, dtype=np.float32))
    os.utime(file, ns=(1, 1))
    path = share({"rows": np.load(file, mmap_mode="r")}, tmp_path)
    shared(path)
    if change == "written":
        with file.open("r+b") as opened:
            opened.seek(500)
            opened.write(b"1234")
    elif change == "replaced":
        np.save(tmp_path / "other.npy", np.ones(1000, dtype=np.float32))
        os.utime(tmp_path / "other.npy", ns=(1, 1))
        (tmp_path / "other.npy").replace(file)
    else:
        np.save(file, np.arange(2000, dtype=np.float32))
        os.utime(file, ns=(1, 1))
    with pytest.raises(RunError, match="was changed or replaced") as caught:
        shared(path)
    assert caught.value.code == "HANSA-RUN-CHANGED"


def test_what_workers_left_that_died_goes_and_what_the_run_shares_stays():
    folder = Folder(1)
    data, model, left = (share(np.arange(3), folder.path) for _ in range(3))
    folder.keep_only(data, model)
    assert sorted(files(folder.path)) == sorted([data, model])
    assert (folder.path / LOCK).exists()
    assert not left.exists()
    folder.close()


def test_shared_memory_is_used_only_where_programs_have_that_much_left(monkeypatch, tmp_path):
    """The size of /dev/shm is no promise: what lies there takes the machine's memory."""
    monkeypatch.setattr(sharing.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    monkeypatch.setattr(sharing.tempfile, "tempdir", str(tmp_path))
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    meminfo.write_text("MemTotal:  900 kB\nMemAvailable:  100 kB\n")
    small, large = Folder(10 * 1024), Folder(51 * 1024)
    assert small.path.parent == sharing._MEMORY
    assert large.path.parent == tmp_path
    small.close()
    large.close()
