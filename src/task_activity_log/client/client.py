"""The publisher's client: sends upserts, and receives the answer to each."""

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, Self, TypeAlias

from task_activity_log.client.asks import BATCH, Asks, Sending
from task_activity_log.client.bulk import Bulk
from task_activity_log.client.connections import PROGRAM
from task_activity_log.client.errors import ClientError, NotSent, failed_after
from task_activity_log.client.messages import SHORT_MAX, Answer, Options, Record, Upsert, is_short, request_of
from task_activity_log.client.names import exchange_name
from task_activity_log.client.routing import BY_RECORD, Routing
from task_activity_log.rabbitmq.link import LinkOptions

Version: TypeAlias = int | Literal["clock"]


class TaskActivityLogClient:
    """Sends upserts and receives their answers, through a reply queue of its own.

    A lost connection is opened again, and what is unanswered is then sent again with the same message_id: the worker's
    inbox ensures that nothing is applied twice, and answers `duplicate`. Upserts are sent in the order in which they are
    given. Where the order of two upserts of one record must hold even if the broker refuses one for a moment, await the
    first before sending the second, or give them versions.

    Where workers share partitions, each upsert is sent to the partition of its record. What has no readable record, and so no
    partition, is sent to `exchange`, where a worker answers it.
    """

    def __init__(
        self,
        broker: str | LinkOptions,
        *,
        exchange: str = "task_activity_log",
        partitioned: bool | None = None,
        partitions_exchange: str | None = None,
        app_id: str = PROGRAM,
        window: int = 2_000,
        on_outage: Callable[[str], None] = lambda _: None,
        on_connected: Callable[[], None] = lambda: None,
    ) -> None:
        """Do not connect yet.

        Args:
            broker: the URL, `amqp://user:password@host:5672/vhost`.
            exchange: the exchange that the worker takes its requests from.
            partitioned: whether workers share partitions (`WORKER_PARTITIONS`), so that upserts are sent by record. None
                finds out when the client connects: if `partitions_exchange` exists and the user may publish to it.
            partitions_exchange: the exchange for upserts that are sent by record; None: `exchange` and `.by-record`.
            app_id: who publishes, for those who read the dead letters.
            window: how many upserts of a bulk may be unanswered.
            on_outage: called with the reason when a connection is lost or cannot be opened again, or the broker blocks
                publishers; and again if the reason changes. Not again for each attempt.
            on_connected: called each time that a connection is established, also the first time, and when a broker that has
                blocked publishers takes upserts again. If one of these two raises an exception, the client fails: a
                `ClientError` names it.

        Raises:
            ClientError: the URL is not that of a broker.
            ValueError: `window` is less than 1, `partitioned` is something else, or a name is one that cannot be sent.
        """
        if window < 1:
            raise ValueError("window should be at least 1")
        exchange_name("exchange", exchange, ending="" if partitions_exchange else BY_RECORD)
        if partitions_exchange is not None:
            exchange_name("partitions_exchange", partitions_exchange)
        if partitioned not in (None, True, False):
            raise ValueError("partitioned should be True, False or None")
        if not is_short(app_id):
            raise ValueError(f"app_id should be text of at most {SHORT_MAX} bytes")
        routing = Routing(exchange, partitioned=partitioned, partitions_exchange=partitions_exchange)
        self._asks: Sending = Asks(
            broker, routing=routing, app_id=app_id, on_outage=on_outage, on_connected=on_connected
        )
        self.window = window

    async def __aenter__(self) -> Self:
        """Connect. The reply queue is declared when the first answer is asked for.

        Raises:
            ClientError: nothing answers, the broker refuses, or the worker's exchange does not exist, or with `partitioned=True`
                that of the partitions.
        """
        await self._asks.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect; the reply queue is deleted. Upserts that the worker has not answered yet are applied all the same."""
        await self._asks.close()

    async def upsert(
        self,
        record: Record,
        *,
        message_id: str | None = None,
        version: Version | None = None,
        merge: bool | None = None,
        priority: int | None = None,
        timeout: float | None = 30.0,
    ) -> Answer:
        """Send a record and return the answer: `.record` as the database has it now, and `.outcome`.

        Args:
            record: a record, or a request made with `Upsert.of`.
            message_id: that of an earlier attempt, to send a record again; None makes a new one.
            version: applied only if higher than every earlier version of this record. `clock`: the present time in microseconds,
                and more than each one before in this process.
            merge: whether fields that were not set keep their values; None leaves it to the worker's setting.
            priority: from 0 to 255; None is the same as 4. What it does depends on the broker's version (docs/publishing.md).
            timeout: how many seconds to wait for the answer, outages included; None waits without limit.

        Raises:
            UpsertRejected: the worker rejects it: `.code`, `.detail`, `.errors` for each bad field. Or it is not sent,
                because it is larger than the broker's limit (`body_too_large`), for example.
            NoAnswer: no answer came in time: send `.upsert` of the exception again.
            ClientError: no queue takes upserts, there is no connection for the answers in time, or the client is not open.
        """
        options = Options(message_id, version, merge, priority)
        bulk = Bulk(self._asks, [record], options, window=self.window, timeout=timeout)
        [answer] = [answer async for answer in bulk]
        if answer.rejected:
            raise answer.problem
        return answer

    def upsert_many(
        self,
        records: Iterable[Record] | AsyncIterable[Record],
        *,
        version: Literal["clock"] | None = None,
        merge: bool | None = None,
        priority: int | None = None,
        timeout: float | None = 30.0,
    ) -> Bulk:
        """Send many, `window` of them unanswered at a time, and iterate over the answers as they come.

        `timeout` is the longest time in seconds without any answer, outages included; None waits without limit.
        A rejected one is an answer like any other: see `Answer.rejected` and `Answer.problem`. So is one that cannot be sent,
        because it is too large for the broker or cannot be encoded: see `Answer.sent`. The other arguments are those of
        `upsert`, for each record that is not an `Upsert` already.
        """
        return Bulk(self._asks, records, Options(None, version, merge, priority), window=self.window, timeout=timeout)

    async def send_many(
        self,
        records: Iterable[Record],
        *,
        version: Literal["clock"] | None = None,
        merge: bool | None = None,
        priority: int | None = None,
        timeout: float | None = 30.0,
        on_sent: Callable[[int], None] = lambda _: None,
    ) -> int:
        """Send without asking for answers, which go to the replies exchange; returns how many the broker has confirmed.

        The user needs permission to write to the exchange, or with partitions to both exchanges, and no other. `timeout` is
        the longest time in seconds without a confirmation, outages included. `on_sent` is called with how many more are
        confirmed. The other arguments are those of `upsert`, for each record that is not an `Upsert` already.

        Raises:
            NotSent: the broker does not take some of them, such as one that is too large. All others were sent.
            ClientError: no queue takes upserts, or nothing was confirmed in time. Those before were,
                except those in its `refused`.
            What `records` raises, once those before are sent. A note names those of them that the broker does not take.
        """
        count = 0
        refused: list[Answer] = []
        limit = asyncio.timeout(None)

        def confirmed(more: int) -> None:
            nonlocal count
            count += more
            if not limit.expired():
                limit.reschedule(_later(timeout))
            on_sent(more)

        options = Options(None, version, merge, priority)
        coming = (request_of(record, options) for record in records)
        failures: list[Exception] = []
        while batch := _taken(coming, failures):
            refused += [answer for answer in batch if isinstance(answer, Answer)]
            upserts = [upsert for upsert in batch if isinstance(upsert, Upsert)]
            try:
                async with asyncio.timeout(timeout) as limit:
                    await self._asks.send(upserts, confirmed, refused.append)
            except TimeoutError:
                error = self._asks.not_confirmed(timeout)
                raise (failed_after(error, refused) if refused else error) from None
            except ClientError as error:
                if refused:
                    raise failed_after(error, refused) from error
                raise
        if failures or refused:
            raise _end(failures, refused)
        return count


def _taken(coming: Iterator[Upsert | Answer], failures: list[Exception]) -> list[Upsert | Answer]:
    """The next ones of the caller's. What their source raises is added to `failures`; those before it are sent all the same."""
    taken: list[Upsert | Answer] = []
    try:
        for one in islice(coming, BATCH):
            taken.append(one)  # noqa: PERF402 - those before an exception are kept
    except Exception as error:  # noqa: BLE001 - it is raised once these are sent
        failures.append(error)
    return taken


def _end(failures: Sequence[Exception], refused: Sequence[Answer]) -> Exception:
    """What to raise when all that was taken is sent, except the refused."""
    if not failures:
        return NotSent(refused)
    if refused:
        failures[0].add_note(str(NotSent(refused)))
    return failures[0]


def _later(seconds: float | None) -> float | None:
    """The time of the event loop, this many seconds from now."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds
