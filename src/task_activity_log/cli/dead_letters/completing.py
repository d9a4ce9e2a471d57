"""Message ids of dead letters, for the Tab key."""

import asyncio
import re

from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import borrow_dead_letters
from task_activity_log.settings import SettingsError, load
from task_activity_log.wiring import link_of

_SECONDS = 2.0
_MOST = 500
"""How many dead letters are looked at, the oldest."""
_HARMLESS = re.compile(r"[\w.:@+][\w.:@+-]*", re.ASCII)
"""A publisher chooses the ids: a shell would execute others, and one such as `--all` would be an option."""


def complete_id(incomplete: str) -> list[str]:
    """The message ids that begin with this. None if they are not known in two seconds; never an error."""
    try:
        return asyncio.run(_names(incomplete))
    except (ClientError, SettingsError, TimeoutError):
        return []


async def _names(incomplete: str) -> list[str]:
    settings = load(needed=("amqp_url",))
    names: list[str] = []
    async with asyncio.timeout(_SECONDS), borrow_dead_letters(link_of(settings), settings.dead_letters_queue) as loan:
        async for letter in loan:
            names.append(letter.name)
            if len(names) == _MOST:
                break
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete) and _HARMLESS.fullmatch(name)]
