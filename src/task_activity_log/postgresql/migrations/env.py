"""What Alembic runs: all that is new, in one transaction, by one migration at a time."""

from alembic import context

from task_activity_log.postgresql.migrations import VERSION_TABLE

# The lock ends with the transaction, so it also holds behind a pooler. Who waited for it finds the work done.
_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(8386102923505526642)"

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", version_table=VERSION_TABLE)
else:
    context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)

with context.begin_transaction():
    context.execute(_ONE_AT_A_TIME)
    context.run_migrations()
