-- The database as the command `check` reports it, in one row. If our tables do not exist, the privileges are null.
-- {written} and {read} stand for the columns of a record that write.sql writes and that it returns.
-- Functions, operators and types have their schema: see write.sql.
WITH tables AS (
    SELECT
        pg_catalog.to_regclass('task_activity_log') AS records, pg_catalog.to_regclass('task_activity_log_inbox') AS inbox,
        pg_catalog.to_regclass('task_activity_log_journal') AS journal
)
SELECT
    pg_catalog.current_setting('server_version') AS version,
    pg_catalog.current_setting('server_version_num')::pg_catalog.int4 AS version_number,
    pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool AS read_only,
    pg_catalog.pg_is_in_recovery() AS standby,
    current_user::pg_catalog.text AS role,
    (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user) AS superuser,
    coalesce((
        SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
    ), false) AS encrypted,
    -- Subscribers of logical replication are no standbys.
    (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication AS sender WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_replication_slots AS slot
        WHERE slot.active_pid OPERATOR(pg_catalog.=) sender.pid AND slot.slot_type OPERATOR(pg_catalog.=) 'logical'
    )) AS standbys,
    pg_catalog.current_setting('synchronous_standby_names') OPERATOR(pg_catalog.<>) ''
        AND pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.<>) 'off'
        AND pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.<>) 'local' AS synchronous,
    pg_catalog.current_setting('synchronous_commit') AS synchronous_commit,
    -- Milliseconds, 0 for no limit. The second one is new in PostgreSQL 17.
    (SELECT pg_catalog.array_agg(pg_catalog.concat(name, ' ', setting, ' ms')) FROM pg_catalog.pg_settings
        WHERE name OPERATOR(pg_catalog.=) ANY (ARRAY['statement_timeout', 'transaction_timeout']::pg_catalog.text[])
            AND setting::pg_catalog.int8 OPERATOR(pg_catalog.>) 0::pg_catalog.int8
            AND setting::pg_catalog.int8 OPERATOR(pg_catalog.<) 5000::pg_catalog.int8) AS short_timeouts,
    -- How many connections the role may have to this database; null for any number. Superusers have no limit.
    (SELECT pg_catalog.min(connections) FROM (
        SELECT rolconnlimit FROM pg_catalog.pg_roles
        WHERE rolname OPERATOR(pg_catalog.=) session_user AND NOT rolsuper
        UNION ALL
        SELECT datconnlimit FROM pg_catalog.pg_database
        WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
            AND NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) session_user)
    ) AS limits (connections) WHERE connections OPERATOR(pg_catalog.>=) 0) AS connection_limit,
    -- A privilege may have been granted for columns: it is enough to have it for those that our statements name.
    (SELECT pg_catalog.array_agg(pg_catalog.concat(name, lacking.some, ' on ', on_table)) FROM (VALUES
        ('SELECT', records, ARRAY[{read}, 'source_version', 'xmax']),
        ('INSERT', records, ARRAY['id', {written}, 'source_version']),
        ('UPDATE', records, ARRAY[{written}, 'source_version']),
        ('SELECT', inbox, ARRAY['request_key', 'processed_at']), ('INSERT', inbox, ARRAY['request_key']),
        ('DELETE', inbox, NULL)
    ) AS needed (name, on_table, columns), LATERAL (
        SELECT
            CASE WHEN pg_catalog.bool_or(permitted) THEN pg_catalog.concat(
                ' (', pg_catalog.string_agg(attname::pg_catalog.text, ', ' ORDER BY attnum) FILTER (WHERE NOT permitted), ')'
            ) END AS some,
            pg_catalog.bool_and(permitted) AS none
        FROM (
            SELECT attname, attnum, pg_catalog.has_column_privilege(on_table, attnum, name) AS permitted
            FROM pg_catalog.pg_attribute
            WHERE attrelid OPERATOR(pg_catalog.=) on_table AND NOT attisdropped
                AND attname::pg_catalog.text OPERATOR(pg_catalog.=) ANY (columns)
                AND name OPERATOR(pg_catalog.<>) 'DELETE'
        ) AS each
    ) AS lacking
    WHERE NOT pg_catalog.has_table_privilege(on_table, name) AND lacking.none IS NOT TRUE) AS missing,
    journal IS NOT NULL AS has_journal,
    -- If it is not found: the schemas that have a table of its name.
    {elsewhere} AS journal_elsewhere,
    (SELECT pg_catalog.array_agg(pg_catalog.concat(name, ' on ', journal)) FROM (VALUES ('SELECT'), ('INSERT'), ('DELETE'))
        AS needed (name) WHERE NOT pg_catalog.has_table_privilege(journal, name)) AS journal_missing,
    coalesce(pg_catalog.row_security_active(
        pg_catalog.to_regclass('task_activity_log_alembic_version')::pg_catalog.oid
    ), false) AS revision_may_be_hidden,
    -- Everybody may execute it by default; in hardened databases that is revoked. See confirm.sql.
    (SELECT pg_catalog.min(emit.oid::pg_catalog.regprocedure::pg_catalog.text) FROM pg_catalog.pg_proc AS emit
        WHERE emit.pronamespace OPERATOR(pg_catalog.=) 'pg_catalog'::pg_catalog.regnamespace
            AND emit.proname OPERATOR(pg_catalog.=) 'pg_logical_emit_message'
            AND emit.proargtypes[2] OPERATOR(pg_catalog.=) 'pg_catalog.text'::pg_catalog.regtype
            AND NOT pg_catalog.has_function_privilege(emit.oid, 'EXECUTE')) AS not_executable,
    (SELECT pg_catalog.array_agg(name) FROM (VALUES ('DELETE'), ('TRUNCATE')) AS more (name)
        WHERE pg_catalog.has_table_privilege(records, name)) AS more
FROM tables
