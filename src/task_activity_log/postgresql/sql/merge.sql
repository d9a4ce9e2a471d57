-- Store a wave of merges: replace.sql, but a field that a message does not have keeps the stored value. The comments
-- there hold here too.
--
-- $14 tells which fields each message has: {"<id>": ["subject", …], …}. It comes as one document and is looked up by
-- excluded.id, because ON CONFLICT sees nothing but the stored row and the one that was to be inserted.

WITH remembered AS (
    INSERT INTO task_activity_log_inbox (request_key)
    SELECT request_key
    FROM unnest($12::uuid[]) AS request_key
    WHERE request_key IS NOT NULL
    ON CONFLICT (request_key) DO NOTHING
    RETURNING request_key
),
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
        task_id = CASE WHEN $14::jsonb -> excluded.id::text ? 'task_id'
            THEN excluded.task_id ELSE stored.task_id END,
        task_activity_id = CASE WHEN $14::jsonb -> excluded.id::text ? 'task_activity_id'
            THEN excluded.task_activity_id ELSE stored.task_activity_id END,
        user_id = CASE WHEN $14::jsonb -> excluded.id::text ? 'user_id'
            THEN excluded.user_id ELSE stored.user_id END,
        contact_id = CASE WHEN $14::jsonb -> excluded.id::text ? 'contact_id'
            THEN excluded.contact_id ELSE stored.contact_id END,
        subject = CASE WHEN $14::jsonb -> excluded.id::text ? 'subject'
            THEN excluded.subject ELSE stored.subject END,
        description = CASE WHEN $14::jsonb -> excluded.id::text ? 'description'
            THEN excluded.description ELSE stored.description END,
        due_date = CASE WHEN $14::jsonb -> excluded.id::text ? 'due_date'
            THEN excluded.due_date ELSE stored.due_date END,
        is_closed = CASE WHEN $14::jsonb -> excluded.id::text ? 'is_closed'
            THEN excluded.is_closed ELSE stored.is_closed END,
        date_closed = CASE WHEN $14::jsonb -> excluded.id::text ? 'date_closed'
            THEN excluded.date_closed ELSE stored.date_closed END,
        reference_back_office = CASE WHEN $14::jsonb -> excluded.id::text ? 'reference_back_office'
            THEN excluded.reference_back_office ELSE stored.reference_back_office END,
        source_version = coalesce(excluded.source_version, stored.source_version)
    WHERE excluded.source_version IS NULL
        OR stored.source_version IS NULL
        OR excluded.source_version > stored.source_version
    RETURNING
        id, task_id, task_activity_id, user_id, contact_id, subject, description,
        due_date, is_closed, date_closed, reference_back_office, modified_dateutc, xmax = 0 AS inserted
)
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
SELECT id, null, null, null, null, null, null, null, null, null, null, null, 'stale'
FROM unnest($1::uuid[], $12::uuid[]) AS asked (id, request_key)
WHERE (request_key IN (SELECT request_key FROM remembered) OR request_key IS NULL)
    AND id NOT IN (SELECT id FROM written)
