"""`python -m task_activity_log.cli`: for where the script `task-activity-log` is not on the path."""

from task_activity_log.cli import main

main()
