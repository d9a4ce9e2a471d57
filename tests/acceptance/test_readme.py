"""The programs in the README, run as they are printed there."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import aio_pika
import pytest

from sandbox import demo
from sandbox.service import free_port
from task_activity_log.client import TaskActivityLogClient, Upsert
from task_activity_log.rabbitmq.topology import Topology
from tests.commands import World, environment

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def program(name: str) -> str:
    """The Python program in the README that imports this name."""
    [found] = [text for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if f"{name}\n" in text]
    return str(found)


@asynccontextmanager
async def running(code: str, amqp_url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-u",
        "-c",
        f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}",  # ignored in the background
        env=environment(AMQP_URL=amqp_url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_publisher_prints_the_outcome(world: World) -> None:
    """And ends."""
    async with running(program("UpsertRejected"), world.amqp_url) as process:
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    assert out.startswith(b"inserted 20"), out


async def test_the_demo_shows_three_answers_and_the_dead_letter(
    amqp_url: str, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the README says: three messages and their replies. Its services are those of this test."""
    urls = {"AMQP_URL": amqp_url, "DATABASE_URL": database_url, "HTTP_PORT": str(free_port())}
    await asyncio.to_thread(demo._show, environment(**urls))
    shown = capsys.readouterr().out
    assert sorted(re.findall(r"docs/examples/samples/(\S+: \w+)", shown)) == [
        "bad.json:3: rejected",
        "bad.json:5: rejected",
        "bad.json:6: rejected",
        "record.json: inserted",
        "record.xml: updated",
    ]
    assert "3 answered in " in shown
    listed = shown.partition("$ task-activity-log dead-letters list\n")[2].partition("\n#")[0]
    assert "invalid_uuid" in listed


@pytest.mark.parametrize("name", ["UpsertRejected", "subscribe"])
async def test_a_broker_that_is_away_is_one_line(name: str) -> None:
    """And no traceback."""
    async with running(program(name), "amqp://user:secret@127.0.0.1:1/") as process:
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert out.splitlines() == [b"no connection to 127.0.0.1:1: connection refused"]


async def test_the_subscriber_survives_what_is_not_a_record(world: World) -> None:
    """A rejected request, and messages of others in the queue: it goes on with what comes next."""
    topology = Topology()
    async with await aio_pika.connect(world.amqp_url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(topology.replies_exchange, ensure=False)
        odd = [
            aio_pika.Message(b"<", content_type="application/xml", headers={"x-outcome": "inserted"}),
            aio_pika.Message(
                b"[" * 100_000, content_type="application/problem+json", headers={"x-outcome": "rejected"}
            ),
            aio_pika.Message(b""),
        ]
        for message in odd:
            await exchange.publish(message, "rejected")
    stored = uuid4()
    async with TaskActivityLogClient(world.amqp_url) as client:
        await client.send_many(
            [Upsert(b'{"id": "nope"}', message_id="first"), Upsert(b'{"id": "%s"}' % str(stored).encode())]
        )
    async with running(program("subscribe"), world.amqp_url) as process:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            lines = [(await process.stdout.readline()).decode() for _ in range(5)]
            process.send_signal(signal.SIGINT)
            rest = await process.stdout.read()
            assert (await process.wait(), b"Traceback" in rest) == (0, False)  # Ctrl-C ends it
    # In any order: what a subscriber of the test before had in hand when it ended may come back late.
    odd_lines = [line for line in lines if line.startswith("not a reply of the worker: ")]
    assert len(odd_lines) == 3
    assert set(lines) - set(odd_lines) == {"rejected: invalid_uuid first\n", f"inserted {stored}\n"}
