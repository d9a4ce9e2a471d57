-- Mark that messages are tried. A mark that exists already was made by an attempt whose answer was lost.
INSERT INTO task_activity_log_inbox (request_key)
SELECT pg_catalog.unnest($1::pg_catalog.uuid[])
ON CONFLICT DO NOTHING
