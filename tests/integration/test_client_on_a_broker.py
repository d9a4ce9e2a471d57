"""The suite of the client on a real worker and its broker."""

from typing import Any

import aio_pika
import pytest

from task_activity_log.client import Subscription, TaskActivityLogClient, subscribe
from task_activity_log.rabbitmq.topology import Topology
from tests.client_suite import PublisherSuite, SubscriberSuite
from tests.commands import World


class OnABroker:
    """A worker process and its broker."""

    def __init__(self, amqp_url: str) -> None:
        self._url = amqp_url

    def client(self, *, window: int = 2_000) -> TaskActivityLogClient:
        return TaskActivityLogClient(self._url, window=window)

    def subscribe(self, **options: Any) -> Subscription[Any]:
        return subscribe(self._url, **options)

    async def publish_junk(self, key: str) -> None:
        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(Topology().replies_exchange, ensure=False)
            await exchange.publish(aio_pika.Message(b"junk"), key)


@pytest.fixture
def place(world: World) -> OnABroker:
    """The worker that all tests of this module share."""
    return OnABroker(world.amqp_url)


class TestPublisher(PublisherSuite):
    """On a broker."""


class TestSubscriber(SubscriberSuite):
    """On a broker."""
