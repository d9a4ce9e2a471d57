-- Forget at most $2 requests that were taken longer than $1 ago, oldest first. Returns their number.
-- Only one worker does this at a time; a worker that does not get the lock forgets nothing. The lock ends with the
-- statement, so it also works behind a pooler that assigns connections per transaction.
WITH turn AS MATERIALIZED (
    SELECT pg_catalog.pg_try_advisory_xact_lock(8386102923623557485) AS ours
),
forgotten AS (
    DELETE FROM task_activity_log_inbox
    WHERE request_key OPERATOR(pg_catalog.=) ANY (ARRAY(
        SELECT request_key
        FROM task_activity_log_inbox
        WHERE processed_at OPERATOR(pg_catalog.<) (pg_catalog.now() OPERATOR(pg_catalog.-) $1::pg_catalog.interval)
            AND (SELECT ours FROM turn)
        ORDER BY processed_at
        LIMIT $2::pg_catalog.int4
    ))
    RETURNING request_key
)
SELECT pg_catalog.count(*) FROM forgotten
