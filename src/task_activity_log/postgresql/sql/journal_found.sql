-- How a message was answered: $1 is a message_id or a correlation_id, $2 the id of a record or null. The newest $3 answers,
-- the newest first. With OR in place of UNION, the planner may read the whole table in the order of the numbers.
SELECT answered_at, record_id, reply_id, outcome, code, message_id, correlation_id, publisher
FROM task_activity_log_journal
WHERE number OPERATOR(pg_catalog.=) ANY (ARRAY(
    SELECT number FROM task_activity_log_journal WHERE message_id OPERATOR(pg_catalog.=) $1::pg_catalog.text
    UNION
    SELECT number FROM task_activity_log_journal WHERE correlation_id OPERATOR(pg_catalog.=) $1::pg_catalog.text
    UNION
    SELECT number FROM task_activity_log_journal WHERE record_id OPERATOR(pg_catalog.=) $2::pg_catalog.uuid
))
ORDER BY number DESC
LIMIT $3::pg_catalog.int8
