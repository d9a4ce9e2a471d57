-- The tables of records and of the inbox as they are found (see table.py), in one row. If there is no such table, its kind is
-- null. Names and types come from the catalog, so they can be shown.
WITH RECURSIVE found AS (
    SELECT pg_catalog.to_regclass('task_activity_log') AS records, pg_catalog.to_regclass('task_activity_log_inbox') AS inbox
),
both_columns AS (
    SELECT
        attrelid, attnum, attname, atttypid, attnotnull,
        atthasdef OR attidentity OPERATOR(pg_catalog.<>) '' OR attgenerated OPERATOR(pg_catalog.<>) '' AS filled,
        attidentity OPERATOR(pg_catalog.=) 'a' OR attgenerated OPERATOR(pg_catalog.<>) '' AS generated,
        pg_catalog.format_type(atttypid, atttypmod) AS declared
    FROM pg_catalog.pg_attribute
    WHERE attrelid OPERATOR(pg_catalog.=) ANY (SELECT pg_catalog.unnest(ARRAY[records, inbox]) FROM found)
        AND attnum OPERATOR(pg_catalog.>) 0::pg_catalog.int2
        AND NOT attisdropped
),
columns AS (
    SELECT attname, attnotnull, filled, generated, declared FROM both_columns
    WHERE attrelid OPERATOR(pg_catalog.=) (SELECT records FROM found)
),
inbox_columns AS (
    SELECT attname, attnotnull, filled, generated FROM both_columns
    WHERE attrelid OPERATOR(pg_catalog.=) (SELECT inbox FROM found)
),
-- The unique indexes on one column that ON CONFLICT can use, and whether it is permitted: one that is deferrable is found, and
-- then fails.
unique_indexes AS (
    SELECT attrelid, attname, pg_catalog.bool_and(indimmediate) AS usable
    FROM pg_catalog.pg_index JOIN both_columns
        ON attrelid OPERATOR(pg_catalog.=) indrelid AND attnum OPERATOR(pg_catalog.=) indkey[0]
    WHERE indisunique AND indisvalid AND indpred IS NULL AND indexprs IS NULL
        AND indnkeyatts OPERATOR(pg_catalog.=) 1::pg_catalog.int2
    GROUP BY attrelid, attname
),
-- A domain is what it is based on, which may be a domain too.
bases AS (
    SELECT attrelid, attname, atttypid AS type FROM both_columns
    UNION ALL
    SELECT attrelid, attname, typbasetype
    FROM bases JOIN pg_catalog.pg_type ON pg_type.oid OPERATOR(pg_catalog.=) type
    WHERE typbasetype OPERATOR(pg_catalog.<>) 0::pg_catalog.oid
),
based AS (
    SELECT attrelid, attname, typname
    FROM bases JOIN pg_catalog.pg_type ON pg_type.oid OPERATOR(pg_catalog.=) type
    WHERE typbasetype OPERATOR(pg_catalog.=) 0::pg_catalog.oid
),
-- Both tables, with their partitions.
parts AS (
    SELECT root, part
    FROM found, pg_catalog.unnest(ARRAY[records, inbox]::pg_catalog.oid[]) AS roots (root), LATERAL (
        SELECT root AS part
        UNION
        SELECT relid::pg_catalog.oid FROM pg_catalog.pg_partition_tree(root::pg_catalog.regclass)
    ) AS tree
),
-- Both tables and those behind views, with their partitions. (`parts` is not used here, whose rows PostgreSQL cannot estimate: it
-- would take the plan for so costly that it compiled it, for more than a second.)
behind AS (
    SELECT root AS relation FROM found, pg_catalog.unnest(ARRAY[records, inbox]::pg_catalog.oid[]) AS roots (root)
    UNION
    SELECT further.next FROM behind, LATERAL (
        SELECT refobjid AS next
        FROM pg_catalog.pg_rewrite
        JOIN pg_catalog.pg_depend ON objid OPERATOR(pg_catalog.=) pg_rewrite.oid
            AND classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass::pg_catalog.oid
            AND refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid
        WHERE ev_class OPERATOR(pg_catalog.=) relation
        UNION ALL
        SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent OPERATOR(pg_catalog.=) relation
    ) AS further
),
-- Those of partitions, too: they fire for the rows that are stored there. `own` is whether one is the table's itself.
triggers AS (
    SELECT
        root, tgname, tgenabled, tgtype::pg_catalog.int4 AS bits,
        tgrelid OPERATOR(pg_catalog.=) root AS own
    FROM pg_catalog.pg_trigger JOIN parts ON part OPERATOR(pg_catalog.=) tgrelid
    WHERE NOT tgisinternal
        AND (tgrelid OPERATOR(pg_catalog.=) root OR tgparentid OPERATOR(pg_catalog.=) 0::pg_catalog.oid)
),
-- Rules of the tables with which ON CONFLICT fails: those for updates even if they are disabled, those for inserts that fire.
-- pg_class.relhasrules is true for others as well, and stays true after all were dropped. Types: 2 update, 3 insert.
conflicting_rules AS (
    SELECT ev_class FROM found
    JOIN pg_catalog.pg_rewrite ON ev_class OPERATOR(pg_catalog.=) ANY (ARRAY[records, inbox]::pg_catalog.oid[])
    WHERE ev_type OPERATOR(pg_catalog.=) '2'
        OR ev_type OPERATOR(pg_catalog.=) '3' AND ev_enabled OPERATOR(pg_catalog.<>) 'D' AND (
            ev_enabled OPERATOR(pg_catalog.=) 'A' OR (ev_enabled OPERATOR(pg_catalog.=) 'R') OPERATOR(pg_catalog.=) (
                pg_catalog.current_setting('session_replication_role') OPERATOR(pg_catalog.=) 'replica'
            )
        )
),
-- Bits of tgtype: 1 for each row, 2 before, 4 insert, 16 update.
before_insert AS (
    SELECT root, tgname, own FROM triggers
    WHERE tgenabled OPERATOR(pg_catalog.<>) 'D'
        AND (bits OPERATOR(pg_catalog.&) 7) OPERATOR(pg_catalog.=) 7
)
SELECT
    records.relkind::pg_catalog.text AS kind,
    inbox.relkind::pg_catalog.text AS inbox_kind,
    -- If one of them is not found: the schemas that have a table of its name.
    {elsewhere} AS elsewhere,
    records.oid OPERATOR(pg_catalog.=) ANY (SELECT ev_class FROM conflicting_rules) AS has_rules,
    inbox.oid OPERATOR(pg_catalog.=) ANY (SELECT ev_class FROM conflicting_rules) AS inbox_has_rules,
    records.relrowsecurity AS has_row_security,
    -- A view that does not show every row of its table. Keywords are in capital letters there.
    records.relkind OPERATOR(pg_catalog.=) 'v' AND pg_catalog.pg_get_viewdef(records.oid)
        OPERATOR(pg_catalog.~) E'\\m(WHERE|JOIN|LIMIT|FETCH|OFFSET|HAVING)\\M' AS is_filtered,
    inbox.relrowsecurity AS inbox_has_row_security,
    -- Rows whose id is in no partition cannot be stored.
    EXISTS (
        SELECT FROM pg_catalog.pg_partitioned_table
        WHERE partrelid OPERATOR(pg_catalog.=) records.oid AND partstrat OPERATOR(pg_catalog.<>) 'h'
            AND partdefid OPERATOR(pg_catalog.=) 0::pg_catalog.oid
    ) AS lacks_default_partition,
    -- Partitions inherit too, but have no rows of their own.
    EXISTS (
        SELECT FROM pg_catalog.pg_inherits WHERE inhparent OPERATOR(pg_catalog.=) records.oid AND records.relkind OPERATOR(pg_catalog.=) 'r'
    ) AS has_children,
    (
        SELECT tgenabled::pg_catalog.text FROM triggers
        WHERE root OPERATOR(pg_catalog.=) found.records AND own AND tgname OPERATOR(pg_catalog.=) 'task_activity_log_modified'
    ) AS trigger_enabled,
    pg_catalog.current_setting('session_replication_role') AS replication_role,
    EXISTS (
        SELECT FROM before_insert
        WHERE root OPERATOR(pg_catalog.=) found.records
            AND NOT (own AND tgname OPERATOR(pg_catalog.=) 'task_activity_log_modified')
    ) AS has_other_triggers,
    -- Whether code of others is executed for a row: by a trigger of either table; by a trigger of the table behind a view; or by
    -- a function in a constraint, a default, a policy or an index. Functions of PostgreSQL itself are no dependencies.
    coalesce(records.relkind OPERATOR(pg_catalog.=) 'v' OR inbox.relkind OPERATOR(pg_catalog.=) 'v', false) OR EXISTS (
        SELECT FROM triggers
        WHERE tgenabled OPERATOR(pg_catalog.<>) 'D' AND NOT (
            own AND root OPERATOR(pg_catalog.=) found.records AND tgname OPERATOR(pg_catalog.=) 'task_activity_log_modified'
        )
    ) OR EXISTS (
        SELECT FROM (
            SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass AS kind, pg_constraint.oid AS id
            FROM pg_catalog.pg_constraint JOIN parts ON part OPERATOR(pg_catalog.=) conrelid
            UNION ALL SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, pg_attrdef.oid
            FROM pg_catalog.pg_attrdef JOIN parts ON part OPERATOR(pg_catalog.=) adrelid
            UNION ALL SELECT 'pg_catalog.pg_policy'::pg_catalog.regclass, pg_policy.oid
            FROM pg_catalog.pg_policy JOIN parts ON part OPERATOR(pg_catalog.=) polrelid
            UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, indexrelid
            FROM pg_catalog.pg_index JOIN parts ON part OPERATOR(pg_catalog.=) indrelid
        ) AS ours
        JOIN pg_catalog.pg_depend ON classid OPERATOR(pg_catalog.=) kind::pg_catalog.oid AND objid OPERATOR(pg_catalog.=) id
        WHERE refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid
    ) AS has_code_of_others,
    ARRAY(
        SELECT tgname::pg_catalog.text FROM before_insert WHERE root OPERATOR(pg_catalog.=) found.inbox
        GROUP BY tgname ORDER BY tgname
    ) AS inbox_triggers,
    -- Partitions of the records in which the trigger is disabled, and columns that are NOT NULL there alone.
    ARRAY(
        SELECT part::pg_catalog.regclass::pg_catalog.text FROM parts
        JOIN pg_catalog.pg_trigger ON tgrelid OPERATOR(pg_catalog.=) part
        WHERE root OPERATOR(pg_catalog.=) found.records AND part OPERATOR(pg_catalog.<>) root
            AND tgname OPERATOR(pg_catalog.=) 'task_activity_log_modified'
            AND (tgenabled OPERATOR(pg_catalog.=) 'D' OR tgenabled OPERATOR(pg_catalog.<>) 'A' AND (
                (tgenabled OPERATOR(pg_catalog.=) 'R') OPERATOR(pg_catalog.<>) (
                    pg_catalog.current_setting('session_replication_role') OPERATOR(pg_catalog.=) 'replica'
                )
            ))
        ORDER BY 1
    ) AS disabled_in,
    ARRAY(
        SELECT pg_catalog.format('%I of the partition %s', attname, part::pg_catalog.regclass) FROM parts
        JOIN pg_catalog.pg_attribute ON attrelid OPERATOR(pg_catalog.=) part
        WHERE root OPERATOR(pg_catalog.=) found.records AND part OPERATOR(pg_catalog.<>) root
            AND attnum OPERATOR(pg_catalog.>) 0::pg_catalog.int2 AND attnotnull
            AND NOT (atthasdef OR attidentity OPERATOR(pg_catalog.<>) '' OR attgenerated OPERATOR(pg_catalog.<>) '')
            AND NOT EXISTS (
                SELECT FROM columns WHERE columns.attname OPERATOR(pg_catalog.=) pg_attribute.attname AND columns.attnotnull
            )
        ORDER BY 1
    ) AS required_in,
    -- Unique and exclusion constraints that no column has that messages set: what they refuse is no message's fault. (FIELDS is put
    -- in by reading.py.)
    ARRAY(
        SELECT relname::pg_catalog.text FROM pg_catalog.pg_index
        JOIN behind ON relation OPERATOR(pg_catalog.=) indrelid
        JOIN pg_catalog.pg_class ON pg_class.oid OPERATOR(pg_catalog.=) indexrelid
        WHERE (indisunique OR indisexclusion) AND (
            indexprs IS NULL OR NOT EXISTS (
                SELECT FROM pg_catalog.pg_depend
                JOIN pg_catalog.pg_attribute ON attrelid OPERATOR(pg_catalog.=) refobjid
                    AND attnum::pg_catalog.int4 OPERATOR(pg_catalog.=) refobjsubid
                WHERE classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid
                    AND objid OPERATOR(pg_catalog.=) indexrelid AND refobjid OPERATOR(pg_catalog.=) indrelid AND (
                        attname::pg_catalog.text OPERATOR(pg_catalog.=) ANY ('{FIELDS}'::pg_catalog.text[])
                        OR attgenerated OPERATOR(pg_catalog.<>) ''
                    )
            )
        ) AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_attribute
            WHERE attrelid OPERATOR(pg_catalog.=) indrelid
                AND attnum OPERATOR(pg_catalog.=) ANY ((indkey::pg_catalog.int2[])[0:indnkeyatts OPERATOR(pg_catalog.-) 1]) AND (
                attname::pg_catalog.text OPERATOR(pg_catalog.=) ANY ('{FIELDS}'::pg_catalog.text[])
                OR attgenerated OPERATOR(pg_catalog.<>) ''
            )
        )
    ) AS without_fields,
    ARRAY(
        SELECT conname::pg_catalog.text FROM pg_catalog.pg_constraint
        JOIN behind ON relation OPERATOR(pg_catalog.=) conrelid
        WHERE contype OPERATOR(pg_catalog.=) 'f' AND EXISTS (
            SELECT FROM pg_catalog.pg_attribute
            WHERE attrelid OPERATOR(pg_catalog.=) conrelid AND attnum OPERATOR(pg_catalog.=) ANY (conkey)
                AND attname OPERATOR(pg_catalog.=) 'id'
        )
    ) AS of_ids,
    -- Domains that are NOT NULL, of columns that no message sets, and of no other.
    ARRAY(
        SELECT typname::pg_catalog.text
        FROM behind
        JOIN pg_catalog.pg_attribute ON attrelid OPERATOR(pg_catalog.=) relation AND NOT attisdropped
        JOIN pg_catalog.pg_type ON pg_type.oid OPERATOR(pg_catalog.=) atttypid
        WHERE typtype OPERATOR(pg_catalog.=) 'd' AND typnotnull
        GROUP BY typname
        HAVING NOT pg_catalog.bool_or(attname::pg_catalog.text OPERATOR(pg_catalog.=) ANY ('{FIELDS}'::pg_catalog.text[]))
    ) AS domains_without_fields,
    -- Both tables and those behind views, with their partitions.
    ARRAY(
        SELECT pg_catalog.concat(nspname, '.', relname)
        FROM behind
        JOIN pg_catalog.pg_class ON pg_class.oid OPERATOR(pg_catalog.=) relation
        JOIN pg_catalog.pg_namespace ON pg_namespace.oid OPERATOR(pg_catalog.=) relnamespace
    ) AS tables,
    -- Tables, or partitions of them, that a crash of the server empties.
    ARRAY(
        SELECT root.relname::pg_catalog.text
        FROM parts
        JOIN pg_catalog.pg_class AS root ON root.oid OPERATOR(pg_catalog.=) parts.root
        JOIN pg_catalog.pg_class AS stored ON stored.oid OPERATOR(pg_catalog.=) parts.part
        WHERE stored.relpersistence OPERATOR(pg_catalog.=) 'u'
        GROUP BY root.relname
        ORDER BY 1
    ) AS unlogged,
    ARRAY(SELECT attname::pg_catalog.text FROM columns ORDER BY attname) AS names,
    ARRAY(SELECT declared FROM columns ORDER BY attname) AS declared,
    ARRAY(
        SELECT typname::pg_catalog.text FROM based WHERE attrelid OPERATOR(pg_catalog.=) found.records ORDER BY attname
    ) AS types,
    ARRAY(SELECT attname::pg_catalog.text FROM columns WHERE attnotnull AND NOT filled ORDER BY attname) AS required,
    ARRAY(SELECT attname::pg_catalog.text FROM columns WHERE generated ORDER BY attname) AS generated,
    -- Those that are generated from others. An identity is not.
    ARRAY(
        SELECT attname::pg_catalog.text FROM pg_catalog.pg_attribute
        WHERE attrelid OPERATOR(pg_catalog.=) found.records AND attgenerated OPERATOR(pg_catalog.<>) ''
    ) AS computed,
    (
        SELECT usable FROM unique_indexes
        WHERE attrelid OPERATOR(pg_catalog.=) found.records AND attname OPERATOR(pg_catalog.=) 'id'
    ) AS id_is_unique,
    ARRAY(SELECT attname::pg_catalog.text FROM inbox_columns ORDER BY attname) AS inbox_names,
    ARRAY(
        SELECT typname::pg_catalog.text FROM based WHERE attrelid OPERATOR(pg_catalog.=) found.inbox ORDER BY attname
    ) AS inbox_types,
    ARRAY(SELECT attname::pg_catalog.text FROM inbox_columns WHERE attnotnull AND NOT filled ORDER BY attname)
        AS inbox_required,
    EXISTS (SELECT FROM inbox_columns WHERE attname OPERATOR(pg_catalog.=) 'request_key' AND generated) AS key_is_generated,
    (
        SELECT filled FROM inbox_columns WHERE attname OPERATOR(pg_catalog.=) 'processed_at'
    ) AS inbox_has_instants,
    (
        SELECT usable FROM unique_indexes
        WHERE attrelid OPERATOR(pg_catalog.=) found.inbox AND attname OPERATOR(pg_catalog.=) 'request_key'
    ) AS key_is_unique,
    ARRAY(
        SELECT conname::pg_catalog.text FROM pg_catalog.pg_constraint
        WHERE conrelid OPERATOR(pg_catalog.=) ANY (ARRAY[found.records, found.inbox]::pg_catalog.oid[])
    ) AS constraints,
    -- The schemas of the search path in which everybody may create objects.
    ARRAY(
        SELECT pg_catalog.quote_ident(nspname::pg_catalog.text)
        FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) AS path (schema)
        JOIN pg_catalog.pg_namespace ON nspname OPERATOR(pg_catalog.=) schema
        WHERE EXISTS (
            SELECT FROM pg_catalog.aclexplode(nspacl)
            WHERE privilege_type OPERATOR(pg_catalog.=) 'CREATE' AND grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid
        )
    ) AS open_schemas
FROM found
LEFT JOIN pg_catalog.pg_class AS records ON records.oid OPERATOR(pg_catalog.=) found.records
LEFT JOIN pg_catalog.pg_class AS inbox ON inbox.oid OPERATOR(pg_catalog.=) found.inbox
