-- How many records were modified at $1 or later, or how many there are if it is NULL, that have an id behind $2.
SELECT pg_catalog.count(*) AS count
FROM task_activity_log
WHERE ($1::pg_catalog.timestamptz IS NULL OR modified_dateutc OPERATOR(pg_catalog.>=) $1::pg_catalog.timestamptz)
    AND id OPERATOR(pg_catalog.>) $2::pg_catalog.uuid
