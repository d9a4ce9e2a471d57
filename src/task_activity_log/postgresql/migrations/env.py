"""Alembic's environment: runs all new revisions in one transaction, one migration at a time."""

from alembic import context

from task_activity_log.postgresql.migrations import VERSION_TABLE

# The lock ends with the transaction, so it also works behind a pooler. A migration that waited for the lock then finds
# that there is nothing left to do.
_ONE_AT_A_TIME = "SELECT pg_catalog.pg_advisory_xact_lock(8386102923505526642)"

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", version_table=VERSION_TABLE)
else:
    context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)

with context.begin_transaction():
    context.execute(_ONE_AT_A_TIME)
    context.run_migrations()
