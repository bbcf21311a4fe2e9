"""What Alembic runs: the migrations, in the transaction of whoever called."""

from __future__ import annotations

from alembic import context

from hansa.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
