"""Reads every reply and every dead letter, and keeps what the account needs."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from html import unescape
from threading import Thread
from typing import Self

from aio_pika.abc import AbstractIncomingMessage

from tests.chaos.messages import REPLY_QUEUE
from tests.chaos.publishers import CONNECTION_ERRORS, connect, disconnect

REPLIES = "task_activity_log.replies"
DEAD_LETTERS = "task_activity_log.dead-letters"


@dataclass(frozen=True, slots=True)
class Answer:
    """The content of one reply."""

    queue: str
    at: float
    """When it was read (`time.monotonic`)."""
    outcome: str
    code: str | None
    message_id: str | None
    subject: str | None
    """The subject of its record, which identifies the message that last wrote the row."""
    modified: datetime | None
    """The modified_dateutc of its record; None for XML, which has milliseconds only."""


@dataclass
class Collected:
    """Everything that was read, by message number, in the order read."""

    answers: defaultdict[int, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    dead_letters: defaultdict[int, list[str | None]] = field(default_factory=lambda: defaultdict(list))
    """Error codes of the dead letters; None for those that the broker dead-lettered itself."""
    first_answers: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """By reply queue: the message numbers in the order in which they were first answered there."""
    unrelated: list[str] = field(default_factory=list)
    """Failures: replies and dead letters that belong to no message."""


class Collector:
    """Consumes the queues until the end of its context, and reconnects as often as necessary.

    It has a thread and an event loop of its own: the driver needs a third of a second to decode a header with 120,000
    values, and nothing else may wait meanwhile, least of all the proxies of the workers.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.collected = Collected()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._reading.cancel)
        self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner, suppress(asyncio.CancelledError):
            runner.run(self._run())

    async def _run(self) -> None:
        self._reading = asyncio.ensure_future(self._read())
        await self._reading

    async def _read(self) -> None:
        while True:
            connection = None
            try:
                connection = await connect(self._url)
                channel = await connection.channel()
                await channel.set_qos(200)
                for name in (REPLIES, REPLY_QUEUE, DEAD_LETTERS):
                    queue = await channel.get_queue(name, ensure=False)
                    await queue.consume(partial(self._take, name))
                underlay = await channel.get_underlay_channel()
                await asyncio.wait({underlay.closing})
            except CONNECTION_ERRORS:
                pass
            finally:
                await disconnect(connection)
            await asyncio.sleep(0.3)

    async def _take(self, queue: str, message: AbstractIncomingMessage) -> None:
        # All of this comes before the first await, so that the messages of a queue are recorded in its order.
        number = int(message.correlation_id or "-1")
        code = message.headers.get("x-error-code")
        code = None if code is None else str(code)
        if number < 0:
            self.collected.unrelated.append(f"{queue}: {message.type or 'a message'} without correlation_id")
        elif queue == DEAD_LETTERS:
            self.collected.dead_letters[number].append(code)
        else:
            # What is delivered again was delivered to a lost connection of ours before. RabbitMQ 4.3 keeps it for that one for
            # a minute if its node has died, and delivers later replies first: its place in the queue is not known here.
            known = any(answer.queue == queue for answer in self.collected.answers[number])
            if not known and not message.redelivered:
                self.collected.first_answers[queue].append(number)
            self.collected.answers[number].append(_answer(queue, message, code))
        try:
            await message.ack()
        except CONNECTION_ERRORS:
            return  # the message comes again on the next connection


def _answer(queue: str, message: AbstractIncomingMessage, code: str | None) -> Answer:
    subject, modified = None, None
    if message.type == "task_activity_log.stored":
        if message.content_type == "application/json":
            record = json.loads(message.body)
            subject, modified = record["subject"], datetime.fromisoformat(record["modified_dateutc"])
        else:
            found = re.search(r"<subject>(.*?)</subject>", message.body.decode())
            subject = unescape(found[1]) if found else None
    return Answer(
        queue, time.monotonic(), str(message.headers.get("x-outcome")), code, message.message_id, subject, modified
    )
