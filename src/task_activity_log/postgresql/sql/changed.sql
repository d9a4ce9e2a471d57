-- The ids of records that were modified at $1 or later, or of all if it is NULL, in the order of their ids: those behind $2, at most $3.
SELECT id::pg_catalog.uuid
FROM task_activity_log
WHERE ($1::pg_catalog.timestamptz IS NULL OR modified_dateutc OPERATOR(pg_catalog.>=) $1::pg_catalog.timestamptz)
    AND id OPERATOR(pg_catalog.>) $2::pg_catalog.uuid
ORDER BY id
LIMIT $3::pg_catalog.int8
