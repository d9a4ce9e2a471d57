"""Alembic's environment: writes the SQL of all new revisions as one transaction, one migration at a time."""

from alembic import context

from task_activity_log.postgresql.migrations import ONE_AT_A_TIME, VERSION_TABLE

context.configure(dialect_name="postgresql", version_table=VERSION_TABLE)
with context.begin_transaction():
    context.execute(ONE_AT_A_TIME)
    context.run_migrations()
