-- Commit a WAL record, and so wait until everything that was committed before is as safe as a commit is here: on this
-- server's disk, and with a synchronous standby on the standby too. Nothing is stored, and no table is needed.
--
-- It is needed after a timeout, and for what was read and not written. If a statement is cancelled while its commit waits for
-- a standby, PostgreSQL keeps the commit, on this server alone, and all others can see it. A transaction that writes no WAL
-- record waits for nobody, even if it has a transaction id.
--
-- If this commit does not reach the standby either, there is only a warning, which client_min_messages must not suppress.
SELECT pg_catalog.pg_logical_emit_message(true, 'task_activity_log', '')
WHERE (SELECT pg_catalog.set_config('client_min_messages', 'warning', true)) IS NOT NULL
