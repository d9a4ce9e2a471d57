-- What was set for the session before it could be used, as statements that set it again; null if nothing was. A login trigger
-- (since PostgreSQL 17) may have done so, or a pooler, such as pgbouncer with connect_query.
SELECT pg_catalog.string_agg(pg_catalog.format('SELECT pg_catalog.set_config(%L, %L, false)', name, setting), '; ') AS again
FROM (
    SELECT name, setting FROM pg_catalog.pg_settings
    WHERE source OPERATOR(pg_catalog.=) 'session'
        AND context OPERATOR(pg_catalog.=) ANY (ARRAY['user', 'superuser']::pg_catalog.text[])
    UNION ALL
    SELECT 'role', role FROM pg_catalog.current_setting('role') AS role WHERE role OPERATOR(pg_catalog.<>) 'none'
) AS found
