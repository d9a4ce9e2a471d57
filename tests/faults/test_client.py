"""The client with a broker whose limits the test may change, or that is away for a while."""

import asyncio
import sys
from uuid import uuid4

import pytest

from sandbox import RabbitMQ
from sandbox.proxy import Proxy
from task_activity_log.client import (
    ClientError,
    NotSent,
    TaskActivityLog,
    TaskActivityLogClient,
    Upsert,
    UpsertRejected,
)
from task_activity_log.client.dead_letters import borrow_dead_letters
from task_activity_log.client.replaying import replay
from tests.broker_control import largest_message
from tests.commands import environment
from tests.serving import serving


def record(description: str = "") -> TaskActivityLog:
    return TaskActivityLog(id=uuid4(), description=description)


async def test_a_record_that_is_larger_than_the_brokers_limit_fails_alone(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, database_url: str
) -> None:
    """And by name, in each way of sending. The others are answered or sent, and the client goes on."""
    large = 120_000
    upserts = [
        Upsert.of(record("x" * (large if number in (5, 6, 23) else 9)), message_id=str(number)) for number in range(30)
    ]
    async with serving(own_amqp_url, database_url), largest_message(own_rabbitmq, 100_000):
        async with TaskActivityLogClient(own_amqp_url) as client:
            answers = {answer.upsert.message_id: answer async for answer in client.upsert_many(upserts)}
            assert len(answers) == 30
            assert {name for name, answer in answers.items() if answer.rejected} == {"5", "6", "23"}
            problem = answers["5"].problem
            assert (problem.code, answers["5"].sent) == ("body_too_large", False)
            assert (
                problem.detail == f"Send at most 100000 bytes, the broker's limit. The body had {len(upserts[5].body)}."
            )
            with pytest.raises(UpsertRejected, match="body_too_large"):
                await client.upsert(record("x" * large))
            assert (await client.upsert(record())).outcome == "inserted"
        sent: list[int] = []
        async with TaskActivityLogClient(own_amqp_url) as client:
            with pytest.raises(
                NotSent, match="3 upserts not sent: 5: body_too_large: Send at most 100000 bytes"
            ) as refusal:
                await client.send_many(upserts, on_sent=sent.append)
        assert {answer.upsert.message_id for answer in refusal.value.answers} == {"5", "6", "23"}
        assert sum(sent) == 27


async def test_a_dead_letter_that_is_larger_than_the_brokers_limit_is_named(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, database_url: str
) -> None:
    """Otherwise nobody knows which one to discard, and those behind it stay for ever."""
    async with serving(own_amqp_url, database_url), TaskActivityLogClient(own_amqp_url) as client:
        for number, length in enumerate((9, 120_000, 9)):
            upsert = Upsert(b'{"id": 1, "description": "%s"}' % (b"x" * length), message_id=f"m{number}")
            with pytest.raises(UpsertRejected):
                await client.upsert(upsert)
    async with largest_message(own_rabbitmq, 100_000), borrow_dead_letters(own_amqp_url) as loan:
        letters = [(letter, letter) async for letter in loan]
        with pytest.raises(
            ClientError, match="the broker refuses more than 100,000 bytes, and m1 has 120,028: raise max_"
        ):
            await replay(loan, letters, own_amqp_url, rate=10)


_PROGRAM = """
import asyncio, os, sys
from uuid import uuid4
from task_activity_log.client import TaskActivityLog, TaskActivityLogClient

async def main():
    say = lambda text: print(text, flush=True)
    async with TaskActivityLogClient(
        os.environ["AMQP_URL"], on_outage=lambda _: say("away"), on_connected=lambda: say("connected")
    ) as client:
        await client.upsert(TaskActivityLog(id=uuid4()))
        say("stored")
        await asyncio.to_thread(sys.stdin.readline)
        await client.upsert(TaskActivityLog(id=uuid4()))
        say("stored again")

asyncio.run(main())
"""


async def test_an_outage_that_the_client_survives_prints_nothing(amqp_url: str, database_url: str) -> None:
    """The drivers log tracebacks, which Python prints for a program that has not configured logging."""
    async with serving(amqp_url, database_url), Proxy.to(amqp_url) as proxy:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _PROGRAM,
            env=environment(AMQP_URL=proxy.url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        told = [await process.stdout.readline() for _ in range(2)]
        assert told == [b"connected\n", b"stored\n"]
        proxy.refuse()
        proxy.cut()
        assert await process.stdout.readline() == b"away\n"
        proxy.accept()
        process.stdin.write(b"\n")
        out, err = await process.communicate()
    lines = out.decode().split("\n")
    assert lines[-2] == "stored again"
    assert "connected" in lines
    assert err == b""
