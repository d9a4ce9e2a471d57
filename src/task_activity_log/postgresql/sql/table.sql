-- The table of records as it is found (see table.py), in one row. If there is no such table, everything about it is null.
-- Names and types come from the catalog, so they can be shown.
WITH RECURSIVE found AS (
    SELECT pg_catalog.to_regclass('task_activity_log') AS records, pg_catalog.to_regclass('task_activity_log_inbox') AS inbox
),
columns AS (
    SELECT
        attname, atttypid, attnotnull,
        atthasdef OR attidentity OPERATOR(pg_catalog.<>) '' OR attgenerated OPERATOR(pg_catalog.<>) '' AS filled,
        pg_catalog.format_type(atttypid, atttypmod) AS declared
    FROM pg_catalog.pg_attribute
    WHERE attrelid OPERATOR(pg_catalog.=) (SELECT records FROM found)
        AND attnum OPERATOR(pg_catalog.>) 0::pg_catalog.int2
        AND NOT attisdropped
),
-- A domain is what it is based on, which may be a domain too.
bases AS (
    SELECT attname, atttypid AS type FROM columns
    UNION ALL
    SELECT attname, typbasetype
    FROM bases JOIN pg_catalog.pg_type ON pg_type.oid OPERATOR(pg_catalog.=) type
    WHERE typbasetype OPERATOR(pg_catalog.<>) 0::pg_catalog.oid
),
based AS (
    SELECT attname, typname
    FROM bases JOIN pg_catalog.pg_type ON pg_type.oid OPERATOR(pg_catalog.=) type
    WHERE typbasetype OPERATOR(pg_catalog.=) 0::pg_catalog.oid
),
triggers AS (
    SELECT tgname, tgenabled, tgtype::pg_catalog.int4 AS bits
    FROM pg_catalog.pg_trigger
    WHERE tgrelid OPERATOR(pg_catalog.=) (SELECT records FROM found) AND NOT tgisinternal
)
SELECT
    relkind::pg_catalog.text AS kind,
    relhasrules AS has_rules,
    relrowsecurity AS has_row_security,
    (SELECT tgenabled::pg_catalog.text FROM triggers WHERE tgname OPERATOR(pg_catalog.=) 'task_activity_log_modified')
        AS trigger_enabled,
    pg_catalog.current_setting('session_replication_role') AS replication_role,
    -- Bits of tgtype: 1 for each row, 2 before, 4 insert, 16 update.
    EXISTS (
        SELECT FROM triggers
        WHERE tgname OPERATOR(pg_catalog.<>) 'task_activity_log_modified'
            AND tgenabled OPERATOR(pg_catalog.<>) 'D'
            AND (bits OPERATOR(pg_catalog.&) 7) OPERATOR(pg_catalog.=) 7
    ) AS has_other_triggers,
    ARRAY(SELECT attname::pg_catalog.text FROM columns ORDER BY attname) AS names,
    ARRAY(SELECT declared FROM columns ORDER BY attname) AS declared,
    ARRAY(SELECT typname::pg_catalog.text FROM based ORDER BY attname) AS types,
    ARRAY(SELECT attname::pg_catalog.text FROM columns WHERE attnotnull AND NOT filled ORDER BY attname) AS required,
    ARRAY(
        SELECT conname::pg_catalog.text FROM pg_catalog.pg_constraint
        WHERE conrelid OPERATOR(pg_catalog.=) (SELECT records FROM found)
    ) AS constraints,
    -- The schemas of the search path in which everybody may create objects.
    ARRAY(
        SELECT nspname::pg_catalog.text
        FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) AS path (schema)
        JOIN pg_catalog.pg_namespace ON nspname OPERATOR(pg_catalog.=) schema
        WHERE EXISTS (
            SELECT FROM pg_catalog.aclexplode(nspacl)
            WHERE privilege_type OPERATOR(pg_catalog.=) 'CREATE' AND grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid
        )
    ) AS open_schemas
FROM found LEFT JOIN pg_catalog.pg_class ON pg_class.oid OPERATOR(pg_catalog.=) records
