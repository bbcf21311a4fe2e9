"""Books of services."""

from __future__ import annotations

import sqlite3
import stat

import pytest

from hansa.authority.book import Book as AuthoritysBook
from hansa.decryptor.book import Book as DecryptorsBook
from hansa.serving import books


@pytest.mark.parametrize("book", [AuthoritysBook, DecryptorsBook])
def test_a_book_is_its_owners_and_what_it_says_is_on_disk_and_what_it_forgets_is_overwritten(tmp_path, book):
    opened = book(tmp_path)
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    pragmas = ("journal_mode", "synchronous", "secure_delete")
    assert [opened._on.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas] == ["delete", 3, 1]
    opened.close()


def test_a_book_is_opened_again_as_it_was_and_another_file_is_none(tmp_path):
    tables = "CREATE TABLE IF NOT EXISTS facts (fact TEXT);"
    first = books.opened(tmp_path / "book", tables)
    first.execute("INSERT INTO facts VALUES ('said')")
    first.close()
    again = books.opened(tmp_path / "book", tables)
    assert again.execute("SELECT fact FROM facts").fetchall() == [("said",)]
    again.close()
    (tmp_path / "other").write_text("no book " * 100)
    with pytest.raises(sqlite3.DatabaseError):
        books.opened(tmp_path / "other", tables)
