-- Which of these records have a row that another transaction has locked against updates.
-- Nothing waits here. The lock mode is that of ON CONFLICT DO UPDATE, so that the lock of a foreign key in another table,
-- which does not prevent an update, does not count.
WITH free AS MATERIALIZED (
    SELECT id FROM task_activity_log
    WHERE id OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.uuid[])
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id FROM task_activity_log
WHERE id OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.uuid[]) AND NOT (id OPERATOR(pg_catalog.=) ANY (SELECT id FROM free))
