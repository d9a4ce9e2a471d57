-- Divides by zero if the journal has no answer with this reply: a trigger has skipped it, or a policy hides it.
SELECT 1 OPERATOR(pg_catalog./) pg_catalog.count(*)::pg_catalog.int4 AS kept
FROM task_activity_log_journal
WHERE reply_id OPERATOR(pg_catalog.=) $1::pg_catalog.uuid
