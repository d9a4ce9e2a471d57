"""Thousands of addresses whose replies are to be tried apart at once."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from task_activity_log.rabbitmq import retries
from task_activity_log.rabbitmq.addresses import Addresses
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.outgoing import Fate
from task_activity_log.rabbitmq.retries import Retries
from tests import virtual_time
from tests.unit.test_answered_time import callbacks

ADDRESSES = 3000


class FakeChannel:
    """A channel on which every reply comes back at once."""

    def __init__(self, published: list[str]) -> None:
        self.channel = SimpleNamespace(is_closed=False, close=lambda: asyncio.sleep(0))
        self.settled, self.message_max = True, None
        self._published = published

    def begin(self, messages: list[str]) -> tuple[Any, list[bytes]]:
        self._published += messages
        return SimpleNamespace(fates=[Fate.RETURNED], on_late=None), []

    async def send(self, batch: Any, _: list[bytes]) -> None:
        await asyncio.sleep(0)
        batch.on_late(0, Fate.RETURNED)

    def lose(self) -> None:
        pass


def test_few_channels_are_opened_for_thousands_of_addresses() -> None:
    """If one were opened for each at once, the answers of the broker would come too late, and all would be tried again."""
    opened, under_way, most = 0, 0, 0
    published: list[str] = []

    async def open_channel(*_: object) -> FakeChannel:
        nonlocal opened, under_way, most
        opened, under_way = opened + 1, under_way + 1
        most = max(most, under_way)
        await asyncio.sleep(0.1)
        under_way -= 1
        return FakeChannel(published)

    async def main() -> None:
        given_up: list[str | None] = []
        addresses: Addresses[str] = Addresses(give_up_seconds=30, count_max=ADDRESSES, size_max=2**30)
        for number in range(ADDRESSES):
            addresses.join(f"gone-{number}", "reply", 1, 0.0)
        calls = callbacks(given_up, lambda: asyncio.sleep(0, result=True))
        object.__setattr__(calls, "outgoing", lambda address, _: address)
        tried = Retries(LinkOptions("amqp://nowhere/"), addresses, calls)
        tried._link = cast("Any", (None, SimpleNamespace(blocked=None)))
        with (
            patch.object(retries, "open_confirming", open_channel),
            patch.object(retries, "supervise", lambda *_: asyncio.Event().wait()),  # no connection is opened
        ):
            running = asyncio.create_task(tried.run())
            tried.wake()
            while len(given_up) < ADDRESSES:
                await asyncio.sleep(0.01)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
        assert given_up == ["returned"] * ADDRESSES

    virtual_time.run(main())
    assert sorted(published) == sorted(f"gone-{number}" for number in range(ADDRESSES))
    assert most <= 16
    assert opened <= 64
