-- Remove marks: the messages were processed, or were returned in good order.
DELETE FROM task_activity_log_inbox WHERE request_key OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.uuid[])
