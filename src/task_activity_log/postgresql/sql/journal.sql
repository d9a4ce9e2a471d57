-- Record how messages were answered: one row for each. See write.sql for the arrays and the schemas.
--
-- Nobody waits for this statement, and nothing depends on it. So its commit waits neither for the disk nor for a standby: if
-- the server crashes, the last second may be missing. And it does not wait for a lock for long.
INSERT INTO task_activity_log_journal (
    answered_at, record_id, reply_id, outcome, code, message_id, correlation_id, publisher
)
SELECT
    answered_at::pg_catalog.timestamptz, record_id, reply_id, outcome, code, message_id, correlation_id, publisher
FROM ROWS FROM (
    pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.uuid[]),
    pg_catalog.unnest($3::pg_catalog.uuid[]), pg_catalog.unnest($4::pg_catalog.text[]),
    pg_catalog.unnest($5::pg_catalog.text[]), pg_catalog.unnest($6::pg_catalog.text[]),
    pg_catalog.unnest($7::pg_catalog.text[]), pg_catalog.unnest($8::pg_catalog.text[])
) AS answer (answered_at, record_id, reply_id, outcome, code, message_id, correlation_id, publisher)
WHERE (SELECT pg_catalog.set_config('synchronous_commit', 'off', true)) IS NOT NULL
    AND (SELECT pg_catalog.set_config('lock_timeout', '1s', true)) IS NOT NULL
RETURNING 1 AS written
