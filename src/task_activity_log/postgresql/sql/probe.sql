-- Prove that we can write, without writing: permissions and read-only mode are checked although no row is touched. It
-- takes what replace.sql takes: what passes here and is refused there is refused for the row's sake.
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
