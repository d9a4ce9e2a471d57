-- What the role that runs workers needs, and no more: it can neither delete records nor change the schema.
-- For psql: psql -v role=task_activity_log_worker -f grants.sql
-- In a schema other than public the role needs USAGE on it, too, and the schema in its search_path:
--   ALTER ROLE … SET search_path = …
GRANT SELECT, INSERT, UPDATE ON task_activity_log TO :"role";
GRANT SELECT, INSERT, DELETE ON task_activity_log_inbox TO :"role";
GRANT SELECT ON task_activity_log_alembic_version TO :"role";
