"""Migrations of the database's schema, run by :mod:`hansa.store.schema` through Alembic."""
