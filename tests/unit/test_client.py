"""The client and the subscription without a broker: time limits, what is said of them, and the second use of each."""

import asyncio
import copy
import pickle
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any, cast
from uuid import uuid4

import pytest

from task_activity_log.client import (
    Answer,
    ClientError,
    NoAnswer,
    NotSent,
    PoisonQueue,
    Subscription,
    TaskActivityLog,
    TaskActivityLogClient,
    Upsert,
    UpsertRejected,
)
from task_activity_log.client.asks import BATCH, Asks
from task_activity_log.client.bulk import Summary
from task_activity_log.client.connections import Connections
from task_activity_log.client.routing import Routing
from task_activity_log.message import Delivery, Properties
from task_activity_log.problem import Code, Problem, Unavailable
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.testing import FakeWorker
from tests.virtual_time import run

NOBODY = "amqp://127.0.0.1:1/"


def record() -> TaskActivityLog:
    return TaskActivityLog(id=uuid4())


def test_a_client_is_used_by_one_event_loop_after_the_other() -> None:
    """Each `asyncio.run` has a loop of its own, and what waited in an earlier one cannot be waited for."""
    client = TaskActivityLogClient(NOBODY)

    async def use() -> None:
        with pytest.raises(ClientError, match="connection refused"):
            await client.__aenter__()

    for _ in range(3):
        asyncio.run(use())


def test_a_bulk_that_is_confirmed_slowly_is_no_outage() -> None:
    """The time limit is that without any confirmation, not that of all."""
    client = TaskActivityLogClient(NOBODY)

    async def send(upserts: Sequence[Upsert], on_sent: Callable[[int], None], _: object) -> None:
        for _ in upserts:
            await asyncio.sleep(0.9)
            on_sent(1)
        await asyncio.sleep(silent)

    cast("Any", client._asks).send = send
    silent = 0.0
    assert run(client.send_many([record() for _ in range(10)], timeout=1.0)) == 10
    silent = 1.1
    with pytest.raises(ClientError, match="the broker confirmed nothing for 1 s"):
        run(client.send_many([record()], timeout=1.0))


@pytest.mark.parametrize("failure", ["silence", "an error"])
@pytest.mark.parametrize("first", [["bad", "last"], ["bad", *["good"] * BATCH, "last"]])
def test_what_was_refused_before_a_failure_is_in_the_error(failure: str, first: list[str]) -> None:
    """Also if the failure comes in the same batch."""
    client = TaskActivityLogClient(NOBODY)
    asks = cast("Any", client._asks)
    why = ClientError("no queue takes it")

    async def publish(upserts: Sequence[Upsert], _: object, sent: Any) -> list[Upsert]:
        for upsert in upserts:
            if upsert.source == "bad":
                sent.ended.append((upsert, Answer.not_sent(upsert, Problem(Code.BODY_TOO_LARGE, "Send less."))))
            elif upsert.source == "last" and failure == "silence":
                await asyncio.Event().wait()
            elif upsert.source == "last":
                sent.ended.append((upsert, why))
            else:
                sent.confirmed += 1
        return []

    asks._check_open = lambda: None
    asks._publish_once = publish
    upserts = [Upsert(b"%d" % number, source=source) for number, source in enumerate(first)]
    counts: list[int] = []
    words = "the broker confirmed nothing for 1 s: .*" if failure == "silence" else "no queue takes it"
    with pytest.raises(ClientError, match=f"^{words}; before that, 1 upsert not sent: bad: body_too_large: ") as raised:
        run(client.send_many(upserts, timeout=1.0, on_sent=counts.append))
    assert [answer.upsert for answer in raised.value.refused] == upserts[:1]
    assert (sum(counts), why.refused) == (first.count("good"), ())


def test_what_was_refused_is_found_in_each_error_of_send_many() -> None:
    """Whoever reads `refused` of a `ClientError` finds it also where nothing else failed."""
    answer = Answer.not_sent(Upsert.of(record()), Problem(Code.BODY_TOO_LARGE, "Send less."))
    error = NotSent([answer])
    assert error.refused == error.answers == (answer,)


async def test_a_summary_counts_no_seconds_before_it_begins_and_after_it_has_ended() -> None:
    """Whoever prints it later gets what the bulk has taken."""
    assert Summary().seconds == 0.0
    async with FakeWorker().client() as client:
        bulk = client.upsert_many([record()])
        assert bulk.summary.seconds == 0.0
        assert len([answer async for answer in bulk]) == 1
    taken = bulk.summary.seconds
    assert taken > 0
    assert bulk.summary.seconds == taken


async def test_what_was_taken_before_the_source_fails_is_sent() -> None:
    """Also in the middle of a batch. Nobody else has it."""
    worker, counts = FakeWorker(), list[int]()

    def failing() -> Iterator[TaskActivityLog]:
        for _ in range(BATCH + 2):
            yield record()
        raise KeyError("the source")

    async with worker.client() as client:
        with pytest.raises(KeyError, match="the source"):
            await client.send_many(failing(), on_sent=counts.append)
        with pytest.raises(KeyError, match="the source"):
            _ = [answer async for answer in client.upsert_many(failing())]
        with pytest.raises(KeyError) as raised:
            await client.send_many(chain([record().model_copy(update={"subject": "\ud800"})], failing()))
    assert (sum(counts), len(worker.rows)) == (BATCH + 2, 3 * (BATCH + 2))
    assert raised.value.__notes__[0].startswith("1 upsert not sent: record ")


def pickled(error: ClientError) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301 - our own


async def test_errors_can_be_pickled_and_copied() -> None:
    """A pool of processes pickles the error of a job, and waits for ever for one that cannot be read again."""
    async with FakeWorker().client() as client:
        [answer] = [answer async for answer in client.upsert_many([Upsert(b'{"id": "no uuid"}')])]
    errors = [answer.problem, NoAnswer("no answer", answer.upsert), NotSent([answer]), ClientError("no queue")]
    errors[-1].refused = (answer,)
    for error in errors:
        error.add_note("a note")
        for same in (pickled(error), copy.copy(error), copy.deepcopy(error)):
            assert (type(same), str(same)) == (type(error), str(error))
            assert vars(same).keys() == vars(error).keys()
    rejected, unanswered, not_sent, failed = map(pickled, errors)
    assert (rejected.code, rejected.detail, rejected.errors) == (
        answer.problem.code,
        answer.problem.detail,
        answer.problem.errors,
    )
    assert unanswered.upsert == answer.upsert
    assert not_sent.answers[0].upsert == failed.refused[0].upsert == answer.upsert
    assert isinstance(not_sent.answers[0].problem, UpsertRejected)


@pytest.mark.parametrize("client", [TaskActivityLogClient(NOBODY), FakeWorker().client()], ids=["real", "fake"])
async def test_each_caller_gets_an_error_of_its_own(client: TaskActivityLogClient) -> None:
    """The traceback of one object would grow with each call, and keep the records of all of them in memory."""
    lengths = set()
    for _ in range(3):
        with pytest.raises(ClientError, match="the client is not open") as raised:
            await client.upsert(record())
        lengths.add(len(traceback.extract_tb(raised.value.__traceback__)))
    assert len(lengths) == 1


async def test_each_caller_gets_an_error_of_its_own_when_the_client_has_failed() -> None:
    """Also what waited when it failed. The cause is known to each."""
    client = TaskActivityLogClient(NOBODY)
    failure = ClientError("on_outage has raised KeyError")
    failure.__cause__ = KeyError("x")
    asks = cast("Asks", client._asks)
    asks._over, asks._has_listener = None, True
    waiting = [asyncio.create_task(client.upsert(record())) for _ in range(3)]
    while len(asks._asks) < len(waiting):
        await asyncio.sleep(0)
    asks._fail(failure)
    errors = [
        *await asyncio.gather(*waiting, return_exceptions=True),
        *await asyncio.gather(client.upsert(record()), client.send_many([record()]), return_exceptions=True),
    ]
    assert {str(error) for error in errors} == {str(failure)}
    assert {type(cast("Exception", error).__cause__) for error in errors} == {KeyError}
    assert len({*map(id, errors), id(failure)}) == len(errors) + 1
    assert failure.__traceback__ is None


class Blocking:
    """A publisher to a broker that blocks publishers, says so when something was published, and takes it after ten seconds."""

    connected, last_reason = True, ""
    blocked: str | None = None

    async def wait_connected(self) -> None:
        pass

    async def publish(self, messages: Sequence[Outgoing]) -> list[Fate]:
        if self.blocked is None:
            self.blocked = "low on memory"
            await asyncio.sleep(10.0)
            raise Unavailable("the broker blocks publishers")
        self.blocked = None
        return [Fate.CONFIRMED] * len(messages)


def blocked_asks(told: list[str]) -> Asks:
    asks = Asks(
        NOBODY,
        routing=Routing("x", partitioned=False),
        app_id="",
        on_outage=told.append,
        on_connected=lambda: told.append("connected"),
    )
    asks._publisher = cast("Publisher", Blocking())
    asks._over = None
    asks._listening.set()
    return asks


def test_a_broker_that_blocks_publishers_is_named() -> None:
    """It has not taken what was given: nothing waits in a queue for a worker. It is reported before a publish gives up."""
    told: list[str] = []

    async def use() -> None:
        asks = blocked_asks(told)
        sending = asyncio.create_task(asks._send_all())
        ask = asks.ask(Upsert.of(record()), lambda _: None)
        await asyncio.sleep(5.0)
        words = "the broker blocks publishers (low on memory)"
        assert told == [words]
        assert str(asks.no_answer(5.0, [ask.upsert])) == f"no answer for 5 s (1 upsert unanswered): {words}"
        assert str(asks.not_confirmed(5.0)) == f"the broker confirmed nothing for 5 s: {words}"
        await asyncio.sleep(10.0)
        assert told == [words, "connected"]
        assert "is a worker running? What was sent is in its queue" in str(asks.no_answer(5.0, [ask.upsert]))
        sending.cancel()

    run(use())


async def test_upserts_that_wait_are_told_although_the_close_is_cancelled() -> None:
    """In a cancelled scope of anyio each wait is cancelled. They would wait for as long as their timeout."""
    asks, told = blocked_asks([]), list[object]()
    asks._opener.note()
    asks.ask(Upsert.of(record()), told.append)
    lasting = asyncio.create_task(asyncio.Event().wait())
    asks._connections._tasks.append(lasting)
    closing = asyncio.create_task(asks.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert [str(each) for each in told] == ["the client was closed before the answer came"]
    await asyncio.wait([lasting])


async def test_that_there_is_no_connection_is_said_without_a_reason_too() -> None:
    """While the connection of the answers is opened again, and the other one has just confirmed something."""
    asks = blocked_asks([])
    asks._listening.clear()
    error = asks.no_answer(5.0, [Upsert.of(record())])
    assert str(error).endswith("(1 upsert unanswered): the broker is away (there is no connection at the moment)")


async def test_a_queue_that_is_full_is_named() -> None:
    """What it has refused is not in it, whether a worker runs or not."""
    asks = blocked_asks([])

    class Full(Blocking):
        async def publish(self, messages: Sequence[Outgoing]) -> list[Fate]:
            return [Fate.NACKED] * len(messages)

    asks._publisher = cast("Publisher", Full())
    sending = asyncio.create_task(asks._send_all())
    ask = asks.ask(Upsert.of(record()), lambda _: None)
    while not asks._reason:
        await asyncio.sleep(0)
    assert "the broker refuses upserts: is the queue full?" in str(asks.no_answer(5.0, [ask.upsert]))
    sending.cancel()


class Feed:
    """Replies of a broker that is slow to register a consumer, or to take an acknowledgement."""

    def __init__(self, source: "Slow") -> None:
        self._source = source
        self.waiting = [Delivery(b"", Properties(message_id=str(number))) for number in range(3)]
        self.consumes = True

    async def take(self, most: int) -> list[Delivery]:
        if not self.consumes or not self.waiting:
            await asyncio.Event().wait()
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        return taken

    async def acknowledge(self, tags: Iterable[int]) -> None:
        await self._source.slow()
        self._source.acknowledged += tags

    async def widen(self, prefetch: int, finished: Iterable[int]) -> None:
        assert prefetch
        self.consumes = False
        await self.acknowledge(finished)
        self.consumes = True

    def keep(self, tags: Iterable[int]) -> None:
        self._source.acknowledged += tags


class Slow:
    """Where they come from."""

    def __init__(self) -> None:
        self.opened = 0
        self.acknowledged: list[int] = []
        self.seconds = 0.0

    async def slow(self) -> None:
        await asyncio.sleep(self.seconds)

    @asynccontextmanager
    async def open(self, prefetch: int) -> AsyncIterator[Feed]:
        assert prefetch
        self.opened += 1
        yield Feed(self)

    def tag(self, delivery: Delivery) -> int:
        return int(delivery.properties.message_id or 0)

    async def move(self, delivery: Delivery, queue: str, headers: dict[str, object]) -> None:
        raise NotImplementedError

    def failed(self, error: BaseException) -> ClientError:
        return ClientError(str(error))


def slow_subscription(source: Slow, *, poison: bool) -> Subscription[Delivery]:
    return Subscription(
        source,
        everything=True,
        prefetch=10,
        remember=10,
        most=None,
        on_poison=PoisonQueue("poison") if poison else None,
        on_connected=lambda: None,
        on_outage=lambda _: None,
    )


def test_a_wait_for_the_next_reply_may_be_given_up_at_any_moment() -> None:
    """Also while the consumer is registered again with a larger prefetch: nothing would be delivered any more."""

    async def use() -> None:
        source = Slow()
        async with slow_subscription(source, poison=True) as replies:
            assert (await anext(replies)).message_id == "0"
            source.seconds = 5.0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await anext(replies)
            source.seconds = 0.0
            assert (await anext(replies)).message_id == "0"  # it was not acknowledged
            assert (await anext(replies)).message_id == "1"
        assert source.opened == 2

    run(use())


def test_what_the_body_is_through_with_is_acknowledged_when_the_loop_is_cancelled() -> None:
    """`replies --take` has printed it."""

    async def take(source: Slow) -> None:
        async with slow_subscription(source, poison=False) as replies:
            await anext(replies)
            source.seconds = 2.0
            async with asyncio.timeout(1.0):
                await anext(replies)

    async def use() -> None:
        source = Slow()
        with pytest.raises(TimeoutError):
            await take(source)
        assert source.acknowledged == [0]

    run(use())


def test_what_was_opened_in_another_event_loop_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not when the time is over. When that loop has ended, it can be opened again."""

    async def opened(_: Connections, *runs: Coroutine[Any, Any, None], ready: Coroutine[Any, Any, None]) -> None:
        for each in (*runs, ready):
            each.close()

    monkeypatch.setattr(Connections, "open", opened)
    client, source = TaskActivityLogClient(NOBODY), Slow()
    replies = slow_subscription(source, poison=False)

    async def enter() -> None:
        await client.__aenter__()
        assert (await anext(await replies.__aenter__())).message_id == "0"

    async def use() -> None:
        for using in (client.upsert(record(), timeout=None), client.send_many([record()], timeout=None)):
            with pytest.raises(ClientError, match="the client was opened in another event loop: each "):
                await using
        with pytest.raises(ClientError, match="the subscription was opened in another event loop"):
            await anext(replies)
        await client.__aexit__()
        await replies.__aexit__(None, None, None)

    async def elsewhere() -> None:
        await asyncio.to_thread(asyncio.run, use())

    async def both() -> None:
        await enter()
        await elsewhere()
        for again in (client.__aenter__(), replies.__aenter__()):
            with pytest.raises(ClientError, match="open already"):
                await again

    asyncio.run(enter())
    asyncio.run(use())
    asyncio.run(both())


def test_a_client_is_opened_by_one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one would wait without end for a connection that nobody makes."""
    go_on = asyncio.Event()

    async def slowly(_: Connections, *runs: Coroutine[Any, Any, None], ready: Coroutine[Any, Any, None]) -> None:
        for each in (*runs, ready):
            each.close()
        await go_on.wait()

    monkeypatch.setattr(Connections, "open", slowly)

    async def use() -> None:
        client = TaskActivityLogClient(NOBODY)
        first = asyncio.create_task(client.__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(ClientError, match="the client is open already"):
            await client.__aenter__()
        go_on.set()
        assert await first is client

    asyncio.run(use())
