-- Whether row security may hide rows of the records from this role.
SELECT coalesce(
    pg_catalog.row_security_active(pg_catalog.to_regclass('task_activity_log')::pg_catalog.oid), false
) AS hides
