-- The kind of table that the records are in, as one letter of pg_class.relkind (r: a table, p: partitioned, v: a view); null
-- if there is no such table.
SELECT (
    SELECT relkind::pg_catalog.text
    FROM pg_catalog.pg_class
    WHERE oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('task_activity_log')
) AS kind
