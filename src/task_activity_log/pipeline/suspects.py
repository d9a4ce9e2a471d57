"""Suspects: messages that may have crashed a worker. How many messages are processed together with them.

There are two signs. A mark of a trial that ended with the process (see `trials`) is evidence of a crash. The number of earlier
attempts is not: RabbitMQ counts a failed delivery of everything in hand whenever a channel closes, at a crash as well as
at a hand-over, a drain or a lost connection. Each step makes a batch smaller:

    step    messages in a batch              trials that ended with the process    attempts
    0       WORKER_BATCH_MAX (500)           0                                     0 or 1
    1       a quarter of that (125)          1                                     2
    2       a quarter of that (31)           2                                     3
    3       a quarter of that (7)            3                                     4
    4       1                                4, or one alone                       5 and more

The marks decide: what was in hand at five hand-overs, outages or drains is not suspicious. The attempts count in two cases:

- While messages are delivered again behind one that has crashed workers alone. They were returned as often as that one, so
  there is no time to try them in large batches before the broker's delivery limit.
- Without a single active consumer, from `SUSPECT_FROM` attempts on. What crashes a process before its trial begins, as it
  arrives, leaves no mark; and if there are several such messages, they use up the attempts of the others in hand. So the
  pace (`rabbitmq.pace`) lets it come alone, before anybody looks for marks. With a single active consumer everything stays
  in hand, to keep the order.

A batch with messages that were returned more than once is stored when everything before it is settled, and is settled
before anything else is stored. So a message that is tried alone, a suspect, is the oldest one in hand if it crashes
the process, and comes again first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from task_activity_log.message import Delivery

T = TypeVar("T")

_HARMLESS = 1
"""A message with this many earlier attempts was unsettled once when a channel closed. That happens at any restart."""

ALONE = 4
"""The step from which on a message is tried alone."""

SUSPECT_FROM = 8
"""Without a single active consumer, a message with this many earlier attempts comes alone, whatever its marks say."""

RETURNED_BELOW = 11
"""A suspect with this many earlier attempts is tried whatever is in hand. Busy workers could pass it on, untried, until
the broker's delivery limit."""


def is_suspect(delivery: Delivery) -> bool:
    """Whether a message must be tried alone, because of its marks or because it was delivered so often."""
    return delivery.suspect or delivery.attempts >= SUSPECT_FROM


def is_doubtful(delivery: Delivery) -> bool:
    """Whether a message was returned more than once, so that it is marked while it is tried."""
    return delivery.attempts > _HARMLESS


def by_attempts(delivery: Delivery) -> int:
    """The step of a message by its earlier attempts."""
    return min(max(0, delivery.attempts - _HARMLESS), ALONE)


def batch_length(waiting: Sequence[T], batch_max: int, step: Callable[[T], int]) -> int:
    """How many of the messages that wait, from the first one on, make up the next batch."""
    most = batch_max
    for count, message in enumerate(waiting[:batch_max]):
        if of_this := step(message):
            before, most = most, min(most, 1 if of_this >= ALONE else max(1, batch_max >> 2 * of_this))
            if count >= most:
                return max(1, min(count, before))
    return min(len(waiting), most)


def divided(batch: Sequence[T], batch_max: int, step: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """The parts of a batch that may be processed together, in order. The step of a later part is asked when it is due."""
    while batch:
        length = batch_length(batch, batch_max, step)
        yield batch[:length]
        batch = batch[length:]


def by_arrival(delivery: Delivery) -> int:
    """The step of a message before anybody has looked for its marks."""
    return ALONE if delivery.attempts >= SUSPECT_FROM else 0
