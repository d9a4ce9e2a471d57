"""The end of the console."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from task_activity_log.client.looks import Looks
from task_activity_log.console import actions
from task_activity_log.console.actions import Actions, unchanged
from task_activity_log.console.users import ALL, User
from task_activity_log.message import Properties
from tests.consoles import console_of, letter


async def test_an_action_that_waits_for_a_silent_broker_does_not_keep_the_console_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kubernetes would kill it. Of what was sent, something may not have been removed."""

    class Silent:
        @asynccontextmanager
        async def on_loan(self, _: object) -> AsyncIterator[None]:
            await asyncio.Event().wait()
            yield

    monkeypatch.setattr(actions, "_STOP_SECONDS", 0.01)
    found = Actions(console_of().settings, cast("Looks", Silent()), None)
    entry = unchanged(letter(b"{}", Properties(message_id="one")))
    action = found.begin("discard", User("anna", ALL), "old", [entry])
    await asyncio.wait_for(found.stop(), 10)
    assert (action.runs, "while it waited for the broker" in action.problem) == (False, True)
