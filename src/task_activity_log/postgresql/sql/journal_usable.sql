-- Whether there is a journal that this role may trim. This fails neither if the journal does not exist nor if the role has no
-- privilege on it, so that nothing is logged by a server whose schema is older.
SELECT coalesce(
    pg_catalog.has_table_privilege(journal, 'SELECT') AND pg_catalog.has_table_privilege(journal, 'DELETE'), false
) AS usable
FROM (SELECT pg_catalog.to_regclass('task_activity_log_journal') AS journal) AS found
