"""Askers whose replies cannot be placed, and the innocent ones that must be answered meanwhile.

An asker is whoever sends a request. A bad one names a `reply_to` that takes no reply, or takes it slowly, or ends the
connection of whoever publishes to it.
"""

import asyncio
import base64
import json
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterator, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import aio_pika
import aiormq
import asyncpg
import structlog
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from task_activity_log.rabbitmq.confirms import Late
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.service import Service
from tests.asking import Connection
from tests.faults.conversation import TOPOLOGY, Conversation, conversing, until
from tests.serving import serving

INNOCENTS = 30
_LOGGED = 5
"""If more addresses fail, not each is named in the log."""
PROMPT_SECONDS = 5.0
"""Nobody's answer may be delayed by longer than this because of another asker (see `Delay`)."""
_HANG_SECONDS = 60.0
"""An innocent request that is not answered by then waits for a bad asker: none of these gives way sooner. RabbitMQ refuses for a
silent queue after 65 s."""
_LOST_SECONDS = 1.0
"""What a lost channel or connection counts as: the worker waits so long for the next one."""

DIRECT_REPLY_TO = "amq.rabbitmq.reply-to."


class Delay:
    """How long workers have let everybody wait for bad askers, by their own limits.

    It is counted and not measured, so that it does not depend on the machine: a publish that the broker does not answer counts
    as the time that the worker has granted it, before it goes on without an answer.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count, for all workers of this process."""
        publish = Publisher.publish

        async def counting(
            publisher: Publisher,
            messages: Sequence[Outgoing],
            patience_seconds: float | None = None,
            on_late: Late | None = None,
        ) -> list[Fate]:
            fates = await publish(publisher, messages, patience_seconds, on_late)
            if Fate.UNCONFIRMED in fates:
                self.seconds += publisher._confirm_timeout if patience_seconds is None else patience_seconds
            elif Fate.LOST in fates:
                self.seconds += _LOST_SECONDS
            return fates

        with patch.object(Publisher, "publish", counting):
            yield


class Scene:
    """A publisher, its innocent and its bad requests, and what becomes of them."""

    def __init__(
        self, amqp_url: str, database_url: str, database: Connection, talk: Conversation, inbox: AbstractQueue
    ) -> None:
        self.amqp_url = amqp_url
        self.database_url = database_url
        self.talk = talk
        self.events: list[MutableMapping[str, Any]] = []
        """Every log event so far."""
        self.copies: Counter[str] = Counter()
        """How often each reply was read from the worker's own replies queue, by its message_id."""
        self.read: list[AbstractIncomingMessage] = []
        """Replies that were read and are not answers to innocent requests."""
        self.delay = Delay()
        self._database = database
        self._inbox = inbox
        self._private: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        self._asked: list[UUID] = []

    async def listen(self) -> None:
        """Begin to read the answers that innocents have asked for at an address of their own."""
        await self._inbox.consume(self._private.put, no_ack=True)

    def worker(self, **variables: Any) -> AbstractAsyncContextManager[Service]:
        """A worker, from when it consumes on; drained at the end."""
        return serving(self.amqp_url, self.database_url, WORKER_DRAIN_LIMIT_SECONDS="5", **variables)

    async def ask(self, reply_to: str, count: int = 1) -> None:
        """Publish requests whose replies go to a bad address; subjects are numbers that grow."""
        identifiers = [uuid4() for _ in range(count)]
        first = len(self._asked)
        self._asked += identifiers
        sending = [
            self.talk.send(identifier, reply_to=reply_to, subject=str(first + number))
            for number, identifier in enumerate(identifiers)
        ]
        await asyncio.gather(*sending)

    async def innocents_are_answered(self, most: float = PROMPT_SECONDS) -> None:
        """Send requests with and without an address, and see that all are answered where they asked.

        The workers must have delayed none of them by more than `most` seconds for the sake of bad askers.
        """
        private: dict[str, float] = {}  # by message_id: the delay of everybody until it was sent
        public: dict[str, float] = {}
        half = INNOCENTS // 2
        try:
            async with asyncio.timeout(_HANG_SECONDS), asyncio.TaskGroup() as reading:
                longest = [
                    reading.create_task(self._answers(half, private, self._private)),
                    reading.create_task(self._answers(INNOCENTS - half, public, self.talk.answers)),
                ]
                for number in range(INNOCENTS):
                    message_id = str(uuid4())
                    (private if number % 2 else public)[message_id] = self.delay.seconds
                    address = self._inbox.name if number % 2 else None
                    await self.talk.send(reply_to=address, message_id=message_id)
        except TimeoutError:
            missing = f"{len(private)} with and {len(public)} without reply_to"
            raise AssertionError(f"innocents that are not answered: {missing}") from None
        delayed = max(task.result() for task in longest)
        assert delayed <= most, f"innocents were delayed by {delayed:.1f} s"

    async def _answers(
        self, count: int, sent: dict[str, float], place: asyncio.Queue[AbstractIncomingMessage]
    ) -> float:
        """Wait for this number of answers to innocents; how long the one was delayed that was delayed most."""
        delayed = 0.0
        for _ in range(count):
            while (at := self._sort(await place.get(), sent, place)) is None:
                pass
            delayed = max(delayed, self.delay.seconds - at)
        return delayed

    def _sort(
        self, answer: AbstractIncomingMessage, sent: dict[str, float], place: asyncio.Queue[AbstractIncomingMessage]
    ) -> float | None:
        """Keep an answer, or take the request that it answers from those that were sent, and return what is known of it."""
        if place is self.talk.answers:
            self.copies[str(answer.message_id)] += 1
        at = sent.pop(str(answer.correlation_id), None)
        if at is None:
            self.read.append(answer)
        else:
            assert answer.headers["x-outcome"] in {"inserted", "duplicate"}
        return at

    def events_of(self, name: str) -> list[MutableMapping[str, Any]]:
        """The log events of a name."""
        return [one for one in self.events if one["event"] == name]

    async def given_up(self, address: str) -> set[str]:
        """Wait until replies to this address were given up, and return why."""
        await until(lambda: bool(self._reasons(address)), seconds=15)
        return self._reasons(address)

    def _reasons(self, address: str) -> set[str]:
        return {str(one["why"]) for one in self.events_of("reply_given_up") if one["reply_to"] == address}

    async def answer_to(self, message_id: str) -> AbstractIncomingMessage:
        """The answer in the worker's own replies queue to a request that is no innocent's."""
        async with asyncio.timeout(30):
            while not (found := [reply for reply in self.read if reply.correlation_id == message_id]):
                self._sort(await self.talk.answers.get(), {}, self.talk.answers)
        return found[0]

    async def settled(self, service: Service) -> None:
        """Wait until no request is in the queue or in hand, and see that every bad asker's record is stored."""
        queue = await self.talk.channel.get_queue(TOPOLOGY.requests_queue)
        async with asyncio.timeout(30):
            while service.in_hand or (await queue.declare()).message_count:
                await asyncio.sleep(0.05)
        assert await self.stored() == len(self._asked)

    async def stored(self) -> int:
        """How many of the bad askers' records are stored."""
        return await self.rows(*self._asked)

    async def rows(self, *identifiers: UUID) -> int:
        """How many of these records are stored."""
        query = "SELECT count(*) FROM task_activity_log WHERE id = ANY($1)"
        return int(await self._database.fetchval(query, identifiers))

    def read_on(self) -> None:
        """Count what has arrived from the worker's own replies queue since the innocents were answered."""
        while not self.talk.answers.empty():
            self._sort(self.talk.answers.get_nowait(), {}, self.talk.answers)


@asynccontextmanager
async def scene(amqp_url: str, database_url: str) -> AsyncIterator[Scene]:
    """A scene with a database and a virtual host of its own."""
    database: Connection = await asyncpg.connect(database_url)
    try:
        async with conversing(amqp_url) as talk:
            inbox = await talk.channel.declare_queue(exclusive=True)
            here = Scene(amqp_url, database_url, database, talk, inbox)
            await here.listen()
            with structlog.testing.capture_logs() as here.events, here.delay.counted():
                yield here
    finally:
        await database.close()


async def survive(here: Scene, *addresses: str) -> None:
    """Show that these askers harm nobody, before and after a restart, and are given up by name.

    The first worker never gives up, so nobody is answered just because it did; the second does so soon.
    """
    for address in addresses:
        await here.ask(address)
    async with here.worker(WORKER_REPLY_GIVE_UP_SECONDS="600"):
        await here.innocents_are_answered()
        for address in addresses:
            await here.ask(address)
        await here.innocents_are_answered()
    async with here.worker(WORKER_REPLY_GIVE_UP_SECONDS="1") as service:
        await here.innocents_are_answered()
        if len(addresses) < _LOGGED:
            for address in addresses:
                await here.given_up(address)
        await here.innocents_are_answered()
        await here.settled(service)
    assert here.events_of("drain_limit_reached") == []


async def full_queue(talk: Conversation, **arguments: Any) -> AbstractQueue:
    """A queue that has room for one message and refuses others, with the one in it."""
    queue = await talk.channel.declare_queue(
        f"full.{uuid4()}", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish", **arguments}
    )
    await talk.channel.default_exchange.publish(aio_pika.Message(b"in the way"), queue.name)
    return queue


async def quorum_queue(talk: Conversation, name: str | None = None) -> AbstractQueue:
    """A durable quorum queue."""
    return await talk.channel.declare_queue(
        name or f"asker.{uuid4()}", durable=True, arguments={"x-queue-type": "quorum"}
    )


def direct_address(node: str = "reply@27796420", number: int = 0) -> str:
    """A direct reply-to address as RabbitMQ makes it: of a process of the named node, by default one that is not here.

    The pid is in Erlang's external term format (NEW_PID_EXT with an ATOM_UTF8_EXT); the key is 16 bytes.
    """
    name = node.encode()
    pid = b"\x83Xv" + struct.pack(">H", len(name)) + name + struct.pack(">III", 2906, number, 0x668E1B23)
    key = base64.b64encode(struct.pack(">QQ", 0, number))
    return DIRECT_REPLY_TO + base64.b64encode(pid).decode() + "." + key.decode()


async def ends_connections(amqp_url: str, address: str) -> bool:
    """Whether this broker ends the connection of whoever publishes to the address: versions differ."""
    connection = await aiormq.connect(amqp_url)
    try:
        channel = await connection.channel(publisher_confirms=True)
        await channel.basic_publish(b"", routing_key=address)
    except aiormq.exceptions.ConnectionInternalError:
        return True
    finally:
        with suppress(aiormq.exceptions.AMQPError):
            await connection.close()
    return False


def problem(reply: AbstractIncomingMessage) -> dict[str, Any]:
    """The members of a problem in JSON."""
    assert reply.content_type == "application/problem+json"
    members: dict[str, Any] = json.loads(reply.body)
    return members
