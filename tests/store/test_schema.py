"""Migrations, on both databases."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from sqlalchemy import create_engine, inspect, select, table, text
from sqlalchemy.exc import SQLAlchemyError
from tests.store.rows import enrolled, opened, report_of, seeded

from hansa.core.errors import StoreError
from hansa.store import tables
from hansa.store.failures import translated
from hansa.store.schema import Schema, current, downgrade, parse_url, upgrade
from hansa.store.store import Store


def open_store(url, *, migrate=True):
    async def test():
        store = await Store.open(url, migrate=migrate)
        await store.close()

    asyncio.run(test())


def noted(url, schema):
    engine = create_engine(parse_url(url))
    with engine.begin() as connection:
        connection.execute(tables.schema.update().values(number=schema.number, oldest=schema.oldest))
    engine.dispose()


def refused(url, *, migrate=True):
    with pytest.raises(StoreError) as caught:
        open_store(url, migrate=migrate)
    assert caught.value.code == "HANSA-STORE-SCHEMA"
    return str(caught.value)


def test_the_migrations_make_the_tables_that_the_code_uses(database):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = create_engine(parse_url(database))
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), tables.METADATA)
        assert [each for each in found if each[0] != "remove_table" or each[1].name != "alembic_version"] == []
        names = set(inspect(connection).get_table_names())
        assert names == {*tables.METADATA.tables, "alembic_version"}
    engine.dispose()


def test_up_down_and_up_again(empty_database):
    url = parse_url(empty_database)
    assert current(url) == Schema(0, 0)
    assert upgrade(url) == Schema(tables.SCHEMA, 1)
    assert upgrade(url) == Schema(tables.SCHEMA, 1)
    assert downgrade(url, 0) == Schema(0, 0)
    engine = create_engine(url)
    assert inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()
    open_store(empty_database)
    assert current(url).number == tables.SCHEMA


def test_the_ledger_is_added_to_a_database_that_older_servers_go_on_serving(empty_database):
    url = parse_url(empty_database)
    assert upgrade(url, 1) == Schema(1, 1)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(tables.tenants.insert().values(id="t", name="hospitals"))
    assert upgrade(url, 2) == Schema(2, 1)  # a server written for schema 1 may serve it
    with engine.begin() as connection:
        assert connection.execute(tables.tenants.select()).all() == [("t", "hospitals")]
        connection.execute(tables.tenants.insert().values(id="u", name="added by an older server"))
    assert downgrade(url, 1) == Schema(1, 1)
    assert not inspect(engine).has_table("ledger_rows")
    engine.dispose()


def contents(url):
    """Return each table's columns and rows, but for what the migrations note themselves."""
    engine = create_engine(url)
    with engine.connect() as connection:
        names = {*inspect(connection).get_table_names()} - {"schema", "alembic_version"}
        held = {name: connection.execute(select(text("*")).select_from(table(name))) for name in names}
        found = {name: [dict(row) for row in rows.mappings()] for name, rows in held.items()}
    engine.dispose()
    return found


def test_going_back_and_forward_keeps_every_row_that_the_older_schema_has(database):
    url = parse_url(database)

    async def fill():
        store = await Store.open(database)
        seed = await seeded(store)
        clients = await enrolled(store, seed.population, 3)
        round_ = await opened(store, seed.run, clients)
        async with store.transaction() as rows:
            await rows.reports.add([report_of(round_.id, clients[0])])
        await store.close()

    asyncio.run(fill())
    before = contents(url)
    assert {"clients", "rounds", "assigned", "reports", "runs"} <= {name for name, rows in before.items() if rows}
    for number in reversed(range(1, tables.SCHEMA)):
        assert downgrade(url, number).number == number
        for name, rows in contents(url).items():
            assert rows == [
                {column: old[column] for column in new} for new, old in zip(rows, before[name], strict=True)
            ]
    upgrade(url)
    assert contents(url) == before
    open_store(database)


def spend(connection):
    """Write a ledger with a row."""
    scope = dict.fromkeys(("id", "tenant", "name", "unit", "adjacency", "head", "accountant", "spent"), "x")
    numbers = {"delta": 1e-5, "epsilon_limit": 8.0, "rows": 1, "restored_row": 0}
    row = {"scope": "x", "number": 1, "kind": "limit", "content": "{}", "hash": "h"}
    connection.execute(tables.tenants.insert().values(id="x", name="hospitals"))
    connection.execute(tables.ledger_scopes.insert().values(**scope, **numbers))
    connection.execute(tables.ledger_rows.insert().values(**row))


def test_a_ledger_that_has_rows_is_forgotten_only_if_that_is_asked(database):
    url = parse_url(database)
    engine = create_engine(url)
    with engine.begin() as connection:
        spend(connection)
    for number in (1, 0):
        with pytest.raises(StoreError, match="would forget|has rows") as caught:
            downgrade(url, number)
        assert caught.value.code == "HANSA-STORE-LEDGER"
    assert current(url).number == tables.SCHEMA
    assert inspect(engine).has_table("ledger_rows")
    assert downgrade(url, 1, forget_ledger=True) == Schema(1, 1)
    engine.dispose()


def test_what_a_replica_is_about_to_spend_as_the_schema_goes_back_is_not_forgotten(database):
    url = parse_url(database)
    engine = create_engine(url)
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as replica:
            spend(replica)
            going_back = pool.submit(downgrade, url, 1)
            wait([going_back], timeout=1.0)  # it can only wait for the replica
            assert not going_back.done()
        with pytest.raises(StoreError) as caught:
            going_back.result(60)
    assert caught.value.code == "HANSA-STORE-LEDGER"
    assert inspect(engine).has_table("ledger_rows")
    engine.dispose()


def test_a_schema_does_not_go_back_to_a_later_one(database):
    with pytest.raises(StoreError, match="hansa server upgrade") as caught:
        downgrade(parse_url(database), tables.SCHEMA + 1)
    assert caught.value.code == "HANSA-STORE-SCHEMA"
    assert current(parse_url(database)).number == tables.SCHEMA


def test_a_full_database_is_told(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'small.sqlite'}")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE large (content BLOB)")
        connection.exec_driver_sql("PRAGMA max_page_count=3")
        with pytest.raises(SQLAlchemyError) as caught:
            connection.exec_driver_sql("INSERT INTO large VALUES (zeroblob(100000))")
    engine.dispose()
    assert translated(caught.value).code == "HANSA-SERVER-STORAGE"


def test_partial_sums_are_added_to_a_database_that_older_servers_go_on_recording_reports_in(empty_database):
    """They name their columns: a report of theirs is in no partial sum."""
    url = parse_url(empty_database)
    upgrade(url)
    downgrade(url, 2)

    async def reported(code):
        store = await Store.open(empty_database)  # migrates
        try:
            seed = await seeded(store)
            clients = await enrolled(store, seed.population, 1)
            round_ = await opened(store, seed.run, clients)
            async with store.transaction() as rows:
                await rows.reports.add([report_of(round_.id, clients[0])])
            return await code(store, round_.id)
        finally:
            await store.close()

    async def old(store, key):
        async with store.reading() as rows:
            return [report.folded for report in await rows.reports.of(key)]

    assert asyncio.run(reported(old)) == [0]
    assert current(url) == Schema(tables.SCHEMA, 1)
    assert downgrade(url, 2) == Schema(2, 1)
    engine = create_engine(url)
    with engine.connect() as connection:
        assert "folded" not in {column["name"] for column in inspect(connection).get_columns("reports")}
        assert connection.exec_driver_sql("SELECT count(*) FROM reports").scalar_one() == 1
    engine.dispose()


def test_an_empty_database_is_migrated_only_if_that_is_asked(empty_database):
    assert "hansa server upgrade" in refused(empty_database, migrate=False)
    open_store(empty_database)
    open_store(empty_database, migrate=False)


def test_servers_that_start_at_once_migrate_once(empty_database):
    async def test():
        stores = await asyncio.gather(*[Store.open(empty_database) for _ in range(4)])
        for store in stores:
            await store.close()

    asyncio.run(test())


def test_a_newer_schema_is_served_if_its_migration_says_so_and_refused_otherwise(database):
    noted(database, Schema(tables.SCHEMA + 1, tables.SCHEMA))
    open_store(database)
    noted(database, Schema(tables.SCHEMA + 1, tables.SCHEMA + 1))
    assert f"schema {tables.SCHEMA + 1}" in refused(database)
    with pytest.raises(StoreError):
        upgrade(parse_url(database))


@pytest.mark.parametrize("url", ["", "mysql://x/y", "nonsense", "sqlite+aiosqlite://", "sqlite:///:memory:"])
def test_what_is_no_database_of_ours_is_refused(url):
    with pytest.raises(StoreError) as caught:
        open_store(url)
    assert caught.value.code == "HANSA-SERVER-SETTINGS"


def test_a_database_that_does_not_answer_is_told():
    with pytest.raises(StoreError) as caught:
        open_store("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    assert caught.value.code == "HANSA-SERVER-BUSY"
