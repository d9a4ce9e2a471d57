"""Messages that cost as much as they can: the innocent ones among them are answered, and the event loop keeps running.

How long the loop stands still depends on the machine; how much is done in one of its iterations does not. So work is
counted here (tests/loop_work.py), and `python -m benchmarks.loop` times it.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
import structlog

from sandbox.proxy import Proxy
from task_activity_log.service import Service
from tests import hostile
from tests.faults.conversation import TOPOLOGY, Conversation, conversing, until
from tests.loop_work import Work, counting
from tests.returned import make_suspicious
from tests.serving import serving

LINES_MAX = 1_500_000
"""What Python executes in about a tenth of a second."""
OCTETS_MAX = 16 * 2**20
"""Functions are called with a body of 256 KiB some ten times: four of the worst take about a tenth of a second."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """An event a batch, as a worker logs by default, and not one a message."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    structlog.reset_defaults()


class Stage:
    """A worker that is about to take a whole batch at once."""

    def __init__(self, talk: Conversation, service: Service, database: Proxy) -> None:
        self.talk = talk
        self.service = service
        self._database = database
        self._sent = 0

    async def send(self, *messages: aio_pika.Message) -> None:
        """Put messages into the batch, in this order."""
        await publish(self.talk, *messages)
        self._sent += len(messages)

    async def go(self, *, answers: int) -> tuple[list[str], Work]:
        """Let the worker take what was sent; the outcomes of the replies, and the most work in one iteration of the loop."""
        await until(lambda: self.service.in_hand == self._sent)
        with counting() as work:
            self._database.resume()
            outcomes = await self.talk.outcomes(answers)
            # If a connection is lost meanwhile, replies to addresses that are not there are tried ten at a time.
            await until(lambda: self.service.in_hand == 0, 300)
        return outcomes, work


@asynccontextmanager
async def stage(amqp_url: str, database_url: str, **variables: Any) -> AsyncIterator[Stage]:
    """A worker that has its full prefetch, and whose database does not answer until all has arrived."""
    async with Proxy.to(database_url) as database, conversing(amqp_url) as talk:
        async with serving(amqp_url, database.url, **variables) as service:
            await talk.send()
            await talk.outcomes(1)
            database.hold()
            prepared = Stage(talk, service, database)
            await prepared.send(innocent())
            yield prepared
            assert lost_connections(service) == 0
            assert service.status.not_alive() == []


async def publish(talk: Conversation, *messages: aio_pika.Message) -> None:
    exchange = await talk.channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
    await asyncio.gather(*(exchange.publish(message, "upsert", mandatory=True) for message in messages))


def lost_connections(service: Service) -> float:
    """How many connections to the broker were lost."""
    samples = [sample for metric in service.metrics.registry.collect() for sample in metric.samples]
    return sum(s.value for s in samples if s.name == "task_activity_log_connections_lost_total")


def innocent(reply_to: str | None = None) -> aio_pika.Message:
    return aio_pika.Message(
        json.dumps({"id": str(uuid4()), "subject": "innocent"}).encode(), message_id=str(uuid4()), reply_to=reply_to
    )


def first_outcomes(outcomes: list[str]) -> list[str]:
    """Sorted, and with `inserted` for `duplicate`: counting makes the loop slow, so that a statement that has committed may time
    out on a busy machine. Then it is repeated."""
    return sorted("inserted" if outcome == "duplicate" else outcome for outcome in outcomes)


def bounded(work: Work) -> bool:
    return work.lines < LINES_MAX and work.octets < OCTETS_MAX


@pytest.mark.parametrize(
    ("make", "count", "outcome"),
    [
        pytest.param(hostile.header_array, 4, "rejected", id="header array"),
        pytest.param(hostile.many_headers, 8, "rejected", id="many headers"),
        pytest.param(hostile.references, 8, "rejected", id="references"),
        pytest.param(hostile.arrays, 8, "inserted", id="arrays"),
        pytest.param(hostile.escapes, 24, "inserted", id="escapes"),
    ],
)
async def test_a_costly_body_or_header_does_not_stop_the_loop(
    amqp_url: str, database_url: str, make: Callable[[], aio_pika.Message], count: int, outcome: str
) -> None:
    """Several in one batch, with an innocent message in the middle."""
    async with stage(amqp_url, database_url) as prepared:
        messages = [make() for _ in range(count)]
        messages.insert(count // 2, innocent())
        await prepared.send(*messages)
        outcomes, work = await prepared.go(answers=count + 2)
        assert first_outcomes(outcomes) == sorted([outcome] * count + ["inserted"] * 2)
        assert bounded(work), work


async def test_long_suspects_do_not_stop_the_loop(amqp_url: str, database_url: str) -> None:
    """Two consumers went away with messages of 200 kB in hand, and others are in the same batch."""
    long = [hostile.text(200_000) for _ in range(15)]
    async with conversing(amqp_url) as talk:
        await publish(talk, *[innocent() for _ in range(10)], *long, *[innocent() for _ in range(50)])
        await make_suspicious(amqp_url, 10, len(long), 2)
        with counting() as work:
            async with serving(amqp_url, database_url) as service:
                outcomes = await talk.outcomes(75)
                await until(lambda: service.in_hand == 0)
                assert lost_connections(service) == 0
        assert set(outcomes) <= {"inserted", "duplicate"}
        assert bounded(work), work


@pytest.mark.timeout(400)
async def test_thousands_of_returned_replies_do_not_stop_the_loop(amqp_url: str, database_url: str) -> None:
    """In one batch, each for an address of its own that is not there, and an innocent message in the middle."""
    count = 3000
    settings = {"WORKER_BATCH_MAX": str(count), "WORKER_MEMORY_LIMIT_BYTES": str(2**30)}
    async with stage(amqp_url, database_url, **settings) as prepared:
        messages = [innocent(f"gone-{number}") for number in range(count)]
        messages.insert(count // 2, innocent())
        await prepared.send(*messages)
        outcomes, work = await prepared.go(answers=2)
        assert first_outcomes(outcomes) == ["inserted"] * 2
        assert bounded(work), work
