-- Store a wave. Each request is applied once, and an older version never overwrites a newer one (contract, section 7).
-- One row is returned for each request that is taken now. A request without a row was taken before: it is a duplicate.
--
-- $1 to $11 are the columns of the record, $12 the request keys (null: the request is not remembered), $13 the versions
-- (null: none). Each id occurs once. Rows are sorted by id, so that all workers lock rows in the same order, in both
-- tables; otherwise two workers would deadlock. Nothing below may change that order. For this reason there is no join
-- and no ORDER BY: `IN (SELECT …)` under an OR is always a hashed lookup, whatever the planner expects the size of an
-- array to be.
--
-- {assignments} stands for the columns that an update sets. The store fills it in for one of the two update modes:
--   replace: subject = excluded.subject
--   merge:   subject = CASE WHEN $14::jsonb -> excluded.id::text ? 'subject'
--                THEN excluded.subject ELSE stored.subject END
-- In a merge, $14 has the fields that each message contains: {"<id>": ["subject", …], …}. It is one document, and it is
-- looked up by excluded.id, because ON CONFLICT can refer only to the stored row and to the row proposed for insertion.

-- If another worker is about to commit the same key, this waits for it before any record is touched.
WITH remembered AS (
    INSERT INTO task_activity_log_inbox (request_key)
    SELECT request_key
    FROM unnest($12::uuid[]) AS request_key
    WHERE request_key IS NOT NULL
    ON CONFLICT (request_key) DO NOTHING
    RETURNING request_key
),
-- Instants are passed as text. The driver would turn the first and the last instant of the calendar, which .NET
-- programs send for "not set", into -infinity and infinity.
-- The stored row is read only in ON CONFLICT, where it is locked. If it were joined to the SELECT, two workers could lose
-- updates.
written AS (
    INSERT INTO task_activity_log AS stored (
        id, task_id, task_activity_id, user_id, contact_id, subject, description,
        due_date, is_closed, date_closed, reference_back_office, source_version
    )
    SELECT
        id, task_id, task_activity_id, user_id, contact_id, subject, description,
        due_date::timestamptz, is_closed, date_closed::timestamptz, reference_back_office, version
    FROM unnest(
        $1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::text[],
        $8::text[], $9::boolean[], $10::text[], $11::text[], $12::uuid[], $13::bigint[]
    ) AS asked (
        id, task_id, task_activity_id, user_id, contact_id, subject, description,
        due_date, is_closed, date_closed, reference_back_office, request_key, version
    )
    WHERE request_key IN (SELECT request_key FROM remembered) OR request_key IS NULL
    ON CONFLICT (id) DO UPDATE SET
        {assignments}
        source_version = coalesce(excluded.source_version, stored.source_version)
    WHERE excluded.source_version IS NULL
        OR stored.source_version IS NULL
        OR excluded.source_version > stored.source_version
    -- xmax is 0 in a row that was just inserted. ON CONFLICT locks an existing row before it updates it, and the lock
    -- stays in xmax.
    RETURNING
        id, task_id, task_activity_id, user_id, contact_id, subject, description,
        due_date, is_closed, date_closed, reference_back_office, modified_dateutc, xmax = 0 AS inserted
)
-- Other programs may have stored instants that Python cannot represent (infinity, before year 1, after year 9999). Such a
-- record is written, but there is no reply with it. Without this check one such row would fail the whole wave.
-- {too_long} stands for the condition that the rows before have so much text that this one must be read by itself. Its
-- texts and modified_dateutc are then null.
SELECT
    id, task_id, task_activity_id, user_id, contact_id,
    CASE WHEN NOT too_long THEN subject END AS subject,
    CASE WHEN NOT too_long THEN description END AS description,
    CASE WHEN readable THEN due_date END AS due_date,
    is_closed,
    CASE WHEN readable THEN date_closed END AS date_closed,
    CASE WHEN NOT too_long THEN reference_back_office END AS reference_back_office,
    CASE WHEN readable AND NOT too_long THEN modified_dateutc END AS modified_dateutc,
    CASE WHEN NOT readable THEN 'rejected' WHEN inserted THEN 'inserted' ELSE 'updated' END AS outcome
FROM (
    SELECT
        *,
        least(due_date, date_closed, modified_dateutc) >= '0001-01-01 00:00:00Z'
        AND greatest(due_date, date_closed, modified_dateutc) <= '9999-12-31 23:59:59.999999Z' AS readable,
        {too_long} AS too_long
    FROM written
) AS answer
UNION ALL
-- Taken now but not written: stale.
SELECT id, null, null, null, null, null, null, null, null, null, null, null, 'stale'
FROM unnest($1::uuid[], $12::uuid[]) AS asked (id, request_key)
WHERE (request_key IN (SELECT request_key FROM remembered) OR request_key IS NULL)
    AND id NOT IN (SELECT id FROM written)
