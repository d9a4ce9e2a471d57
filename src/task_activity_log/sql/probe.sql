-- Prove that we can write, without writing: permissions and read-only mode are checked although no row is touched.
WITH remembered AS (
    INSERT INTO task_activity_log_inbox (request_key) SELECT null::uuid WHERE false
)
UPDATE task_activity_log SET id = id WHERE false
