-- The revision of the schema, as Alembic records it (see migrations/).
SELECT version_num FROM task_activity_log_alembic_version
