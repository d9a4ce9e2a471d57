"""The commands `settings` and `find`, and their options. Each imports what it needs when it runs."""

import sys
from typing import Annotated

import typer

from task_activity_log.cli.exit_codes import WRONG_USE, fail, guarded, settings_or_exit
from task_activity_log.settings import Settings, variable


def complete_setting(incomplete: str) -> list[str]:
    """The settings that begin with this, for the Tab key."""
    return [name for name in map(variable, Settings.model_fields) if name.startswith(incomplete.upper())]


def settings_(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="Print these in full, with their meaning.", autocompletion=complete_setting
        ),
    ] = None,
    *,
    changed: Annotated[bool, typer.Option("--changed", help="Only those that are set.")] = False,
) -> None:
    """Print all settings with value, default, and where the value comes from: the environment or a file. Secrets are hidden.

    \b
    Examples:
      task-activity-log settings
      task-activity-log settings --changed
      task-activity-log settings WORKER_BATCH_MAX
    """
    from task_activity_log.cli.settings_list import show

    sys.exit(show(settings_or_exit(), names or (), changed=changed))


def find(
    name: Annotated[str, typer.Argument(metavar="ID", help="A message_id, a correlation_id or the id of a record.")],
) -> None:
    """Find out what became of a message or a record: the row, dead letters, waiting replies, and what the journal has.

    With WORKER_JOURNAL, the workers record when and how each message was answered. Changes nothing. Needs AMQP_URL and
    DATABASE_URL. Exits 1 if there is no trace of it.

    \b
    Examples:
      task-activity-log find 9652e68c-7b6d-4598-bbbd-4e933126c994
    """
    try:
        name.encode()
    except UnicodeEncodeError:  # the bytes of an argument that are not UTF-8 are halves of surrogate pairs
        fail("ID should be text in UTF-8", WRONG_USE)
    settings = settings_or_exit("amqp_url", "database_url")
    from task_activity_log.cli.find import find as look

    sys.exit(guarded(lambda: look(settings, name)))
