-- Whether commits here wait for a synchronous standby, and this role may find out when earlier ones are there (confirm.sql).
SELECT pg_catalog.current_setting('synchronous_standby_names') OPERATOR(pg_catalog.<>) ''
    AND NOT pg_catalog.pg_is_in_recovery()
    AND EXISTS (
        SELECT FROM pg_catalog.pg_proc
        WHERE pronamespace OPERATOR(pg_catalog.=) 'pg_catalog'::pg_catalog.regnamespace
            AND proname OPERATOR(pg_catalog.=) 'pg_logical_emit_message'
            AND proargtypes[2] OPERATOR(pg_catalog.=) 'pg_catalog.text'::pg_catalog.regtype
            AND pg_catalog.has_function_privilege(pg_proc.oid, 'EXECUTE')
    ) AS confirmable
