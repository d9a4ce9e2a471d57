-- Store a wave of replacements, each applied once and never older over newer (contract, section 7). One row comes
-- back for each request that is taken now; a request without a row was taken before: a duplicate.
--
-- $1–$11 are the columns of the record, $12 the request keys (null: not remembered), $13 the versions (null: none).
-- Every id is there once. Rows come sorted by id, which puts both tables in one order for all workers: without it two
-- workers deadlock. Nothing below may change that order, so there is no join and no ORDER BY: `IN (SELECT …)` under an
-- OR is always a hashed lookup, whatever the planner believes of the size of an array.

-- A key that another worker is about to commit is waited for here, before any record is touched.
WITH remembered AS (
    INSERT INTO task_activity_log_inbox (request_key)
    SELECT request_key
    FROM unnest($12::uuid[]) AS request_key
    WHERE request_key IS NOT NULL
    ON CONFLICT (request_key) DO NOTHING
    RETURNING request_key
),
-- Instants come as text: the driver would store the first and the last instant of the calendar, which .NET peers send
-- for "unset", as -infinity and infinity.
-- The old row is seen in ON CONFLICT alone, where it is locked: joined to the SELECT, two workers would lose updates.
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
        task_id = excluded.task_id,
        task_activity_id = excluded.task_activity_id,
        user_id = excluded.user_id,
        contact_id = excluded.contact_id,
        subject = excluded.subject,
        description = excluded.description,
        due_date = excluded.due_date,
        is_closed = excluded.is_closed,
        date_closed = excluded.date_closed,
        reference_back_office = excluded.reference_back_office,
        source_version = coalesce(excluded.source_version, stored.source_version)
    WHERE excluded.source_version IS NULL
        OR stored.source_version IS NULL
        OR excluded.source_version > stored.source_version
    -- xmax is 0 in a row just inserted. ON CONFLICT locks the row before it updates it, and the lock stays in xmax.
    RETURNING
        id, task_id, task_activity_id, user_id, contact_id, subject, description,
        due_date, is_closed, date_closed, reference_back_office, modified_dateutc, xmax = 0 AS inserted
)
-- Instants that Python has no date for (infinity, before year 1, after 9999) were put there by others. Such a record is
-- written but cannot be answered; read as they are, one of them would cost its whole wave the answers.
SELECT
    id, task_id, task_activity_id, user_id, contact_id, subject, description,
    CASE WHEN readable THEN due_date END AS due_date,
    is_closed,
    CASE WHEN readable THEN date_closed END AS date_closed,
    reference_back_office,
    CASE WHEN readable THEN modified_dateutc END AS modified_dateutc,
    CASE WHEN NOT readable THEN 'rejected' WHEN inserted THEN 'inserted' ELSE 'updated' END AS outcome
FROM (
    SELECT
        *,
        least(due_date, date_closed, modified_dateutc) >= '0001-01-01 00:00:00Z'
        AND greatest(due_date, date_closed, modified_dateutc) <= '9999-12-31 23:59:59.999999Z' AS readable
    FROM written
) AS answer
UNION ALL
-- Taken now and not written: stale.
SELECT id, null, null, null, null, null, null, null, null, null, null, null, 'stale'
FROM unnest($1::uuid[], $12::uuid[]) AS asked (id, request_key)
WHERE (request_key IN (SELECT request_key FROM remembered) OR request_key IS NULL)
    AND id NOT IN (SELECT id FROM written)
