"""Alembic's entry: migrates over the connection that `service.core.ledger.migrate` holds the lock on."""

from alembic import context

from service.core.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
context.run_migrations()
