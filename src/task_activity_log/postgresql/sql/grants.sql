-- The privileges that the role of the workers needs, and no more: it can neither delete records nor change the schema.
-- Run it with psql: psql -v role=task_activity_log_worker -f grants.sql
-- If the tables are in a schema other than public, the role also needs USAGE on the schema, and a search_path:
--   ALTER ROLE … SET search_path = …
-- It also executes pg_logical_emit_message, which everybody may unless that was revoked: `check` says so, and what to grant.
GRANT SELECT, INSERT, UPDATE ON task_activity_log TO :"role";
GRANT SELECT, INSERT, DELETE ON task_activity_log_inbox TO :"role";
GRANT SELECT, INSERT, DELETE ON task_activity_log_journal TO :"role";
GRANT SELECT ON task_activity_log_alembic_version TO :"role";
