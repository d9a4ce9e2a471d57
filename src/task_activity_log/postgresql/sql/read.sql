-- The current records of duplicates and stale requests. This is a separate statement that follows the write: what the
-- write waited for was committed after the write had begun, so the write itself cannot see it.
-- A record with an instant that Python cannot represent is returned without its instants, and with the outcome
-- `rejected` (see write.sql, also for the casts and the schemas). The texts of all are returned until they have $2 bytes;
-- {length} and {too_long} are as in write.sql. One that has more than $3 bytes of text itself is never returned, and has the
-- outcome `too long`.
SELECT
    id::pg_catalog.uuid,
    {uuids},
    CASE WHEN NOT too_long THEN subject::pg_catalog.text END AS subject,
    CASE WHEN NOT too_long THEN description::pg_catalog.text END AS description,
    CASE WHEN readable THEN due_date::pg_catalog.timestamptz END AS due_date,
    is_closed::pg_catalog.bool,
    CASE WHEN readable THEN date_closed::pg_catalog.timestamptz END AS date_closed,
    CASE WHEN NOT too_long THEN reference_back_office::pg_catalog.text END AS reference_back_office,
    CASE WHEN readable AND NOT too_long THEN modified_dateutc::pg_catalog.timestamptz END AS modified_dateutc,
    CASE WHEN NOT readable THEN 'rejected' WHEN length OPERATOR(pg_catalog.>) $3::pg_catalog.int8 THEN 'too long' END AS outcome
FROM (
    SELECT
        *,
        least(due_date, date_closed, modified_dateutc)
            OPERATOR(pg_catalog.>=) '0001-01-01 00:00:00Z'::pg_catalog.timestamptz
        AND greatest(due_date, date_closed, modified_dateutc)
            OPERATOR(pg_catalog.<=) '9999-12-31 23:59:59.999999Z'::pg_catalog.timestamptz AS readable,
        {too_long} AS too_long
    FROM (
        SELECT
            id, task_id, task_activity_id, user_id, contact_id, subject, description,
            due_date, is_closed, date_closed, reference_back_office, modified_dateutc, {length} AS length
        FROM task_activity_log
        WHERE id OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.uuid[])
    ) AS found
) AS answer
