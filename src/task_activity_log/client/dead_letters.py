"""Dead letters: read without removing them, and removed only when whatever replaces them is safe."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import sha256
from math import inf

from task_activity_log.client.connections import no_connection, options
from task_activity_log.client.errors import ClientError
from task_activity_log.message import VERSION, Properties
from task_activity_log.pipeline.request import Rules, judge
from task_activity_log.problem import Problem
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.headers import OWN_HEADERS, encode, latest_death, raw_headers, received
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, broker_failed, describe
from task_activity_log.rabbitmq.queues import Unsuitable, kept_queue, stream
from task_activity_log.rabbitmq.reading import PREFETCH_MAX, Reader, looking
from task_activity_log.record import UNKNOWN_INSTANT, TaskActivityLog

REPLAYED_BY, REPLAY_COUNT = "x-replayed-by", "x-replay-count"
"""Headers of a replayed message. A publisher can set them as well: they are shown, and nothing depends on them."""
_MOST_REPLAYS = 10**6
_IDLE_SECONDS = 5.0
"""If no dead letter arrives for this long although the broker counted more, another consumer has them, or they were removed."""
_ON_THE_WAY_SECONDS = 1.0
"""What another consumer has just returned is not in the queue any more, and arrives in this time."""
_IDLE_TIMES = 6
"""How often this is waited for where neither is so: a busy broker is slow."""
_ANSWERED_AFTER = timedelta(minutes=1)
"""A row that is changed sooner after a rejection may be the work of an older request that was in hand at the same time."""

_OWN = frozenset(name.encode() for name in OWN_HEADERS)
COUNTS = frozenset((b"x-delivery-count", b"x-acquired-count"))
"""Headers that the broker sets at each delivery."""
_DEATHS = (b"x-death", b"x-first-death-", b"x-last-death-")
_BEHIND_OTHERS = ("expired", "maxlen")
"""Why the broker dead-letters a message that nobody has had: requests behind it were not stored before."""
_CLOCKS_DIFFER = timedelta(seconds=10)
"""How far the clocks of a worker, the broker, a publisher and the database may be apart."""
_MILLISECONDS = re.compile(r"\+?[0-9]{1,12}")
EXPIRATION_MAX = 315_360_000_000
"""The longest time in milliseconds that the broker takes: ten years (RabbitMQ 3.10 to 4.3)."""


@dataclass(frozen=True)
class DeadLetter:
    """A rejected message, and why it was rejected."""

    body: bytes
    properties: Properties
    delivery: RabbitDelivery
    corrected: Properties | None = None
    """The properties of the request to send instead of the one that was rejected, if they were corrected."""

    @property
    def code(self) -> str:
        """The worker's code, or the broker's reason if the broker dead-lettered it (`delivery_limit`)."""
        reason = self._death.get("reason")
        if isinstance(reason, str):
            return reason  # the headers are its publisher's
        return self._text("x-error-code") or self._text("x-first-death-reason") or "unknown"

    @property
    def detail(self) -> str:
        """What was wrong, in words."""
        if self._death:
            return "dead-lettered by the broker"
        if detail := self._text("x-error-detail"):
            return detail
        by_the_broker = self._text("x-first-death-reason") and not self._text("x-error-code")
        return "dead-lettered by the broker" if by_the_broker else "no reason given"

    @property
    def publisher(self) -> str:
        """Who sent it: app_id, or else the user, or else `-`."""
        return self.properties.app_id or self._user or "-"

    @cached_property
    def name(self) -> str:
        """Its message_id, or a digest of the body where it has none."""
        return self.properties.message_id or "@" + sha256(self.body).hexdigest()[:12]

    @cached_property
    def key(self) -> str:
        """Identifies it by all that is in it; exact copies have the same key.

        RabbitMQ sorts the headers by name when it counts a delivery, so their order says nothing.
        """
        kept = sorted(entry for name, entry in raw_headers(self.properties.table) if name not in COUNTS)
        header = encode(replace(self.properties, table=b"".join(kept), headers={}), 0)
        return f"{self.name} {sha256(header + self.body).hexdigest()}"

    @cached_property
    def since(self) -> datetime | None:
        """When it was rejected, or else when it was sent; None when neither is known."""
        rejected = self._died or self._time("x-last-seen") or self._time("x-first-seen")
        return rejected or _instant(self.properties.sent)

    @property
    def rejected_at(self) -> datetime:
        """`since`, to sort by; one for which it is not known is before all others."""
        return self.since or datetime.min.replace(tzinfo=UTC)

    @property
    def sent(self) -> datetime | None:
        """When its publisher says that it was sent."""
        return _instant(self.properties.sent)

    @cached_property
    def overtaken_from(self) -> datetime | None:
        """Since when a newer request for its record can have been stored; None when that is not known.

        What was delivered more than once came back to the queue while later messages were stored: then only its
        publisher's timestamp says something. A time in `x-first-seen` counts when it is the earlier one: it is that of
        the first rejection, or it is a publisher's and can only make the answer more careful.
        """
        if self._death.get("reason") in _BEHIND_OTHERS:
            return self._died
        last = self._time("x-last-seen")
        if self._death or last is None or "x-redelivered" in self.properties.headers:
            return _instant(self.properties.sent)
        return min(last, self._time("x-first-seen") or last)

    @property
    def replays(self) -> int:
        """How often it says that it was replayed with `stamped`."""
        count = self.properties.headers.get(REPLAY_COUNT)
        return count if isinstance(count, int) and 0 <= count < _MOST_REPLAYS else 0

    @property
    def replayed_by(self) -> str:
        """Who it says has replayed it last."""
        return str(self.properties.headers.get(REPLAYED_BY, ""))

    @property
    def headers(self) -> Mapping[str, object]:
        """The headers of its request, and when it was first rejected."""
        return received(self.restored(None)).headers

    def restored(self, user: str | None) -> Properties:
        """The properties that its request had. A user_id only if it is `user`: the broker refuses a foreign one."""
        user_id = user if user == self._user else None
        if self.corrected is not None:
            return replace(self.corrected, user_id=user_id)
        kept = (entry for name, entry in raw_headers(self.properties.table) if self._is_publishers(name))
        return replace(
            self.properties,
            table=b"".join(kept),
            headers={},
            user_id=user_id,
            expiration=self._expiration,
        )

    @property
    def _user(self) -> str | None:
        return self.properties.user_id if self._death else self._text("x-original-user-id")

    @property
    def _expiration(self) -> str | None:
        """The request's own, if the broker takes it."""
        found = self._death.get("original-expiration") if self._death else self._text("x-original-expiration")
        return found if isinstance(found, str) and is_expiration(found) else None

    @cached_property
    def _death(self) -> Mapping[str, object]:
        """What the broker says of it, if it is no copy of a worker's: then all its other headers are its publisher's."""
        return latest_death(self.properties)

    @property
    def _died(self) -> datetime | None:
        time_ = self._death.get("time")
        return _instant(Properties(timestamp=time_).sent) if isinstance(time_, int) else None

    def _is_publishers(self, header: bytes) -> bool:
        if header in COUNTS:
            return False
        return not header.startswith(_DEATHS) if self._death else header not in _OWN

    def _text(self, header: str) -> str | None:
        value = self.properties.headers.get(header)
        return value if isinstance(value, str) else None

    def _time(self, header: str) -> datetime | None:
        with suppress(ValueError, OverflowError):
            seen = datetime.fromisoformat(self._text(header) or "")
            return (seen if seen.tzinfo else seen.replace(tzinfo=UTC)).astimezone(UTC)
        return None


def is_expiration(text: str) -> bool:
    """Whether the broker takes this `expiration`."""
    return _MILLISECONDS.fullmatch(text) is not None and int(text) <= EXPIRATION_MAX


def _instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def judged(letter: DeadLetter, rules: Rules) -> TaskActivityLog | Problem:
    """The record of its request, or the problem with which a worker would reject it today."""
    return judge(letter.body, received(letter.restored(None)), rules)


def may_be_newer(letter: DeadLetter, changed: datetime | None) -> str | None:
    """Why the row, which was changed at this moment, may be newer than the dead letter; None if it is not.

    It is not if there is no row (`changed` is None), and may be if the moment is `UNKNOWN_INSTANT`. With `x-version` the worker
    compares versions, so that no newer version is overwritten. What has changed the row without a version is not seen.
    """
    if changed is None or VERSION in letter.headers:
        return None
    if changed == UNKNOWN_INSTANT:
        return "its row may have changed: when it did cannot be read, or row security may hide the row from this role"
    since = letter.overtaken_from
    at = f"{changed:%Y-%m-%d %H:%M:%S}"
    if since is None:
        return f"its row has changed at {at}, perhaps by a newer request"
    if changed <= since - _CLOCKS_DIFFER:
        return None
    return f"its row has changed at {at}, {'after the rejection' if changed > since else 'just before'}"


def answered(letter: DeadLetter, changed: datetime | None) -> bool:
    """Whether the row of its record, which was changed at this moment, was stored at least a minute after it was rejected."""
    if changed is None or changed == UNKNOWN_INSTANT or letter.since is None:
        return False
    return changed > letter.since + _ANSWERED_AFTER


class Loan:
    """The dead letters that were in the queue, delivered to us. Those that are not removed are returned, in their order."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.waiting = reader.found.messages
        """How many dead letters there were."""
        self._delivered = reader.found.prefetch
        self.others = reader.found.consumers
        """How many others consume the queue: what was delivered to them is not seen here."""

    @property
    def newer(self) -> int:
        """How many are not delivered because the queue has too many: they are the newest.

        AMQP lets at most 65,535 be delivered.
        """
        return max(0, self.waiting - self._delivered)

    async def __aiter__(self) -> AsyncIterator[DeadLetter]:
        """Each dead letter, oldest first."""
        left = self._delivered
        while left > 0 and (deliveries := await self._arriving(min(left, 500))):
            left -= len(deliveries)
            for delivery in deliveries:
                yield DeadLetter(delivery.body, delivery.properties, delivery)
        with _explained():
            await self._reader.cancel()

    async def _arriving(self, most: int) -> Sequence[RabbitDelivery]:
        """The next deliveries; none if other consumers have the rest, or it was removed."""
        empty = False
        for _ in range(_IDLE_TIMES):
            with suppress(TimeoutError):
                async with asyncio.timeout(_ON_THE_WAY_SECONDS if empty else _IDLE_SECONDS):
                    with _explained():
                        return await self._reader.take(most)
            with _explained():
                if await self._reader.is_stream():
                    raise ClientError(str(stream(self._reader.found.queue)))
                left, consumers = await self._reader.now()
                self.others = max(self.others, consumers - 1)  # one may have come since the queue was found
                if self.others or (empty and not left):
                    return ()
                empty = not left
        seconds = _IDLE_SECONDS * _IDLE_TIMES
        raise ClientError(f"queue {self._reader.found.queue} has not delivered all of its messages in {seconds:g} s")

    async def give_back(self, letters: Iterable[DeadLetter]) -> None:
        """Return these now, so that others can see them."""
        with _explained():
            await self._reader.give_back([letter.delivery for letter in letters])

    async def remove(self, letters: Iterable[DeadLetter]) -> int:
        """Remove these permanently, and return when the queue has removed them; how many were still on loan."""
        with _explained():
            return await self._reader.remove([letter.delivery for letter in letters])


@asynccontextmanager
async def borrow_dead_letters(
    broker: str | LinkOptions, queue: str = "task_activity_log.dead-letters", most: float = inf
) -> AsyncIterator[Loan]:
    """Have the dead letters delivered, and return at the end what was not removed. A lost connection returns them too.

    None is delivered if more than `most` are waiting.

    Before RabbitMQ 4.3 each loan counts as one delivery of each: the queue is declared with a delivery limit of a million. A
    queue whose own limit is so low that the broker would soon delete what is looked at is not read.

    Raises:
        ClientError: no connection, no such queue, a queue with a low delivery limit, or a stream; or the connection was lost:
            what was not removed is in the queue.
    """
    link = options(broker)
    async with AsyncExitStack() as stack:
        try:
            with asking_the_driver():
                choice = kept_queue(queue, link, PREFETCH_MAX, most)
                reader = await stack.enter_async_context(looking(link, "dead letters", choice))
        except Unsuitable as error:
            raise ClientError(str(error)) from None
        except LOST as error:
            raise no_connection(link, describe(error), "docs/dead-letters.md") from error
        yield Loan(reader)


@asynccontextmanager
async def borrow_these(
    broker: str | LinkOptions, queue: str, keys: Iterable[str]
) -> AsyncIterator[tuple[Loan, list[DeadLetter]]]:
    """The dead letters with these `DeadLetter.key`s, in the order of the queue. All others are returned to it at once.

    Of exact copies no more are taken than the key is given: one that came in since is another dead letter.

    Raises:
        ClientError: as `borrow_dead_letters`.
    """
    left = Counter(keys)
    async with borrow_dead_letters(broker, queue) as loan:
        mine, others = list[DeadLetter](), list[DeadLetter]()
        async for letter in loan:
            wanted = left[letter.key] > 0
            left[letter.key] -= wanted
            (mine if wanted else others).append(letter)
        await loan.give_back(others)
        yield loan, mine


@contextmanager
def _explained() -> Iterator[None]:
    try:
        with asking_the_driver():
            yield
    except LOST as error:
        why, advice = f"connection lost ({describe(error).text})", "run it again"
        if broker_failed(error):
            why = "RabbitMQ has failed, probably to deliver one of the dead letters (INTERNAL_ERROR)"
            advice = (
                "if that is so again, see TaskActivityLogLinkUnstable in docs/runbook.md: it can be moved elsewhere"
            )
        raise ClientError(f"{why}: dead letters that were not removed are in the queue; {advice}") from error
