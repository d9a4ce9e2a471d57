-- The table with the revision, if there is one, and whether it is of the role that migrates, or of one whose member it is, also
-- indirectly. A superuser is no member for this: what a stranger has put into a table of his own would be executed with all
-- privileges.
WITH RECURSIVE memberships AS (
    SELECT roleid AS role FROM pg_catalog.pg_auth_members
    WHERE pg_catalog.pg_get_userbyid(member) OPERATOR(pg_catalog.=) current_user
    UNION
    SELECT roleid FROM memberships JOIN pg_catalog.pg_auth_members ON member OPERATOR(pg_catalog.=) role
)
SELECT
    pg_catalog.pg_get_userbyid(relowner) AS owner,
    relkind OPERATOR(pg_catalog.=) 'r' AS is_table,
    pg_catalog.pg_get_userbyid(relowner) OPERATOR(pg_catalog.=) current_user
        OR relowner OPERATOR(pg_catalog.=) ANY (SELECT role FROM memberships) AS is_ours
FROM pg_catalog.pg_class
WHERE pg_class.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('task_activity_log_alembic_version')::pg_catalog.oid
