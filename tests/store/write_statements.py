"""Freeze what today's servers say to the database: ``python -m tests.store.write_statements``.

To be run before a migration is added, with the code that was written for the schema before it: the file, named for that
schema, is driven against the migrated database by ``test_older_servers.py`` ever after. Statements are as the driver
gets them; ``fixed`` are the parameters that the code fills in itself.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from sqlalchemy import Insert, insert
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite import dialect as sqlite

from hansa.store import tables
from hansa.store.dialects import PerDialect

FOLDER = Path(__file__).parent / "statements"
DIALECTS = {"sqlite": sqlite(paramstyle="named"), "postgresql": PGDialect_psycopg(paramstyle="pyformat")}
LISTS = re.compile(r"__\[POSTCOMPILE_(\w+)\]")
"""Where a list of names that are known will be."""
FIRST = ("tenants", "populations", "profiles", "clients", "jobs", "runs")
"""What there is before a round: the test adds a row to each."""
SAID = {
    "enrolments": ["BY_ID"],
    "clients": ["_CHANGES", "_DECLARE"],
    "runs": ["_LOCKED", "_GOING_ON", "_FREE", "_TAKE", "_CHANGE"],
    "rounds": [
        "_ADD", "_ASSIGN", "_BY_ID", "_SHARED", "_OPEN_OF", "_OPEN_PARTS", "_OPEN_ASSIGNMENTS", "_LOCKED_ASSIGNMENT",
        "_SET_FATE", "_SET_FATES", "_COUNT_FATES", "_ASSIGNED", "_CHANGE",
    ],
    "reports": ["_ADD", "_GET", "_OF"],
    "sums": ["_ADD", "_OF", "_REMOVE"],
    "participation": ["_RECORD", "_SOME"],
    "events": ["_ADD", "_OF_RUN", "_ADD_CHANGES"],
}  # fmt: skip
"""What a server says as clients check in, and as a round opens, takes reports and closes."""


def frozen(statement: Any, dialect: str) -> dict[str, Any]:
    """Return a statement as text; one that inserts names all columns that the database does not fill in itself."""
    if isinstance(statement, PerDialect):
        statement = getattr(statement, dialect)
    named = None
    if isinstance(statement, Insert):
        (table,) = (each for each in tables.METADATA.sorted_tables if each is statement.table)
        own = table.autoincrement_column if table.dialect_options["sqlite"]["autoincrement"] else None
        named = [
            each.name for each in table.columns
            if each.server_default is None and (each is not own or table.name in FIRST)
        ]  # fmt: skip
    compiled = statement.compile(dialect=DIALECTS[dialect], column_keys=named)
    fixed = {name: value for name, value in compiled.params.items() if value is not None and named is None}
    written = LISTS.sub(lambda found: ", ".join(f"'{each}'" for each in fixed.pop(found[1])), str(compiled))
    return {"text": written, "fixed": fixed}


def statements() -> dict[str, Any]:
    """Return all statements: name -> those of each database."""
    found: dict[str, Any] = {f"{name}.insert": insert(tables.METADATA.tables[name]) for name in FIRST}
    for module, names in SAID.items():
        found |= {f"{module}.{name}": getattr(import_module(f"hansa.store.{module}"), name) for name in names}
    return {name: {dialect: frozen(each, dialect) for dialect in DIALECTS} for name, each in found.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{tables.SCHEMA}.json").write_text(json.dumps(statements(), indent=1) + "\n")
