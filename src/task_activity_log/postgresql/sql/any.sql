-- The id of any record.
SELECT id FROM task_activity_log LIMIT 1
