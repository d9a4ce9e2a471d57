-- Divides by zero if no row with this id has this version: a trigger has changed what was written.
SELECT 1 OPERATOR(pg_catalog./) pg_catalog.count(*)::pg_catalog.int4 AS kept
FROM task_activity_log
WHERE id OPERATOR(pg_catalog.=) $1::pg_catalog.uuid AND source_version OPERATOR(pg_catalog.=) $2::pg_catalog.int8
