"""`python -m task_activity_log.cli`: the command, where its script is not on the path."""

from task_activity_log.cli import main

main()
