"""Dead letters borrowed, replayed and removed, on a real broker without a worker."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from pamqp import encode

from sandbox import RabbitMQ
from sandbox.proxy import Proxy
from task_activity_log.client import ClientError, dead_letters
from task_activity_log.client.connections import publishing
from task_activity_log.client.dead_letters import (
    EXPIRATION_MAX,
    DeadLetter,
    borrow_dead_letters,
    may_be_newer,
)
from task_activity_log.client.replaying import Part, replay
from task_activity_log.message import Properties
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq import reading
from task_activity_log.rabbitmq.frames import publish_frames, write
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.queues import Choice, Found, kept_queue
from task_activity_log.rabbitmq.reading import Reader
from task_activity_log.rabbitmq.topology import Topology, declare
from tests.broker_control import on_raft
from tests.undeliverable import FailingBroker
from tests.users import user_who_may

TOPOLOGY = Topology()


@asynccontextmanager
async def queues(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TOPOLOGY)
        yield await connection.channel()


async def reject(channel: AbstractChannel, number: int, **headers: str) -> None:
    """Publish a dead letter as a worker would."""
    message = aio_pika.Message(
        b'{"number": %d}' % number,
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
        correlation_id="correlation",
        message_id=str(number),
        app_id="crm",
        headers={
            "x-error-code": "missing_id",
            "x-error-detail": "Send id.",
            "x-first-seen": "2026-01-01T00:00:00.000+00:00",
            "x-original-expiration": "600000",
            "x-original-user-id": "somebody",
            "x-version": 7,
            "traceparent": "00-1-2-01",
            **headers,
        },
    )
    await channel.default_exchange.publish(message, TOPOLOGY.dead_letters_queue)


async def taken(channel: AbstractChannel, name: str) -> list[AbstractIncomingMessage]:
    """Everything in a queue, removed from it."""
    queue = await channel.get_queue(name)
    found = []
    while (message := await queue.get(no_ack=True, fail=False)) is not None:
        found.append(message)
    return found


async def dead(channel: AbstractChannel) -> int:
    """How many dead letters are waiting."""
    queue = await channel.declare_queue(TOPOLOGY.dead_letters_queue, passive=True)
    return queue.declaration_result.message_count or 0


async def all_of(amqp_url: str) -> list[DeadLetter]:
    async with borrow_dead_letters(amqp_url) as loan:
        return [letter async for letter in loan]


async def test_borrowing_fifty_times_changes_nothing(amqp_url: str) -> None:
    """Not even the order. RabbitMQ 4 deletes messages after 20 returns from a queue that sets no limit."""
    async with queues(amqp_url) as channel:
        for number in range(40):
            await reject(channel, number)
        for _ in range(50):
            assert [letter.name for letter in await all_of(amqp_url)] == [str(number) for number in range(40)]
        letters = await taken(channel, TOPOLOGY.dead_letters_queue)
        assert [letter.message_id for letter in letters] == [str(number) for number in range(40)]


async def test_a_dead_letter_has_its_reason_publisher_and_time(amqp_url: str) -> None:
    """From the headers of the worker's copy, or from the broker's if the broker dead-lettered it."""
    async with queues(amqp_url) as channel:
        await reject(channel, 1)
        async with publishing(amqp_url, "tests") as publisher:  # the driver would give it a message_id
            theirs_is = Properties(timestamp=1_767_225_600, headers={"x-first-death-reason": "delivery_limit"})
            await publisher.publish([Outgoing("", TOPOLOGY.dead_letters_queue, theirs_is, b"{}")])
        # RabbitMQ 4 delivers in order of priority, and aio-pika sets one: the order says nothing here.
        theirs, mine = sorted(await all_of(amqp_url), key=lambda letter: letter.code)
    assert (mine.code, mine.detail, mine.publisher) == ("missing_id", "Send id.", "crm")
    assert str(mine.since) == "2026-01-01 00:00:00+00:00"
    assert (theirs.code, theirs.publisher, theirs.since) == ("delivery_limit", "-", mine.since)
    assert theirs.name.startswith("@")


async def test_what_the_broker_has_dead_lettered_is_replayed_only_if_its_row_is_older(amqp_url: str) -> None:
    """Without a timestamp of its publisher. What nobody had may be overtaken since it died, and the rest at any time."""
    async with queues(amqp_url) as channel:
        exchange = await channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
        requests = await channel.get_queue(TOPOLOGY.requests_queue)
        begun = datetime.now(UTC)
        async with publishing(amqp_url, "tests") as publisher:  # the driver would set a timestamp
            for name, expiration in (("expired", "1"), ("delivery_limit", None)):
                request = Properties(message_id=name, expiration=expiration, headers={"mine": 7})
                await publisher.publish([Outgoing(exchange.name, "upsert", request, b"{}")])
        while (found := await requests.get(fail=False)) is not None or (await dead(channel)) < 2:
            if found is not None:
                await found.reject(requeue=True)
            else:
                await asyncio.sleep(0.01)  # the broker dead-letters in its own time
        letters = {letter.name: letter for letter in await all_of(amqp_url)}
    expired, undeliverable = letters["expired"], letters["delivery_limit"]
    assert {name: letter.code for name, letter in letters.items()} == {name: name for name in letters}
    for letter in (expired, undeliverable):
        assert letter.since is not None
        assert abs(letter.since - begun) < timedelta(minutes=2)
        assert letter.headers == {"mine": 7}
        assert may_be_newer(letter, letter.since + timedelta(seconds=1))
    assert (expired.restored(None).expiration, undeliverable.restored(None).expiration) == ("1", None)
    assert not may_be_newer(expired, begun - timedelta(minutes=5))
    assert may_be_newer(undeliverable, begun - timedelta(days=1000))


async def test_a_replay_is_the_request_that_it_was(amqp_url: str) -> None:
    """Same body, message_id, properties and headers, without what the rejection added."""
    async with queues(amqp_url) as channel:
        await reject(channel, 1)
        async with borrow_dead_letters(amqp_url) as loan:
            (letter,) = [letter async for letter in loan]
            assert await replay(loan, [(letter, letter)], amqp_url) == 1
        assert await taken(channel, TOPOLOGY.dead_letters_queue) == []
        (request,) = await taken(channel, TOPOLOGY.requests_queue)
    assert (request.body, request.message_id, request.correlation_id) == (b'{"number": 1}', "1", "correlation")
    assert (request.content_encoding, request.app_id, request.user_id) == ("utf-8", "crm", None)
    assert request.expiration == 600
    assert {**request.headers, "x-delivery-count": 0} == {  # 3.10 adds it at the first delivery already
        "x-delivery-count": 0,
        "x-first-seen": "2026-01-01T00:00:00.000+00:00",
        "x-version": 7,
        "traceparent": "00-1-2-01",
    }


@pytest.mark.parametrize("count", [0, 1])
async def test_a_queue_that_has_no_leader_for_a_moment_is_read_afterwards(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """As while a node is drained: the broker closes the connection of whoever reads the queue."""
    monkeypatch.setattr(reading, "_ELECTION_SECONDS", 60.0)
    queue = TOPOLOGY.dead_letters_queue
    async with queues(own_amqp_url) as channel, Proxy.to(own_amqp_url) as proxy:
        for number in range(count):
            await reject(channel, number)
        await on_raft(own_rabbitmq, own_amqp_url, queue, "ra:stop_server(quorum_queues, Raft)")
        looking = asyncio.create_task(look(proxy.url))
        await proxy.connected(2)
        await on_raft(own_rabbitmq, own_amqp_url, queue, "ra:restart_server(quorum_queues, Raft)")
        assert await looking == count


async def look(amqp_url: str) -> int:
    """How many dead letters there are."""
    async with borrow_dead_letters(amqp_url) as loan:
        return len([letter async for letter in loan])


async def test_what_the_broker_refuses_stays(amqp_url: str) -> None:
    """Requests are routed to no queue: an error, and the dead letter is still there."""
    async with queues(amqp_url) as channel:
        await reject(channel, 1)
        await (await channel.get_queue(TOPOLOGY.requests_queue)).unbind(TOPOLOGY.requests_exchange, "upsert")
        with pytest.raises(ClientError, match="took no more"):
            async with borrow_dead_letters(amqp_url) as loan:
                await replay(loan, [(letter, letter) async for letter in loan], amqp_url)
        assert len(await taken(channel, TOPOLOGY.dead_letters_queue)) == 1


async def test_what_a_blocked_broker_may_take_later_is_counted(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes what was written before its alarm as soon as the alarm is over, also after the replay has ended."""
    real = Publisher.publish

    async def blocked(self: Publisher, messages: Sequence[Outgoing], *_: Any) -> list[Fate]:
        await real(self, messages)
        assert self._frame_reader is not None
        self._frame_reader.blocked = "low on memory"
        raise Unavailable("the broker blocks publishers")

    async with queues(amqp_url) as channel:
        await reject(channel, 1)
        monkeypatch.setattr(Publisher, "publish", blocked)
        said = (
            r"^0 replayed, then the broker blocks publishers \(low on memory\); .* up to 1 of them may have been sent"
        )
        with pytest.raises(ClientError, match=said):
            async with borrow_dead_letters(amqp_url) as loan:
                await replay(loan, [(letter, letter) async for letter in loan], amqp_url)
        assert len(await taken(channel, TOPOLOGY.requests_queue)) == 1
        assert len(await taken(channel, TOPOLOGY.dead_letters_queue)) == 1


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ('{{"id": "{}"}}', "application/json"),
        (
            '<?xml version="1.0" encoding="utf-16"?><task_activity_log><id>{}</id></task_activity_log>',
            "application/xml",
        ),  # as .NET writes it
    ],
    ids=["json", "xml"],
)
async def test_no_letter_goes_before_an_older_one_of_its_record(
    body: str, content_type: str, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that is full refuses one and takes what follows. The older one would later be stored over the newer one."""
    real = Publisher.publish

    async def refusing_the_first(self: Publisher, messages: Sequence[Outgoing], *_: Any) -> list[Fate]:
        return [Fate.NACKED, *await real(self, messages[1:])]

    async with queues(amqp_url) as channel:
        for letter_id, record in (("old", UUID(int=1)), ("other", UUID(int=2)), ("new", UUID(int=1))):
            message = aio_pika.Message(body.format(record).encode(), content_type=content_type, message_id=letter_id)
            await channel.default_exchange.publish(message, TOPOLOGY.dead_letters_queue)
        monkeypatch.setattr(Publisher, "publish", refusing_the_first)
        with pytest.raises(ClientError, match="1 replayed, then the broker took no more; the others are in the queue"):
            async with borrow_dead_letters(amqp_url) as loan:
                await replay(loan, [(letter, letter) async for letter in loan], amqp_url)
        assert [message.message_id for message in await taken(channel, TOPOLOGY.requests_queue)] == ["other"]
        assert [message.message_id for message in await taken(channel, TOPOLOGY.dead_letters_queue)] == ["old", "new"]


async def test_letters_of_one_record_are_in_one_part(amqp_url: str) -> None:
    """Otherwise nobody could tell a row that the first of them has changed from one that a newer request has changed."""
    records = [1, 2, 1, 3, *[4] * 150, 1, 4]
    parts: list[list[str | None]] = []

    async def still_due(part: Part) -> Part:
        parts.append([letter.properties.message_id for letter, _ in part])
        return part

    async with queues(amqp_url) as channel:
        for number, record in enumerate(records):
            body = f'{{"id": "{UUID(int=record)}"}}'.encode()
            message = aio_pika.Message(body, content_type="application/json", message_id=str(number))
            await channel.default_exchange.publish(message, TOPOLOGY.dead_letters_queue)
        async with borrow_dead_letters(amqp_url) as loan:
            letters = [(letter, letter) async for letter in loan]
            assert await replay(loan, letters, amqp_url, rate=1_000, still_due=still_due) == len(records)
        sent = [str(one.message_id) for one in await taken(channel, TOPOLOGY.requests_queue)]
    fours = [str(number) for number, record in enumerate(records) if record == 4]
    assert parts == [["0", "2", "154", "1", "3", *fours[:100]], fours[100:]]
    for record in range(1, 5):
        of_one = [str(number) for number, each in enumerate(records) if each == record]
        assert [name for name in sent if name in of_one] == of_one


async def test_what_a_user_may_not_send_is_not_said_to_be_sent(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    """The broker closes the channel, as if the connection was lost: but it has taken none of them."""
    async with queues(amqp_url) as channel:
        await reject(channel, 1)
        with (
            user_who_may(rabbitmq, amqp_url, read=".*") as url,
            pytest.raises(
                ClientError, match=r"then the broker refuses them \(ACCESS_REFUSED .*; the others are in the queue$"
            ),
        ):
            async with borrow_dead_letters(url) as loan:
                await replay(loan, [(letter, letter) async for letter in loan], url)
        assert await dead(channel) == 1


@pytest.mark.parametrize("how", ["cancelled", "cut"])
async def test_a_replay_that_is_interrupted_loses_nothing(amqp_url: str, how: str) -> None:
    """Each is replayed or still in the queue; after a lost connection possibly both, with one message_id."""
    async with queues(amqp_url) as channel, Proxy.to(amqp_url) as proxy:
        for number in range(20):
            await reject(channel, number)
        going = asyncio.Event()
        link = LinkOptions(proxy.url, heartbeat_seconds=1)

        async def work() -> None:
            async with borrow_dead_letters(link) as loan:
                letters = [(letter, letter) async for letter in loan]
                await replay(loan, letters, link, rate=20, on_replayed=lambda _: going.set())

        working = asyncio.create_task(work())
        await going.wait()
        if how == "cut":
            proxy.refuse()
            proxy.cut()
            with pytest.raises(ClientError, match=r"connection|the others are in the queue"):
                await working
        else:
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
        async with asyncio.timeout(20):
            names: set[str | None] = set()
            while len(names) < 20:  # until the broker has noticed that the link is gone
                names |= {one.message_id for one in await taken(channel, TOPOLOGY.dead_letters_queue)}
                names |= {one.message_id for one in await taken(channel, TOPOLOGY.requests_queue)}
        assert names == {str(number) for number in range(20)}


async def test_a_dead_letter_has_the_same_key_at_each_look(amqp_url: str) -> None:
    """Otherwise a command does not find what it has just selected: RabbitMQ sorts the headers when it counts a delivery."""
    values: dict[str, Any] = {
        "z": 1,
        "Z": [1, {"b": True, "a": None}],
        "x-early": Decimal("1.5"),
        "a": datetime.now(UTC),
        "": bytearray(b"\xff"),
    }
    # One by one, because the driver sorts them too. Each table begins with its size.
    table = b"".join(encode.field_table({name: value})[4:] for name, value in values.items())
    async with queues(amqp_url) as channel, publishing(amqp_url, "tests") as publisher:
        properties = Properties(message_id="1", table=table)
        await publisher.publish([Outgoing("", TOPOLOGY.dead_letters_queue, properties, b"{}")])
        looks = [[letter.key for letter in await all_of(amqp_url)] for _ in range(3)]
        assert len(await taken(channel, TOPOLOGY.dead_letters_queue)) == 1
    assert (len(looks[0]), looks) == (1, [looks[0]] * 3)


async def test_what_is_said_to_be_removed_is_removed(amqp_url: str) -> None:
    """Also when it takes more commands than the broker passes on to a queue at a time. It forgets the rest at the end."""
    async with queues(amqp_url) as channel:
        await asyncio.gather(*(reject(channel, number) for number in range(600)))
        async with borrow_dead_letters(amqp_url) as loan:
            letters = [letter async for letter in loan]
            assert await loan.remove(letters[5::12]) == 50
        left = [letter.name for letter in await all_of(amqp_url)]
        assert sorted(left) == sorted({letter.name for letter in letters} - {letter.name for letter in letters[5::12]})


async def test_nothing_is_said_to_be_removed_before_the_queue_has_answered(amqp_url: str) -> None:
    """The acknowledgements are sent, do not arrive, and the connection is lost: everything is in the queue again."""
    async with queues(amqp_url) as channel, Proxy.to(amqp_url) as proxy:
        await asyncio.gather(*(reject(channel, number) for number in range(3)))
        async with borrow_dead_letters(LinkOptions(proxy.url)) as loan:
            letters = [letter async for letter in loan]
            proxy.hold()
            removing = asyncio.create_task(loan.remove(letters))
            await proxy.held_back()
            proxy.refuse()
            proxy.cut()
            with pytest.raises(ClientError):
                await removing
        names: set[str | None] = set()
        async with asyncio.timeout(20):
            while len(names) < 3:  # until the broker has noticed that the connection is lost
                names |= {one.message_id for one in await taken(channel, TOPOLOGY.dead_letters_queue)}


async def test_what_fifty_at_a_time_say_to_be_removed_is_removed(amqp_url: str) -> None:
    """Each removes some of what it was given and returns the rest to the others."""
    said: list[str] = []

    async def one() -> None:
        async with borrow_dead_letters(amqp_url) as loan:
            letters = [letter async for letter in loan]
            await loan.give_back(letters[::3])
            assert await loan.remove(letters[1::3]) == len(letters[1::3])
            said.extend(letter.name for letter in letters[1::3])

    async with queues(amqp_url) as channel:
        await asyncio.gather(*(reject(channel, number) for number in range(300)))
        await asyncio.gather(*(one() for _ in range(50)))
        left = [message.message_id or "" for message in await taken(channel, TOPOLOGY.dead_letters_queue)]
        assert sorted(map(int, said + left)) == list(range(300))
        assert said


async def test_forged_headers_keep_nobody_from_being_replayed(amqp_url: str) -> None:
    """An expiration that the broker refuses would end the channel for all; 300 bytes do not even fit a property."""
    async with queues(amqp_url) as channel:
        ten_years = str(EXPIRATION_MAX)
        for number, expiration in enumerate(["600000", "abc", "-1", "9" * 300, str(EXPIRATION_MAX + 1), ten_years]):
            await reject(channel, number, **{"x-original-expiration": expiration})
        async with borrow_dead_letters(amqp_url) as loan:
            letters = [(letter, letter) async for letter in loan]
            assert await replay(loan, letters, amqp_url) == 6
        assert await taken(channel, TOPOLOGY.dead_letters_queue) == []
        requests = await taken(channel, TOPOLOGY.requests_queue)
    assert [request.expiration for request in requests] == [600, None, None, None, None, EXPIRATION_MAX / 1000]


@asynccontextmanager
async def overtaken(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[aio_pika.abc.AbstractConnection, list[AbstractIncomingMessage]]]:
    """Somebody else gets all dead letters after they were counted, and before they are consumed."""
    monkeypatch.setattr(dead_letters, "_IDLE_SECONDS", 0.5)
    taken: list[AbstractIncomingMessage] = []
    async with await aio_pika.connect(amqp_url) as other:

        def choosing(*given: Any) -> Choice:
            async def choose(channel: Any) -> Found:
                found = await kept_queue(*given)(channel)
                queue = await (await other.channel()).get_queue(TOPOLOGY.dead_letters_queue)
                arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
                await queue.consume(arrived.put)
                taken.extend([await arrived.get() for _ in range(found.messages)])
                return found

            return choose

        monkeypatch.setattr(dead_letters, "kept_queue", choosing)
        yield other, taken


async def test_one_who_comes_first_is_counted_among_the_others(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would be said that there are no dead letters."""
    async with queues(amqp_url) as channel:
        await reject(channel, 1)
        async with overtaken(amqp_url, monkeypatch), borrow_dead_letters(amqp_url) as loan:
            assert [letter async for letter in loan] == []
            assert (loan.waiting, loan.others) == (1, 1)


async def test_what_one_who_came_first_has_just_returned_is_seen(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue then shows neither messages nor others, although what was returned has not arrived yet."""
    async with queues(amqp_url) as channel:
        await reject(channel, 1)
        async with overtaken(amqp_url, monkeypatch) as (other, _), borrow_dead_letters(amqp_url) as loan:

            async def now(_: Reader) -> tuple[int, int]:
                await other.close()
                return 0, 1

            monkeypatch.setattr(Reader, "now", now)
            assert [letter.name async for letter in loan] == ["1"]


async def test_what_one_who_came_first_has_removed_is_not_waited_for(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left, and nobody has it."""
    async with queues(amqp_url) as channel:
        await reject(channel, 1)
        async with overtaken(amqp_url, monkeypatch) as (other, taken), borrow_dead_letters(amqp_url) as loan:
            await taken[0].ack()
            await other.close()
            assert [letter async for letter in loan] == []
            assert (loan.waiting, loan.others) == (1, 0)


async def test_others_get_what_was_not_selected_immediately(amqp_url: str) -> None:
    """While some are on loan, the rest can be seen, in any order: asking the queue for its answer takes one for a moment.

    That one is back, too, when the call is over, also where a command takes a while to reach the broker.
    """
    async with queues(amqp_url) as channel, Proxy.to(amqp_url) as proxy:
        for number in range(3):
            await reject(channel, number)
        async with borrow_dead_letters(proxy.url) as loan:
            letters = [letter async for letter in loan]
            proxy.delay(0.2)
            await loan.give_back([letters[0], letters[2]])
            assert sorted(letter.name for letter in await all_of(amqp_url)) == ["0", "2"]
            assert await loan.remove([letters[1]]) == 1
            assert sorted(letter.name for letter in await all_of(amqp_url)) == ["0", "2"]
        assert sorted(letter.name for letter in await all_of(amqp_url)) == ["0", "2"]


async def test_properties_that_the_driver_cannot_read_keep_nothing_from_being_removed(amqp_url: str) -> None:
    """The broker dead-letters an expired request as it is. As the first in the queue, it is the answer to `basic.get`."""
    header = bytes.fromhex("003c 0000 0000000000000000 0080 01ff")  # a message_id of one byte
    async with queues(amqp_url) as channel, await aio_pika.connect(amqp_url) as other:
        underlay = await (await other.channel(publisher_confirms=False)).get_underlay_channel()
        frames = publish_frames(
            underlay.number,
            "",
            TOPOLOGY.dead_letters_queue,
            mandatory=False,
            header=header,
            body=b"",
            frame_max=131_072,
        )
        await write(underlay, frames)
        while not await dead(channel):
            await asyncio.sleep(0.05)
        await reject(channel, 1)
        async with borrow_dead_letters(amqp_url) as loan:
            letters = {letter.name: letter async for letter in loan}
            unreadable = next(letter for name, letter in letters.items() if name != "1")
            await loan.give_back([unreadable])
            assert await loan.remove([letters["1"]]) == 1
        assert [letter.key for letter in await all_of(amqp_url)] == [unreadable.key]


async def test_a_dead_letter_that_the_broker_cannot_deliver_is_said_to_be_one(amqp_url: str) -> None:
    """It is not said that the connection was lost, and that the command is to be run again."""
    async with queues(amqp_url) as channel:
        await reject(channel, 1, note="cannot be delivered")
        broker = FailingBroker(amqp_url, b"cannot be delivered")
        async with broker.running():
            with pytest.raises(ClientError, match=r"RabbitMQ has failed, probably to deliver one .* docs/runbook.md"):
                await all_of(broker.url)
        assert len(await all_of(amqp_url)) == 1
