-- The database as the command `check` reports it, in one row. If our tables do not exist, the privileges are null.
WITH tables AS (
    SELECT to_regclass('task_activity_log') AS records, to_regclass('task_activity_log_inbox') AS inbox
)
SELECT
    current_setting('server_version') AS version,
    current_setting('server_version_num')::int AS version_number,
    current_setting('transaction_read_only')::bool AS read_only,
    current_user::text AS role,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
    coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS encrypted,
    (SELECT array_agg(name || ' on ' || on_table::text) FROM (VALUES
        ('SELECT', records), ('INSERT', records), ('UPDATE', records),
        ('SELECT', inbox), ('INSERT', inbox), ('DELETE', inbox)
    ) AS needed(name, on_table) WHERE NOT has_table_privilege(on_table, name)) AS missing,
    (SELECT array_agg(name) FROM (VALUES ('DELETE'), ('TRUNCATE')) AS more(name)
        WHERE has_table_privilege(records, name)) AS more,
    EXISTS (
        SELECT FROM pg_trigger WHERE tgrelid = records AND tgname = 'task_activity_log_modified' AND tgenabled <> 'D'
    ) AS stamped
FROM tables
