-- The marks of trials (see pipeline/trials.py) that exist. They are in the inbox, next to the keys of requests, and are
-- trimmed with them.
SELECT request_key FROM task_activity_log_inbox WHERE request_key OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.uuid[])
