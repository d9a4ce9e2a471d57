-- Whether rows of the records may be hidden from this role: by row security, or by a view that does not show every row, or whose
-- tables have row security, which may be another one for the owner of the view. Keywords are in capital letters in views.
WITH RECURSIVE used AS (
    SELECT pg_catalog.to_regclass('task_activity_log')::pg_catalog.oid AS id
    UNION
    SELECT refobjid
    FROM used
    JOIN pg_catalog.pg_rewrite ON ev_class OPERATOR(pg_catalog.=) id
    JOIN pg_catalog.pg_depend ON objid OPERATOR(pg_catalog.=) pg_rewrite.oid
    WHERE classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass::pg_catalog.oid
        AND refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid
)
SELECT coalesce(
    pg_catalog.row_security_active(pg_catalog.to_regclass('task_activity_log')::pg_catalog.oid), false
) OR EXISTS (
    SELECT FROM used JOIN pg_catalog.pg_class ON pg_class.oid OPERATOR(pg_catalog.=) id
    WHERE CASE
        WHEN relkind OPERATOR(pg_catalog.=) 'v' THEN pg_catalog.pg_get_viewdef(id)
            OPERATOR(pg_catalog.~) E'\\m(WHERE|JOIN|LIMIT|FETCH|OFFSET|HAVING)\\M'
        ELSE relrowsecurity AND id OPERATOR(pg_catalog.<>) pg_catalog.to_regclass('task_activity_log')::pg_catalog.oid
    END
) AS hides
