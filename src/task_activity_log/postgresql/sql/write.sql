-- Store a wave. Each request is applied once, and an older version never overwrites a newer one (contract, section 7).
-- One row is returned for each request that is taken now. A request without a row was taken before: it is a duplicate.
--
-- All functions, operators and types have their schema, in this file and in the others. Otherwise anybody who may create a
-- function in a schema of the search path could have the worker call it: public.unnest(uuid[]) fits better than
-- pg_catalog.unnest(anyarray). For the same reason `= ANY (SELECT …)` stands for IN, whose operator cannot have a schema.
--
-- $1 to $11 are the columns of the record, $12 the request keys (null: the request is not remembered), $13 the versions
-- (null: none). Each id occurs once. Rows are sorted by id, so that all workers lock rows in the same order, in both
-- tables; otherwise two workers would deadlock. Nothing below may change that order. For this reason there is no join
-- and no ORDER BY: `= ANY (SELECT …)` under an OR is always a hashed lookup, whatever the planner expects the size of an
-- array to be.
--
-- $14 is the longest wait for one lock. It is set for this statement's transaction, which ends with the statement, so it
-- also works behind a pooler that assigns connections per transaction, and it costs no round trip. PostgreSQL evaluates a
-- subquery that depends on no row once, before the first row is read; and no row is locked before `remembered` is complete.
-- Two more settings, which somebody may have made for the role, are set in the same way: without the warning that a commit has
-- not reached the standby the row would be answered (see session.py), and exit_on_error ends the session with each refused row.
--
-- {assignments} stands for the columns that an update sets. The store fills it in for one of the two update modes:
--   replace: subject = excluded.subject
--   merge:   subject = CASE WHEN ($15::jsonb -> excluded.id::text) ? 'subject'
--                THEN excluded.subject ELSE stored.subject END
-- In a merge, $15 has the fields that each message contains: {"<id>": ["subject", …], …}. It is one document, and it is
-- looked up by excluded.id, because ON CONFLICT can refer only to the stored row and to the row proposed for insertion.
--
-- {inserted} says whether a row was inserted, and not updated:
--   a table: xmax is 0 in a row that was just inserted. ON CONFLICT locks an existing row before it updates it, and the
--            lock stays in xmax.
--   a partitioned table or a view, where xmax cannot be read: there was no such row when the statement began. If two
--            workers write the same new record at the same moment, both say that they have inserted it.

-- If another worker is about to commit the same key, this waits for it before any record is touched.
WITH remembered AS (
    INSERT INTO task_activity_log_inbox (request_key)
    SELECT request_key
    FROM pg_catalog.unnest($12::pg_catalog.uuid[]) AS request_key
    WHERE (SELECT pg_catalog.set_config('lock_timeout', $14::pg_catalog.text, true)) IS NOT NULL
        AND (SELECT pg_catalog.set_config('client_min_messages', 'warning', true)) IS NOT NULL
        AND (SELECT pg_catalog.set_config('exit_on_error', 'off', true)) IS NOT NULL
        AND request_key IS NOT NULL
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
        due_date::pg_catalog.timestamptz, is_closed, date_closed::pg_catalog.timestamptz, reference_back_office, version
    FROM ROWS FROM (
        pg_catalog.unnest($1::pg_catalog.uuid[]), pg_catalog.unnest($2::pg_catalog.uuid[]),
        pg_catalog.unnest($3::pg_catalog.uuid[]), pg_catalog.unnest($4::pg_catalog.uuid[]),
        pg_catalog.unnest($5::pg_catalog.uuid[]), pg_catalog.unnest($6::pg_catalog.text[]),
        pg_catalog.unnest($7::pg_catalog.text[]), pg_catalog.unnest($8::pg_catalog.text[]),
        pg_catalog.unnest($9::pg_catalog.bool[]), pg_catalog.unnest($10::pg_catalog.text[]),
        pg_catalog.unnest($11::pg_catalog.text[]), pg_catalog.unnest($12::pg_catalog.uuid[]),
        pg_catalog.unnest($13::pg_catalog.int8[])
    ) AS asked (
        id, task_id, task_activity_id, user_id, contact_id, subject, description,
        due_date, is_closed, date_closed, reference_back_office, request_key, version
    )
    WHERE request_key OPERATOR(pg_catalog.=) ANY (SELECT request_key FROM remembered) OR request_key IS NULL
    ON CONFLICT (id) DO UPDATE SET
        {assignments}
        source_version = coalesce(excluded.source_version, stored.source_version)
    WHERE excluded.source_version IS NULL
        OR stored.source_version IS NULL
        OR excluded.source_version OPERATOR(pg_catalog.>) stored.source_version
    RETURNING
        id, task_id, task_activity_id, user_id, contact_id, {subject} AS subject, {description} AS description,
        due_date, is_closed, date_closed, {reference_back_office} AS reference_back_office, modified_dateutc,
        {inserted} AS inserted, {length} AS length
)
-- Other programs may have stored instants that Python cannot represent (infinity, before year 1, after year 9999). Such a
-- record is written, but there is no reply with it. Without this check one such row would fail the whole wave.
-- The casts cost nothing if a column has the type that the migrations gave it. Somebody's own table may have another one.
-- {uuids} stands for the other uuids. A column of text may have one that is long, and the error would quote all of it: the driver
-- takes a time for it that grows with the square of its length. So only its beginning is cast.
-- modified_dateutc is set by a trigger. If it is not of this moment, the trigger is missing or disabled, and the statement
-- fails with {unset} in its error (see faults.py). Clocks are stepped, and the column may be rounded to seconds.
-- {length} stands for the bytes of text in a row, and {too_long} for the condition that it has so much text, or the rows together
-- have, that it must be read by itself. Its texts and modified_dateutc are then null; where a text alone is too long, it is null
-- from the start. Of a replace all rows are returned, unless code of others is executed for a row: the texts are those of the requests.
SELECT
    id::pg_catalog.uuid,
    {uuids},
    CASE WHEN NOT too_long THEN subject::pg_catalog.text END AS subject,
    CASE WHEN NOT too_long THEN description::pg_catalog.text END AS description,
    CASE WHEN readable THEN due_date::pg_catalog.timestamptz END AS due_date,
    is_closed::pg_catalog.bool,
    CASE WHEN readable THEN date_closed::pg_catalog.timestamptz END AS date_closed,
    CASE WHEN NOT too_long THEN reference_back_office::pg_catalog.text END AS reference_back_office,
    CASE WHEN readable AND NOT too_long THEN modified_dateutc::pg_catalog.timestamptz END AS modified_dateutc,
    CASE
        WHEN (modified_dateutc OPERATOR(pg_catalog.>=) (
            SELECT pg_catalog.now() OPERATOR(pg_catalog.-) '1 second'::pg_catalog.interval
        )) IS NOT TRUE THEN
            ('{unset}' OPERATOR(pg_catalog.||) pg_catalog.left(id::pg_catalog.text, 0))::pg_catalog.bool::pg_catalog.text
        WHEN NOT readable THEN 'rejected'
        WHEN inserted THEN 'inserted'
        ELSE 'updated'
    END AS outcome
FROM (
    SELECT
        *,
        least(due_date, date_closed, modified_dateutc)
            OPERATOR(pg_catalog.>=) '0001-01-01 00:00:00Z'::pg_catalog.timestamptz
        AND greatest(due_date, date_closed, modified_dateutc)
            OPERATOR(pg_catalog.<=) '9999-12-31 23:59:59.999999Z'::pg_catalog.timestamptz AS readable,
        {too_long} AS too_long
    FROM written
) AS answer
UNION ALL
-- Taken now but not written: stale, if the stored version is as high. Otherwise a trigger has skipped the row, or another
-- worker has stored such a version since this statement began. Then the statement fails with {skipped} in its error, so that
-- the key is not remembered, and is tried once more: by then the other worker's version can be seen.
-- Not taken, and the key is not in the inbox either: a trigger has skipped or changed the key, so that every request would
-- be a duplicate; or another worker has stored it since this statement began. The statement fails in the same way, with
-- {unkept} in its error.
-- The subquery for the version looks up one row for each of these; as an EXISTS it might be hashed, which reads the whole
-- table. That for the keys is evaluated once, and only if there is a duplicate.
SELECT
    id, null, null, null, null, null, null, null, null, null, null, null,
    CASE
        WHEN taken AND (
            SELECT kept.source_version FROM task_activity_log AS kept WHERE kept.id OPERATOR(pg_catalog.=) asked.id
        ) OPERATOR(pg_catalog.>=) asked.version THEN 'stale'
        ELSE
            (
                CASE WHEN taken THEN '{skipped}' ELSE '{unkept}' END
                    OPERATOR(pg_catalog.||) pg_catalog.left(id::pg_catalog.text, 0)
            )::pg_catalog.bool::pg_catalog.text
    END
FROM (
    SELECT
        id, request_key, version,
        request_key OPERATOR(pg_catalog.=) ANY (SELECT request_key FROM remembered) OR request_key IS NULL AS taken
    FROM ROWS FROM (
        pg_catalog.unnest($1::pg_catalog.uuid[]), pg_catalog.unnest($12::pg_catalog.uuid[]),
        pg_catalog.unnest($13::pg_catalog.int8[])
    ) AS sent (id, request_key, version)
) AS asked
WHERE CASE
    WHEN taken THEN NOT (id OPERATOR(pg_catalog.=) ANY (SELECT id FROM written))
    ELSE NOT (request_key OPERATOR(pg_catalog.=) ANY (
        SELECT known.request_key FROM task_activity_log_inbox AS known
        WHERE known.request_key OPERATOR(pg_catalog.=) ANY ($12::pg_catalog.uuid[])
    ))
END
