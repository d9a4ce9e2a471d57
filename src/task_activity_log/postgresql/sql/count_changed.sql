-- How many records were modified at $1 or later and have an id behind $2.
SELECT pg_catalog.count(*) AS count
FROM task_activity_log
WHERE modified_dateutc OPERATOR(pg_catalog.>=) $1::pg_catalog.timestamptz
    AND id OPERATOR(pg_catalog.>) $2::pg_catalog.uuid
