"""`dead-letters discard`, `dead-letters replay` and `resend` whose connection, broker or process ends in the middle.

The proxy stops the network at a frame of the protocol: before the broker has it, or when the broker has it and its answer is
under way. Afterwards the queues are counted: nothing is lost, what the command has said is true, and the same command again
finishes the work.
"""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import UUID, uuid4

import aio_pika
import asyncpg
import pytest
from aio_pika.abc import AbstractChannel

from sandbox import RabbitMQ
from sandbox.proxy import Proxy
from task_activity_log.rabbitmq.topology import Topology, declare
from tests.commands import Said, command, end, start

TOPOLOGY = Topology()
LETTERS = 60
# The class and the method of a frame (AMQP 0-9-1).
PUBLISH, GET, ACK = b"\x00\x3c\x00\x28", b"\x00\x3c\x00\x46", b"\x00\x3c\x00\x50"

Point = tuple[bytes, int, bool]
"""The frame at which the network stops, its number, and whether the broker has it."""


@pytest.fixture
async def channel(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    """A channel to a virtual host that has the queues but no worker."""
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TOPOLOGY)
        yield await connection.channel()


async def reject(channel: AbstractChannel, count: int = LETTERS, queue: str = TOPOLOGY.dead_letters_queue) -> None:
    """Dead letters that the contract accepts, alternately with two codes, so that those of one code are not all in a row."""
    for number in range(count):
        message = aio_pika.Message(
            json.dumps({"id": str(uuid4()), "subject": "wrong"}).encode(),
            delivery_mode=2,
            content_type="application/json",
            message_id=str(number),
            headers={"x-error-code": ("refused_by_database", "misrouted")[number % 2], "x-error-detail": "Why not."},
        )
        await channel.default_exchange.publish(message, queue)


async def unused(channel: AbstractChannel, queue: str = TOPOLOGY.dead_letters_queue) -> None:
    """Return when the broker has noticed that the command is gone: what it had is in the queue again."""
    async with asyncio.timeout(30):
        while (await channel.declare_queue(queue, passive=True)).declaration_result.consumer_count:
            await asyncio.sleep(0.02)


async def take_all(channel: AbstractChannel, name: str) -> list[aio_pika.abc.AbstractIncomingMessage]:
    queue = await channel.get_queue(name)
    found = []
    while (message := await queue.get(no_ack=True, fail=False)) is not None:
        found.append(message)
    return found


async def names(channel: AbstractChannel, queue: str) -> Counter[str]:
    """The message_ids in a queue, which is empty then."""
    return Counter(str(message.message_id) for message in await take_all(channel, queue))


async def again(arguments: Sequence[str], amqp_url: str, other_queue: str = "") -> Said:
    """Run the command once more."""
    queue = {"WORKER_DEAD_LETTERS_QUEUE": other_queue or TOPOLOGY.dead_letters_queue}
    return await end(await start(*arguments, AMQP_URL=amqp_url, **queue))


async def interrupted(proxy: Proxy, how: str, point: Point, *arguments: str, **variables: str) -> Said:
    """Run a command until the network stops at this point; then cut its connections, or kill it."""
    marker, number, after = point
    proxy.hold_at(marker, number=number, after=after)
    if how == "cut":
        running = asyncio.create_task(command(*arguments, stdin=b"", AMQP_URL=proxy.url, **variables))
        await proxy.held_back()
        proxy.refuse()
        proxy.cut()
        said = await running
        proxy.resume()
        proxy.accept()
        return said
    process = await start(*arguments, AMQP_URL=proxy.url, **variables)
    await proxy.held_back()
    process.kill()
    proxy.resume()  # the system delivers what the process has sent, and the end of its connections
    return await end(process)


@pytest.mark.parametrize("how", ["cut", "killed"])
@pytest.mark.parametrize(
    "point", [(ACK, 1, False), (GET, 3, True)], ids=["before any is removed", "when all are removed"]
)
async def test_an_interrupted_discard_is_finished_by_the_next(
    channel: AbstractChannel, amqp_url: str, how: str, point: Point
) -> None:
    """Those of the other code stay, each once; the second run counts those that the first one has left."""
    await reject(channel)
    discard = ("dead-letters", "discard", "--code", "misrouted", "--yes")
    async with Proxy.to(amqp_url) as proxy:
        said = await interrupted(proxy, how, point, *discard)
    if how == "cut":
        assert (said.code, said.lines) == (1, [])
        assert "connection lost" in said.err
        assert "dead letters that were not removed are in the queue; run it again" in said.err
    await unused(channel)
    left = await command("dead-letters", "list", "--json", "--code", "misrouted", AMQP_URL=amqp_url)
    said = await command(*discard, AMQP_URL=amqp_url)
    assert said.code == 0
    told = f"{len(left.lines)} discarded" if left.lines else "no match among 30 dead letters"
    assert told in said.err
    assert how == "killed" or len(left.lines) == (0 if point[2] else 30)
    kept = await names(channel, TOPOLOGY.dead_letters_queue)
    assert kept == Counter(str(number) for number in range(0, LETTERS, 2))


EDIT = """#!/bin/sh
sed -i s/wrong/right/ "$1"
"""


@pytest.mark.parametrize(
    ("how", "point"),
    [
        ("cut", (PUBLISH, 1, False)),  # before the first is sent
        ("killed", (PUBLISH, 1, True)),  # when some are sent
        ("cut", (ACK, 2, False)),  # before more are removed
        ("cut", (GET, 4, True)),  # when more are removed
        ("killed", (GET, 4, True)),
    ],
)
async def test_an_interrupted_replay_is_finished_by_the_next(
    channel: AbstractChannel, amqp_url: str, how: str, point: Point
) -> None:
    """Each request is in the requests queue: at most twice, with one message_id, and only if it was under way."""
    await reject(channel, 30)
    replay = ("dead-letters", "replay", "--all", "--rate", "100")
    async with Proxy.to(amqp_url) as proxy:
        said = await interrupted(proxy, how, point, *replay)
    await unused(channel)
    if how == "cut":
        assert (said.code, said.lines) == (1, [])
        assert ("10 replayed, then the connection" if point[0] != PUBLISH else "0 replayed, then") in said.err
        assert (
            "10 more were sent and may still be" if point[0] != PUBLISH else "may have been sent as well"
        ) in said.err
    left = await command("dead-letters", "list", "--json", AMQP_URL=amqp_url)
    assert how == "killed" or len(left.lines) == {PUBLISH: 30, ACK: 20, GET: 10}[point[0]]
    said = await command(*replay, AMQP_URL=amqp_url)
    assert (said.code, f"{len(left.lines)} replayed" in said.err) == (0, True)
    sent = await names(channel, TOPOLOGY.requests_queue)
    assert set(sent) == {str(number) for number in range(30)}
    assert sum(sent.values()) <= 30 + 10
    assert set(sent.values()) <= {1, 2}
    assert not await names(channel, TOPOLOGY.dead_letters_queue)


async def test_a_killed_replay_of_edited_requests_is_finished_by_the_next(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """What was sent before is sent once more, with its message_id, corrected both times."""
    await reject(channel, 4)
    editor = tmp_path / "editor"
    editor.write_text(EDIT)
    editor.chmod(0o755)
    replay = ("dead-letters", "replay", "--all", "--edit")
    variables = {"EDITOR": str(editor), "VISUAL": "", "TMPDIR": str(tmp_path)}
    async with Proxy.to(amqp_url) as proxy:
        await interrupted(proxy, "killed", (ACK, 1, False), *replay, **variables)
    await unused(channel)
    assert (await end(await start(*replay, AMQP_URL=amqp_url, **variables))).code == 0
    requests = await take_all(channel, TOPOLOGY.requests_queue)
    assert {request.message_id for request in requests} == {"0", "1", "2", "3"}
    assert {json.loads(request.body)["subject"] for request in requests} == {"right"}
    assert len(requests) <= 8
    assert not await names(channel, TOPOLOGY.dead_letters_queue)


async def records(database_url: str, count: int) -> list[UUID]:
    """The ids of new rows, in order."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(
            "INSERT INTO task_activity_log (id) SELECT gen_random_uuid() FROM generate_series(1, $1::int) RETURNING id",
            count,
        )
    finally:
        await connection.close()
    return sorted(UUID(str(row["id"])) for row in rows)


async def sent_records(channel: AbstractChannel, queue: str) -> Counter[UUID]:
    return Counter(UUID(json.loads(message.body)["id"]) for message in await take_all(channel, queue))


def resend(queue: str, ids: Sequence[UUID]) -> list[str]:
    """The arguments that send these records to a queue, one at a time."""
    chosen = [option for one in ids for option in ("--id", str(one))]
    return ["resend", *chosen, "--queue", queue, "--rate", "15", "--yes"]


@pytest.mark.parametrize("after", [False, True], ids=["before the fifth is sent", "when the fifth is sent"])
async def test_a_killed_resend_is_finished_by_the_same_command(
    channel: AbstractChannel, amqp_url: str, database_url: str, after: bool
) -> None:
    """A record that was sent before is sent again with the same message_id: its subscriber skips it."""
    ids = await records(database_url, 8)
    await channel.declare_queue("mine", durable=True, arguments={"x-queue-type": "quorum"})
    async with Proxy.to(amqp_url) as proxy:
        await interrupted(proxy, "killed", (PUBLISH, 5, after), *resend("mine", ids), DATABASE_URL=database_url)
    said = await command(*resend("mine", ids), AMQP_URL=amqp_url, DATABASE_URL=database_url)
    assert (said.code, "8 records sent" in said.err) == (0, True)
    messages = await take_all(channel, "mine")
    found = Counter(UUID(json.loads(message.body)["id"]) for message in messages)
    assert found == Counter(ids) + Counter(ids[:5] if len(messages) == 13 else ids[:4])
    assert len({message.message_id for message in messages}) == 8


@pytest.mark.parametrize("after", [False, True], ids=["before the fifth is sent", "when the fifth is sent"])
async def test_a_resend_continues_on_the_next_connection(
    channel: AbstractChannel, amqp_url: str, database_url: str, after: bool
) -> None:
    """A cut sends at most what was under way once more; the command says how many it has sent."""
    ids = await records(database_url, 8)
    await channel.declare_queue("mine", durable=True, arguments={"x-queue-type": "quorum"})
    async with Proxy.to(amqp_url) as proxy:
        proxy.hold_at(PUBLISH, number=5, after=after)
        sending = asyncio.create_task(command(*resend("mine", ids), AMQP_URL=proxy.url, DATABASE_URL=database_url))
        await proxy.held_back()
        proxy.cut()
        proxy.resume()
        said = await sending
    assert (said.code, "8 records sent" in said.err) == (0, True)
    assert await sent_records(channel, "mine") in (Counter(ids), Counter(ids) + Counter([ids[4]]))


async def test_a_broker_that_restarts_in_the_middle_loses_nothing(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, database_url: str
) -> None:
    """`discard` and `replay` say that they were interrupted; `resend` waits, and continues."""
    ids = await records(database_url, 8)
    other = {"WORKER_DEAD_LETTERS_QUEUE": "others"}
    async with await aio_pika.connect(own_amqp_url) as connection:
        await declare(connection, TOPOLOGY)
        channel = await connection.channel()
        for name in ("mine", "others"):
            await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
        await reject(channel)
        await reject(channel, 30, "others")
    discard = ("dead-letters", "discard", "--code", "misrouted", "--yes")
    replay = ("dead-letters", "replay", "--all", "--rate", "100")
    async with Proxy.to(own_amqp_url) as one, Proxy.to(own_amqp_url) as two, Proxy.to(own_amqp_url) as three:
        one.hold_at(GET, number=3, after=True)
        two.hold_at(ACK, number=2)
        three.hold_at(PUBLISH, number=5)
        running = [  # processes: within this one, commands cannot run at the same time
            await start(*discard, AMQP_URL=one.url),
            await start(*replay, AMQP_URL=two.url, **other),
            await start(*resend("mine", ids), AMQP_URL=three.url, DATABASE_URL=database_url),
        ]
        await asyncio.gather(one.held_back(), two.held_back(), three.held_back())
        await asyncio.to_thread(own_rabbitmq.kill)
        for proxy in (one, two, three):
            proxy.cut()  # without what the broker may have answered before its end
            proxy.resume()
        ends = asyncio.gather(*map(end, running))
        await asyncio.to_thread(own_rabbitmq.start)
        discarded, replayed, resent = await ends
    assert (discarded.code, replayed.code, resent.code) == (1, 1, 0)
    assert "dead letters that were not removed are in the queue; run it again" in discarded.err
    assert "10 replayed, then the connection was lost; 10 more were sent" in replayed.err
    assert "8 records sent" in resent.err
    assert (await again(discard, own_amqp_url)).code == 0
    assert (await again(replay, own_amqp_url, "others")).code == 0
    async with await aio_pika.connect(own_amqp_url) as connection:
        channel = await connection.channel()
        kept = await names(channel, TOPOLOGY.dead_letters_queue)
        assert kept == Counter(str(number) for number in range(0, LETTERS, 2))
        assert not await names(channel, "others")
        sent = await names(channel, TOPOLOGY.requests_queue)
        assert set(sent) == {str(number) for number in range(30)}
        assert set((await sent_records(channel, "mine")).values()) <= {1, 2}


async def test_a_second_signal_is_no_traceback(amqp_url: str) -> None:
    """As of somebody who presses Ctrl-C twice: the connections are left as they are, and the driver has tasks for each."""
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, Topology(partitions=2))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # see `test_a_terminated_publish_says_how_to_continue`
    process = await start("partitions", "--to", "4", "--yes", AMQP_URL=amqp_url)
    signal.signal(signal.SIGTERM, before)
    assert process.stderr is not None
    assert b"deleting exchange" in await process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    said = await end(process)
    assert (said.code, said.err) == (143, "task-activity-log: interrupted\n")
