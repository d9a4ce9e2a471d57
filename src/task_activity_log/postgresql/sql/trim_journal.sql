-- Delete at most $2 rows of the journal that are older than $1. Returns their number. Only one worker does this at a time, as
-- in trim.sql.
--
-- Rows have about the order of their numbers. Only the first $2 are looked at: to look for old ones behind them would read
-- the whole table each time.
WITH turn AS MATERIALIZED (
    SELECT pg_catalog.pg_try_advisory_xact_lock(8386102923623557486) AS ours
),
forgotten AS (
    DELETE FROM task_activity_log_journal
    WHERE number OPERATOR(pg_catalog.=) ANY (ARRAY(
        SELECT number
        FROM (
            SELECT number, answered_at FROM task_activity_log_journal
            WHERE (SELECT ours FROM turn)
            ORDER BY number
            LIMIT $2::pg_catalog.int4
        ) AS first
        WHERE answered_at OPERATOR(pg_catalog.<) (pg_catalog.now() OPERATOR(pg_catalog.-) $1::pg_catalog.interval)
    ))
    RETURNING number
)
SELECT pg_catalog.count(*) FROM forgotten
