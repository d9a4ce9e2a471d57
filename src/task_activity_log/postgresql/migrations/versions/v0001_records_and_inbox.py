"""The table of records, its trigger, and the inbox."""

from textwrap import dedent

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables (contract, sections 1 and 7)."""
    # Types and functions have their schema: the search path of whoever migrates may name another one first.
    # Most updates change no indexed column. With free space in each page, the new row version fits in the same page and
    # the index needs no new entry (a HOT update).
    _execute("""
        CREATE TABLE task_activity_log (
            id pg_catalog.uuid PRIMARY KEY,
            task_id pg_catalog.uuid,
            task_activity_id pg_catalog.uuid,
            user_id pg_catalog.uuid,
            contact_id pg_catalog.uuid,
            subject pg_catalog.text,
            description pg_catalog.text,
            due_date pg_catalog.timestamptz,
            is_closed boolean,
            date_closed pg_catalog.timestamptz,
            reference_back_office pg_catalog.text,
            modified_dateutc pg_catalog.timestamptz NOT NULL,
            source_version bigint
        ) WITH (fillfactor = 85)
    """)
    _execute("""
        COMMENT ON COLUMN task_activity_log.modified_dateutc IS
            'Set by a trigger, whoever writes. Grows with each write of one row; it is no cursor over the table.'
    """)
    _execute("""
        COMMENT ON COLUMN task_activity_log.source_version IS
            'The highest x-version applied to this row. No part of the record.'
    """)
    # Names have their schema, because the function runs with the search path of whoever writes.
    # A clock can step back, and two writes can happen in the same microsecond. The instant must grow even then.
    _execute("""
        CREATE FUNCTION task_activity_log_modified() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.modified_dateutc := pg_catalog.clock_timestamp();
            IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
                NEW.modified_dateutc := greatest(
                    NEW.modified_dateutc,
                    OLD.modified_dateutc OPERATOR(pg_catalog.+) '1 microsecond'::pg_catalog.interval
                );
            END IF;
            RETURN NEW;
        END
        $$
    """)
    _execute("""
        CREATE TRIGGER task_activity_log_modified BEFORE INSERT OR UPDATE ON task_activity_log
            FOR EACH ROW EXECUTE FUNCTION task_activity_log_modified()
    """)
    _execute("""
        CREATE TABLE task_activity_log_inbox (
            request_key pg_catalog.uuid PRIMARY KEY,
            processed_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now()
        )
    """)
    _execute("""
        COMMENT ON TABLE task_activity_log_inbox IS
            'The requests that were taken, so that a repeat is not applied again. Trimmed by the workers.'
    """)
    _execute("CREATE INDEX task_activity_log_inbox_processed_at ON task_activity_log_inbox (processed_at)")


def _execute(statement: str) -> None:
    op.execute(dedent(statement).strip())  # a DBA may read the printed SQL
