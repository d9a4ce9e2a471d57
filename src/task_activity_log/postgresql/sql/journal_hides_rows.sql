-- Whether row security may hide rows of the journal from this role.
SELECT coalesce(
    pg_catalog.row_security_active(pg_catalog.to_regclass('task_activity_log_journal')::pg_catalog.oid), false
) AS hides
