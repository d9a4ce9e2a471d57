-- A part of other statements: the schemas that have a table with this name; none if the name is null.
ARRAY(
    SELECT nspname::pg_catalog.text
    FROM pg_catalog.pg_class AS other
    JOIN pg_catalog.pg_namespace ON pg_namespace.oid OPERATOR(pg_catalog.=) other.relnamespace
    WHERE other.relkind::pg_catalog.text OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p', 'v', 'f', 'm']::pg_catalog.text[])
        AND other.relpersistence OPERATOR(pg_catalog.<>) 't'
        AND other.relname::pg_catalog.text OPERATOR(pg_catalog.=) {name}
    ORDER BY 1
)
