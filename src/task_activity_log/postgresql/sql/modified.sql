-- When each of these records was last modified; null if Python cannot represent it. Other columns are not read, because a value
-- in them that cannot be read must not hide that there is a row.
SELECT
    id::pg_catalog.uuid,
    CASE WHEN modified_dateutc OPERATOR(pg_catalog.>=) '0001-01-01 00:00:00Z'::pg_catalog.timestamptz
        AND modified_dateutc OPERATOR(pg_catalog.<=) '9999-12-31 23:59:59.999999Z'::pg_catalog.timestamptz
    THEN modified_dateutc::pg_catalog.timestamptz END AS modified_dateutc
FROM task_activity_log
WHERE id OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.uuid[])
