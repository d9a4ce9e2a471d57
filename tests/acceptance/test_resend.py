"""`task-activity-log resend`: records as they are now, for subscribers that have missed some."""

import json
import re
import shlex
import signal
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import asyncpg
import pytest

from sandbox import RabbitMQ
from task_activity_log.client import (
    Received,
    StoredReply,
    TaskActivityLog,
    TaskActivityLogClient,
    snapshots,
    subscribe,
)
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.testing import FakeWorker
from tests.commands import Said, World, command, end, start
from tests.users import user_who_may


async def stored(world: World, count: int = 3) -> list[UUID]:
    """The ids of new records, in order."""
    ids = sorted(uuid4() for _ in range(count))
    async with TaskActivityLogClient(world.amqp_url) as client:
        bulk = client.upsert_many(TaskActivityLog(id=one, subject=str(number)) for number, one in enumerate(ids))
        assert {answer.outcome async for answer in bulk} == {"inserted"}
    return ids


async def own_queue(world: World) -> str:
    """A durable queue that gets what is sent to it directly."""
    name = f"own.{uuid4()}"
    async with subscribe(world.amqp_url, queue=name, routing_keys=["nothing"]):
        return name


async def read(world: World, queue: str, most: int) -> list[Received]:
    async with subscribe(world.amqp_url, queue=queue, everything=True, most=most) as replies:
        return [reply async for reply in replies]


async def take_all(world: World, queue: str) -> list[UUID]:
    """The ids of the records in the queue, which is empty then."""
    ids: list[UUID] = []
    async with await aio_pika.connect(world.amqp_url) as connection:
        own = await (await connection.channel()).get_queue(queue)
        while (message := await own.get(no_ack=True, fail=False)) is not None:
            ids.append(UUID(json.loads(message.body)["id"]))
    return ids


def ids_of(replies: list[Received]) -> list[UUID]:
    return [reply.record.id for reply in replies if isinstance(reply, StoredReply)]


async def resend(world: World, *arguments: str) -> Said:
    return await command("resend", *arguments, AMQP_URL=world.amqp_url, DATABASE_URL=world.database_url)


@pytest.mark.parametrize("format_", ["json", "xml"])
async def test_chosen_records_are_sent_to_one_queue(world: World, format_: str) -> None:
    """As they are now, as replies with the outcome `snapshot`, each with the same message_id the next time."""
    ids, queue = await stored(world), await own_queue(world)
    chosen = [option for one in ids[:2] for option in ("--id", str(one))]
    xml = ["--xml"] if format_ == "xml" else []
    for _ in range(2):
        said = await resend(world, *chosen, "--queue", queue, "--yes", *xml)
        assert (said.code, said.lines, said.err) == (0, [], "task-activity-log: 2 records sent\n")
    replies = await read(world, queue, 4)
    assert ids_of(replies) == [*ids[:2]] * 2
    assert {(reply.outcome, reply.content_type, reply.correlation_id) for reply in replies} == {
        ("snapshot", f"application/{format_}", None)
    }
    assert [reply.message_id for reply in replies[:2]] == [reply.message_id for reply in replies[2:]]
    assert len({reply.message_id for reply in replies}) == 2


async def test_what_was_changed_since_is_sent_to_the_subscribers(world: World) -> None:
    """With the routing key `stored.snapshot`, after a count and a confirmation. --dry-run sends nothing."""
    connection = await asyncpg.connect(world.database_url)
    await connection.execute("UPDATE task_activity_log SET subject = subject")
    since = (await connection.fetchval("SELECT clock_timestamp()")).isoformat()
    await connection.close()
    ids = await stored(world)
    async with subscribe(world.amqp_url, routing_keys=["stored.snapshot"], most=3) as replies:
        said = await resend(world, "--changed-since", since, "--dry-run")
        assert (said.code, said.err.count("3 records would be sent to the subscribers of")) == (0, 1)
        said = await resend(world, "--changed-since", since)
        assert (said.code, "confirm with --yes" in said.err) == (2, True)
        said = await resend(world, "--changed-since", since, "--yes")
        assert (said.code, said.err) == (0, "task-activity-log: 3 records sent\n")
        found = [reply async for reply in replies]
        said = await resend(world, "--changed-since", since, "--after", str(max(ids)), "--yes")
        assert (said.code, said.err) == (0, "task-activity-log: there are no records to send; nothing was sent\n")
    assert ids_of(found) == ids
    assert [reply.record.subject for reply in found if isinstance(reply, StoredReply)] == ["0", "1", "2"]


async def test_an_interrupted_run_is_continued_with_the_command_that_it_prints(world: World) -> None:
    """Behind the last record that the broker has confirmed. The time is absolute in this command, so it may be run later."""
    ids, queue = await stored(world, 60), await own_queue(world)
    chosen = [option for one in ids for option in ("--id", str(one))]
    arguments = ["resend", *chosen, "--queue", queue, "--rate", "2", "--yes"]
    process = await start(*arguments, AMQP_URL=world.amqp_url, DATABASE_URL=world.database_url)
    before = ids_of(await read(world, queue, 2))  # each is published when the one before is confirmed
    assert before == ids[:2]
    process.send_signal(signal.SIGINT)
    said = await end(process)
    assert said.code == 130
    words = to_continue(said)
    after = ids.index(UUID(words[words.index("--after") + 1]))
    words[words.index("--rate") + 1] = "1000"
    said = await command(*words, AMQP_URL=world.amqp_url, DATABASE_URL=world.database_url)
    assert said.code == 0
    sent = before + await take_all(world, queue)
    count = len(sent) - len(ids[after + 1 :])
    assert sent[count:] == ids[after + 1 :]
    # One may have been on its way to the broker when the signal came: it is sent once more.
    assert sent[:count] in (ids[: after + 1], ids[: after + 2])


async def test_an_interrupt_before_the_first_confirmation_prints_the_command_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker has the record, and the run does not know it: it is sent once more, with the same message_id."""
    [first, *rest], queue = await stored(world, 3), await own_queue(world)
    publish = Publisher.publish

    async def interrupted(publisher: Publisher, messages: Sequence[Outgoing]) -> list[Fate]:
        await publish(publisher, messages)
        raise KeyboardInterrupt

    chosen = [option for one in (first, *rest) for option in ("--id", str(one))]
    arguments = ["resend", *chosen, "--queue", queue, "--rate", "10", "--yes"]
    for option in ([], ["--after", str(first)]):
        monkeypatch.setattr(Publisher, "publish", interrupted)
        said = await command(*arguments, *option, AMQP_URL=world.amqp_url, DATABASE_URL=world.database_url)
        monkeypatch.undo()
        assert said.code == 130
        assert to_continue(said) == [*arguments, *option]
    said = await command(*to_continue(said), AMQP_URL=world.amqp_url, DATABASE_URL=world.database_url)
    assert said.code == 0
    replies = await read(world, queue, 4)
    assert ids_of(replies) == [first, rest[0], *rest]
    assert replies[1].message_id == replies[2].message_id


def to_continue(said: Said) -> list[str]:
    """The arguments of the command that an interrupted run has printed."""
    [again] = re.findall(r"interrupted; to continue: task-activity-log (resend .*)\n", said.err)
    return shlex.split(again)


async def test_what_cannot_be_sent_is_counted(world: World) -> None:
    """Records that do not exist. It is a failure if that is true of all."""
    [identifier], queue = await stored(world, 1), await own_queue(world)
    said = await resend(world, "--id", str(identifier), "--id", str(uuid4()), "--queue", queue, "--yes")
    assert said.code == 3
    assert "1 record sent\n" in said.err
    assert "no such record\n" in said.err
    for unknown, option in ((uuid4(), "--yes"), (uuid4(), "--dry-run"), (UUID(int=0), "--yes")):
        said = await resend(world, "--id", str(unknown), "--queue", queue, option)
        assert (said.code, f"{unknown}: no such record\n" in said.err) == (1, True)


async def test_a_dry_run_counts_what_cannot_be_sent(world: World) -> None:
    """Records that were chosen, with a value that a reply cannot contain."""
    (one, other), queue = await stored(world, 2), await own_queue(world)
    connection = await asyncpg.connect(world.database_url)
    await connection.execute("UPDATE task_activity_log SET due_date = 'infinity' WHERE id = $1", one)
    await connection.close()
    said = await resend(world, "--id", str(one), "--id", str(other), "--queue", queue, "--dry-run")
    assert (said.code, said.err) == (
        3,
        "task-activity-log: 1 record would not be sent: with values that a reply cannot contain\n"
        f"task-activity-log: 1 record would be sent to queue {queue}; nothing was sent\n",
    )
    said = await resend(world, "--id", str(one), "--queue", queue, "--dry-run")
    assert said.code == 1
    said = await resend(world, "--id", str(one), "--id", str(other), "--queue", queue, "--yes")
    assert "1 was deleted meanwhile, or has values that a reply cannot contain: not sent\n" in said.err


async def test_a_slow_run_says_how_long_it_takes(world: World) -> None:
    """Before it begins, also where it asks for a confirmation that nobody can give."""
    ids, queue = await stored(world), await own_queue(world)
    chosen = [option for one in ids for option in ("--id", str(one))]
    for option in (["--dry-run"], []):
        said = await resend(world, *chosen, "--queue", queue, "--rate", "0.1", *option)
        assert f"to queue {queue}, which takes 0:00:30 or more with --rate 0.1" in said.err


async def test_a_record_that_may_be_hidden_is_not_said_to_be_missing(world: World) -> None:
    """By `find` neither: the role of a command may see less than that of the workers."""
    [identifier] = await stored(world, 1)
    connection = await asyncpg.connect(world.database_url)
    await connection.execute("ALTER TABLE task_activity_log RENAME TO base")
    await connection.execute("CREATE VIEW task_activity_log AS SELECT * FROM base WHERE subject = 'shown'")
    try:
        said = await resend(world, "--id", str(identifier), "--yes")
        assert (said.code, f"{identifier}: no such record that this role may see\n" in said.err) == (1, True)
        said = await resend(world, "--all", "--dry-run")
        assert (said.code, "there may be records that this role may not see" in said.err) == (0, True)
        said = await command("find", str(identifier), AMQP_URL=world.amqp_url, DATABASE_URL=world.database_url)
        assert (said.code, "no row that this role may see, no dead letter" in said.err) == (1, True)
        async with await aio_pika.connect(world.amqp_url) as broker:
            letter = aio_pika.Message(json.dumps({"id": str(identifier)}).encode(), content_type="application/json")
            await (await broker.channel()).default_exchange.publish(letter, Topology().dead_letters_queue)
        said = await command("find", str(identifier), AMQP_URL=world.amqp_url, DATABASE_URL=world.database_url)
        assert (said.code, "there may be a row that this role may not see" in said.err) == (0, True)
    finally:
        await connection.execute("DROP VIEW task_activity_log; ALTER TABLE base RENAME TO task_activity_log")
        await connection.close()


async def test_a_queue_that_does_not_exist_is_an_error(world: World) -> None:
    """Nothing is lost without a word, and a dry run finds it too."""
    [identifier] = await stored(world, 1)
    said = await resend(world, "--id", str(identifier), "--queue", "nowhere", "--dry-run")
    words = "queue nowhere does not exist: 1 record could not be sent; nothing was sent"
    assert (said.code, said.err) == (1, f"task-activity-log: {words}\n")
    queue = await own_queue(world)
    said = await resend(world, "--id", str(identifier), "--queue", queue, "--dry-run")
    assert (said.code, said.err) == (
        0,
        f"task-activity-log: 1 record would be sent to queue {queue}; nothing was sent\n",
    )
    said = await resend(world, "--id", str(identifier), "--queue", "nowhere", "--yes")
    assert (said.code, said.err) == (1, "task-activity-log: nothing was sent: queue nowhere does not exist\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "select records with one of --changed-since, --id and --all"),
        (["--all", "--changed-since", "2h"], "select records with one of"),
        (["--changed-since", "yesterday"], "invalid time yesterday: use 15m, 2h or 7d, or a date such as"),
        (["--changed-since", "999999999d"], "invalid time 999999999d"),
        (["--all", "--queue", "task_activity_log.upsert"], "task_activity_log.upsert is for the worker, and not for"),
        (["--all", "--queue", "task_activity_log.dead-letters", "--dry-run"], "--queue should name another queue"),
    ],
)
async def test_a_wrong_selection_is_one_line(arguments: list[str], words: str) -> None:
    """With exit code 2."""
    said = await command("resend", *arguments, AMQP_URL="amqp://x/", DATABASE_URL="postgresql://x/x")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert words in said.err


async def test_a_missing_exchange_is_named_at_once(world: World) -> None:
    """As by the other commands: nothing declares it while the command waits."""
    [identifier] = await stored(world, 1)
    services: dict[str, Any] = {"AMQP_URL": world.amqp_url, "DATABASE_URL": world.database_url}
    services["WORKER_REPLIES_EXCHANGE"] = "nowhere"
    said = await command("resend", "--id", str(identifier), "--yes", **services)
    words = "exchange 'nowhere' does not exist on this broker: a worker declares it when it starts"
    assert (said.code, said.err) == (1, f"task-activity-log: nothing was sent: {words}\n")


@pytest.mark.parametrize("queue", [(), ("--queue", "task_activity_log.replies")])
async def test_a_missing_permission_is_named_at_once(world: World, rabbitmq: RabbitMQ, queue: Sequence[str]) -> None:
    """The broker would refuse each further attempt as well."""
    [identifier] = await stored(world, 1)
    with user_who_may(rabbitmq, world.amqp_url, read=".*") as url:
        services: dict[str, Any] = {"AMQP_URL": url, "DATABASE_URL": world.database_url}
        said = await command("resend", "--id", str(identifier), *queue, "--yes", **services)
    name = "exchange 'amq.default'" if queue else "exchange 'task_activity_log.replies'"
    # Older brokers do not say which permission is missing.
    words = rf"nothing was sent: user '\w+' may not (write to|use) {name}: see Permissions in docs/subscribing.md"
    assert (said.code, bool(re.fullmatch(f"task-activity-log: {words}\n", said.err))) == (1, True), said.err


async def test_a_database_that_is_away_is_one_line(world: World) -> None:
    """With exit code 1."""
    url = "postgresql://127.0.0.1:1/nobody"
    said = await command("resend", "--all", "--yes", AMQP_URL=world.amqp_url, DATABASE_URL=url)
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "the database cannot be used: connection refused" in said.err


async def test_a_subscriber_gets_by_a_snapshot_only_what_it_has_missed() -> None:
    """The state of a record that it has seen is not new to it."""
    worker = FakeWorker()
    seen, missed = uuid4(), uuid4()
    found: list[Any] = []
    async with worker.client() as client, worker.subscribe(routing_keys=["#"], most=2) as replies:
        await client.send_many([TaskActivityLog(id=seen)])
        found.append(await anext(replies))
        await client.upsert(TaskActivityLog(id=missed))  # the answer goes to whoever has asked
        worker.resend()
        found.append(await anext(replies))
    assert [(reply.outcome, reply.record.id) for reply in found] == [("inserted", seen), ("snapshot", missed)]


async def test_a_record_that_is_longer_than_the_broker_takes_does_not_stop_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted, and the others are sent."""
    from task_activity_log.rabbitmq.publisher import MessageMax  # noqa: PLC0415 - patched

    ids, queue = await stored(world, 2), await own_queue(world)
    connection = await asyncpg.connect(world.database_url)
    await connection.execute("UPDATE task_activity_log SET subject = repeat('x', 1000) WHERE id = $1", ids[0])
    await connection.close()
    monkeypatch.setattr(MessageMax, "known", 900)
    said = await resend(world, "--id", str(ids[0]), "--id", str(ids[1]), "--queue", queue, "--yes")
    assert said.code == 3
    assert "1 is longer than the broker takes (max_message_size): not sent" in said.err
    assert ids_of(await read(world, queue, 1)) == ids[1:]


@pytest.mark.parametrize("rate", ["10", "1000"], ids=["one at a time", "all at once"])
async def test_a_full_queue_is_waited_for_and_then_named(
    world: World, monkeypatch: pytest.MonkeyPatch, rate: str
) -> None:
    """With the command to continue: what was taken in parts before is not sent again."""
    ids, queue = await stored(world, 4), f"full.{uuid4()}"
    monkeypatch.setattr(snapshots, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(snapshots, "_TIMEOUT_SECONDS", 0.3)
    async with await aio_pika.connect(world.amqp_url) as connection:
        channel = await connection.channel()
        limits: dict[str, Any] = {"x-max-length": 2, "x-overflow": "reject-publish"}
        await channel.declare_queue(queue, durable=True, arguments=limits)
    chosen = [option for one in ids for option in ("--id", str(one))]
    said = await resend(world, *chosen, "--queue", queue, "--rate", rate, "--yes")
    assert said.code == 1
    assert "2 sent, then: the broker refuses them: is a queue full?; to continue: task-activity-log resend" in said.err
    assert (f"--after {ids[1]}" in said.err) == (rate == "10")
    assert said.err.count("task-activity-log: waiting: the broker refuses them: is a queue full?\n") == 1


def test_the_time_since_is_ago_or_an_instant() -> None:
    """In UTC if it has no offset."""
    from task_activity_log.cli.times import since  # noqa: PLC0415

    assert abs(datetime.now(UTC) - timedelta(hours=2) - since("2h")) < timedelta(minutes=1)
    assert (
        since("2026-01-11T20:58:34Z") == since("2026-01-11 20:58:34") == datetime(2026, 1, 11, 20, 58, 34, tzinfo=UTC)
    )
