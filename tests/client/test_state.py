from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from hansa.client import state as state_module
from hansa.client.records import Id, Identity
from hansa.client.state import StateFolder
from hansa.core.errors import RefusedError, RunError

TRAINING = Id("run-1", "training", 1, 1)


@pytest.fixture
def folder(tmp_path):
    opened = StateFolder(tmp_path / "state")
    yield opened
    opened.close()


def test_nothing_in_the_folder_is_for_others(folder):
    folder.key()
    folder.split_seed()
    folder.save_identity(Identity("https://x", "c", 1, "n", "p", {"k": b"1" * 32}))
    folder.write_pending(TRAINING, b"content", "0" * 64, {"a": np.ones(2)})
    folder.note("own_metrics.jsonl", {"auc": 1})
    for path in [folder.path, *folder.path.rglob("*")]:
        assert not path.stat().st_mode & 0o077, path


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o701, 0o777])
def test_a_folder_that_others_may_enter_is_refused(tmp_path, mode):
    path = tmp_path / "state"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(RunError, match="others may enter") as error:
        StateFolder(path)
    assert error.value.code == "HANSA-CLIENT-FOLDER"


def test_a_key_that_others_may_read_is_refused(folder):
    folder.key()
    (folder.path / "key.pem").chmod(0o640)
    with pytest.raises(RunError, match="others may enter"):
        folder.key()


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(RunError, match="another user"):
        StateFolder(tmp_path / "state")


def test_a_link_is_refused(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(RunError, match="symbolic link"):
        StateFolder(tmp_path / "link")


def test_two_clients_in_one_folder_are_one_too_many(folder):
    with pytest.raises(RunError, match="another client"):
        StateFolder(folder.path)
    folder.close()
    StateFolder(folder.path).close()


def test_a_file_in_the_way_or_no_place_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError) as error:
        StateFolder(tmp_path / "file" / "state")
    assert error.value.code == "HANSA-CLIENT-FOLDER"


def test_key_seed_and_identity_stay(tmp_path):
    first = StateFolder(tmp_path / "state")
    identity = Identity("https://x", "c", 1, "n", "p", {"k": b"1" * 32})
    first.save_identity(identity)
    kept = first.key().private_bytes_raw(), first.split_seed()
    first.close()
    second = StateFolder(tmp_path / "state")
    assert (second.key().private_bytes_raw(), second.split_seed()) == kept
    assert second.identity() == identity
    second.close()


def test_a_broken_key_or_file_is_said(folder):
    (folder.path / "key.pem").write_text("nothing")
    (folder.path / "key.pem").chmod(0o600)
    (folder.path / "identity.json").write_text("{")
    with pytest.raises(RunError, match="no Ed25519 key"):
        folder.key()
    with pytest.raises(RunError, match="no JSON"):
        folder.identity()


def test_what_was_half_written_is_gone_at_the_next_start(tmp_path):
    first = StateFolder(tmp_path / "state")
    for name in ("pending.new", "rows/run-1.training-1-1.next", "reports.json.new"):
        (first.path / name).write_bytes(b"half")
    (first.path / "work-x").mkdir()
    first.close()
    second = StateFolder(tmp_path / "state")
    left = {path.name for path in second.path.rglob("*")}
    assert left == {"lock", "rows", "models", "jobs"}
    second.close()


def test_evaluations_do_not_touch_the_rows_of_a_training_of_the_same_round(folder):
    training = folder.write_pending(TRAINING, b"t", "0" * 64, {"a": np.ones(2)})
    folder.acknowledged(training, "open")
    evaluation = folder.write_pending(Id("run-1", "evaluation", 1, 1), b"e", "1" * 64, {"a": np.zeros(2)})
    folder.acknowledged(evaluation, "open")
    folder.learned(Id("run-1", "evaluation", 1, 1), "included")
    assert folder.rows("run-1") == {}
    folder.learned(TRAINING, "included")
    assert folder.rows("run-1")["a"].tolist() == [1, 1]


def test_learning_twice_is_learning_once(folder):
    folder.acknowledged(folder.write_pending(TRAINING, b"t", "0" * 64, {"a": np.ones(2)}), "open")
    for _ in range(2):
        folder.learned(TRAINING, "included")
    assert folder.rows("run-1")["a"].tolist() == [1, 1]


def test_only_the_last_reports_and_models_are_kept(folder, monkeypatch):
    monkeypatch.setattr(state_module, "_KEPT_REPORTS", 3)
    for number in range(5):
        assignment = Id("run-1", "training", number, 1)
        folder.acknowledged(folder.write_pending(assignment, b"t", "0" * 64, {"a": np.ones(1)}), "open")
        folder.model(f"{number}" * 64).write_bytes(b"model")
    assert [report.id.round for report in folder.reports()] == [2, 3, 4]
    assert len(list((folder.path / "rows").iterdir())) == 3
    assert sorted(path.name[0] for path in (folder.path / "models").iterdir()) == ["3", "4"]
    assert all(folder.answered(Id("run-1", "training", number, 1)) for number in range(5))
    for other in (Id("run-1", "evaluation", 1, 1), Id("run-2", "training", 1, 1), Id("run-1", "training", 5, 1)):
        assert not folder.answered(other)


@pytest.mark.parametrize("run", ["../x", "a/b", "", "x" * 65, ".", "a\n"])
def test_a_name_that_leads_out_of_the_folder_is_refused(run):
    with pytest.raises(RefusedError):
        Id(run, "training", 1, 1)


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "0" * 63, ""])
def test_a_digest_that_is_none_is_refused(folder, name):
    for path in (folder.job, folder.model):
        with pytest.raises(RefusedError):
            path(name)


def test_the_folder_is_made_for_its_owner_only(tmp_path):
    before = os.umask(0)
    try:
        StateFolder(tmp_path / "a" / "state").close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "state").stat().st_mode) == 0o700
    assert isinstance(tmp_path, Path)
