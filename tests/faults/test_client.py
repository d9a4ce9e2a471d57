"""The client with a broker whose limits the test may change."""

from uuid import uuid4

import pytest

from sandbox import RabbitMQ
from task_activity_log.client import NotSent, TaskActivityLog, TaskActivityLogClient, Upsert, UpsertRejected
from tests.broker_control import largest_message
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
