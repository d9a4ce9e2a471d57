-- The revision of the schema, as Alembic keeps it (see migrations/).
SELECT version_num FROM task_activity_log_alembic_version
