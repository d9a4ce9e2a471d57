"""The journal: how messages were answered. The workers fill it only with WORKER_JOURNAL."""

from textwrap import dedent

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the journal. Workers of older releases do not use it."""
    # The columns of fixed length come first, so that nothing is lost to alignment. Rows are deleted in the order of their
    # numbers; the primary key also lets them be deleted where all tables are published for logical replication.
    _execute("""
        CREATE TABLE task_activity_log_journal (
            number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            answered_at pg_catalog.timestamptz NOT NULL,
            record_id pg_catalog.uuid,
            reply_id pg_catalog.uuid NOT NULL,
            outcome pg_catalog.text NOT NULL,
            code pg_catalog.text,
            message_id pg_catalog.text,
            correlation_id pg_catalog.text,
            publisher pg_catalog.text
        )
    """)
    _execute("""
        COMMENT ON TABLE task_activity_log_journal IS
            'How messages were answered, for task-activity-log find. Filled with WORKER_JOURNAL, and trimmed by the workers.'
    """)
    # A hash index has four bytes of each value. These texts can have 255.
    for column in ("message_id", "correlation_id", "record_id"):
        _execute(f"CREATE INDEX task_activity_log_journal_{column} ON task_activity_log_journal USING hash ({column})")


def _execute(statement: str) -> None:
    op.execute(dedent(statement).strip())  # a DBA may read the printed SQL
