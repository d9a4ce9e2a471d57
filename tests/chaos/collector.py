"""Reads every reply and every dead letter, and keeps what the account needs of them."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from html import unescape

from aio_pika.abc import AbstractIncomingMessage

from tests.chaos.messages import REPLY_QUEUE
from tests.chaos.publishers import TROUBLE, connect, leave

REPLIES = "task_activity_log.replies"
DEAD_LETTERS = "task_activity_log.dead-letters"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reply says."""

    queue: str
    outcome: str
    code: str | None
    message_id: str | None
    subject: str | None
    """Of the record in it: which message the row was last written by."""
    modified: datetime | None
    """Of the record in it, where the format tells microseconds."""


@dataclass
class Collected:
    """By message number, in the order read."""

    answers: defaultdict[int, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    dead_letters: defaultdict[int, list[str | None]] = field(default_factory=lambda: defaultdict(list))
    """Their codes; None for those that the broker has put there itself."""
    first_answers: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """By queue: the messages in the order first answered there."""
    strangers: list[str] = field(default_factory=list)
    """What could not be related to any message."""


class Collector:
    """Consumes the queues until it is cancelled, over as many connections as it takes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.collected = Collected()

    async def run(self) -> None:
        """Read for ever."""
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
            except TROUBLE:
                pass
            finally:
                await leave(connection)
            await asyncio.sleep(0.3)

    async def _take(self, queue: str, message: AbstractIncomingMessage) -> None:
        # All of it before the first await: messages of a queue must be kept in its order.
        number = int(message.correlation_id or "-1")
        code = message.headers.get("x-error-code")
        code = None if code is None else str(code)
        if number < 0:
            self.collected.strangers.append(f"{queue}: {message.type or 'a message'} without correlation_id")
        elif queue == DEAD_LETTERS:
            self.collected.dead_letters[number].append(code)
        else:
            if not any(answer.queue == queue for answer in self.collected.answers[number]):
                self.collected.first_answers[queue].append(number)
            self.collected.answers[number].append(_answer(queue, message, code))
        try:
            await message.ack()
        except TROUBLE:
            return  # read again over the next connection


def _answer(queue: str, message: AbstractIncomingMessage, code: str | None) -> Answer:
    subject, modified = None, None
    if message.type == "task_activity_log.stored":
        if message.content_type == "application/json":
            record = json.loads(message.body)
            subject, modified = record["subject"], datetime.fromisoformat(record["modified_dateutc"])
        else:
            found = re.search(r"<subject>(.*?)</subject>", message.body.decode())
            subject = unescape(found[1]) if found else None
    return Answer(queue, str(message.headers.get("x-outcome")), code, message.message_id, subject, modified)
