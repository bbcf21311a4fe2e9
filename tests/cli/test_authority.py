"""The list of an authority is changed where an authority is, or not at all."""

from __future__ import annotations

import pytest

KEY = "A" * 43 + "="


@pytest.mark.parametrize("verb", ["vouch", "withdraw"])
def test_a_folder_without_an_authority_is_refused_and_nothing_is_made(hansa, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for named in ([], ["--folder", "typo"], ["--folder", "own"]):
        found = hansa("authority", verb, KEY, *named)
        assert found.status == 4
        assert "HANSA-AUTHORITY-FOLDER" in found.err
        assert "hansa authority key --folder DIR" in found.said
    assert [*tmp_path.rglob("*")] == [tmp_path / "own"]


def test_a_key_that_is_not_on_the_list_is_not_withdrawn(hansa, tmp_path):
    own = ["--folder", str(tmp_path / "own")]
    assert hansa("authority", "key", *own).status == 0
    assert hansa("authority", "vouch", KEY, *own).status == 0
    assert hansa("authority", "withdraw", KEY, *own).status == 0
    found = hansa("authority", "withdraw", KEY, *own)
    assert found.status == 2
    assert "HANSA-AUTHORITY-UNLISTED" in found.err
    assert KEY in found.said
