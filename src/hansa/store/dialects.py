"""What SQLite and PostgreSQL say differently: lists as one parameter, and inserting what may be there already."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import BindParameter, Boolean, ColumnElement, Executable, Table, Text, bindparam
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import UserDefinedType

DialectName = Literal["sqlite", "postgresql"]


class _Listed(UserDefinedType[Sequence[Any]]):
    """A list as one parameter: JSON for SQLite, the text of an array for PostgreSQL.

    Its members are integers, or names without commas, quotes, braces, backslashes and blanks. It has no type of the
    database's own, so that PostgreSQL reads it as an array once, when it plans, and not as a text to be cast.
    """

    cache_ok = True

    def get_col_spec(self, **_keywords: Any) -> str:
        """Return what a column of this type would be."""
        return "TEXT"

    def bind_processor(self, dialect: Dialect) -> Callable[[Sequence[Any] | None], str]:
        """Return what makes a list a text."""
        if dialect.name == "postgresql":
            return lambda members: "{" + ",".join(map(str, members or ())) + "}"
        return lambda members: json.dumps(members or ())


_LISTED: Final = _Listed()


def listed(name: str) -> BindParameter[Any]:
    """Return a parameter for a list of integers or plain names."""
    return bindparam(name, type_=_LISTED)


class _Among(FunctionElement[bool]):
    """True where a column's value is a member of a list that is one parameter."""

    type = Boolean()
    name = "among"
    inherit_cache = True


class _AmongNumbers(_Among):
    name = "among_numbers"
    inherit_cache = True


def among(column: ColumnElement[str], parameter: str) -> ColumnElement[bool]:
    """Return the condition that a column of names is in the list parameter of that name."""
    return _Among(column, listed(parameter))


def among_numbers(column: ColumnElement[int], parameter: str) -> ColumnElement[bool]:
    """Return the condition that a column of integers is in the list parameter of that name."""
    return _AmongNumbers(column, listed(parameter))


@compiles(_Among, "sqlite")
def _among_sqlite(element: _Among, compiler: SQLCompiler, **kwargs: Any) -> str:
    column, parameter = (compiler.process(each, **kwargs) for each in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({parameter}))"  # noqa: S608 - two compiled expressions


@compiles(_Among, "postgresql")
def _among_postgresql(element: _Among, compiler: SQLCompiler, **kwargs: Any) -> str:
    column, parameter = (compiler.process(each, **kwargs) for each in element.clauses)
    of = "BIGINT" if isinstance(element, _AmongNumbers) else "TEXT"
    return f"{column} = ANY(CAST({parameter} AS {of}[]))"


@dataclass(frozen=True)
class PerDialect:
    """One statement in the words of each database."""

    sqlite: Executable
    postgresql: Executable


def insert_once(table: Table, *, returning: ColumnElement[Any]) -> PerDialect:
    """Return an INSERT that does nothing where a unique constraint is in the way; it returns a row if it inserted."""
    return PerDialect(
        sqlite.insert(table).on_conflict_do_nothing().returning(returning),
        postgresql.insert(table).on_conflict_do_nothing().returning(returning),
    )


class _Joined(FunctionElement[str]):
    """The integers of some columns over all rows, as one text with commas: thousands of them as one value."""

    type = Text()
    name = "joined"
    inherit_cache = True


def joined(*columns: ColumnElement[int]) -> ColumnElement[str]:
    """Return the aggregate that joins the integers of some columns, row by row, the rows in no order."""
    return _Joined(*columns)


@compiles(_Joined, "sqlite")
def _joined_sqlite(element: _Joined, compiler: SQLCompiler, **kwargs: Any) -> str:
    columns = [compiler.process(each, **kwargs) for each in element.clauses]
    together = " || ',' || ".join(columns)
    return f"group_concat({together})"


@compiles(_Joined, "postgresql")
def _joined_postgresql(element: _Joined, compiler: SQLCompiler, **kwargs: Any) -> str:
    columns = [compiler.process(each, **kwargs) for each in element.clauses]
    return f"string_agg(concat_ws(',', {', '.join(columns)}), ',')"
