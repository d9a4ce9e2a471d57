-- Prove that writing is possible, without writing: privileges and read-only mode are checked although no row is touched.
-- This needs the same privileges as write.sql. If this passes and write.sql is refused, a row is the cause.
WITH remembered AS (
    INSERT INTO task_activity_log_inbox (request_key)
    SELECT null::uuid WHERE false
    ON CONFLICT (request_key) DO NOTHING
    RETURNING request_key
)
INSERT INTO task_activity_log (id)
SELECT request_key FROM remembered
ON CONFLICT (id) DO UPDATE SET id = excluded.id
RETURNING id
