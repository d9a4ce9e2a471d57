-- How many seconds ago the oldest remembered request was taken; 0 if none is remembered. The index on processed_at has it.
SELECT coalesce(
    pg_catalog.date_part('epoch', pg_catalog.now() OPERATOR(pg_catalog.-) pg_catalog.min(processed_at)), 0::pg_catalog.float8
) AS seconds
FROM task_activity_log_inbox
